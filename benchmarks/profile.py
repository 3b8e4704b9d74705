"""``python -m benchmarks.profile CASE``: where liftax spends the time of one case, by cProfile.

Functions are sorted by the time spent in themselves or, with ``--sort cumulative``, in all they
call. ``--only liftax`` keeps the library's own files, ``--callers`` adds who calls them.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from benchmarks import eager, inits, trace_time
from benchmarks.checks import Ready
from benchmarks.peers import Config, Missing, Peer, load
from benchmarks.peers import by_hand as hand


def ready(peer: Peer, config: Config) -> Ready:
    model = peer.build(config)
    return Ready(peer, model, model.adopt(hand.noisy(config)), config.input())


def tracing(config: Config, *, grad: bool = False) -> Callable[[Peer], Callable[[], Any]]:
    return lambda peer: trace_time.tracer(ready(peer, config), grad=grad)


def eager_call(peer: Peer) -> Callable[[], Any]:
    model, x = peer.mlp(eager.parameters()), jax.numpy.ones((eager.BATCH, eager.SIZES[0]))
    return lambda: model(x)


CASES: dict[str, Callable[[Peer], Callable[[], Any]]] = {
    **{name: tracing(config) for name, config in trace_time.STACKS.items()},
    **{
        f"{name}-gradient": tracing(config, grad=True) for name, config in trace_time.STACKS.items()
    },
    "nested": tracing(Config(body="dense", lengths=(2,) * 6, dim=16)),
    "eager": eager_call,
    "init": lambda peer: inits.initialising(peer, inits.STACKS["scanned"], jit=False),
    "init-unrolled": lambda peer: inits.initialising(peer, inits.STACKS["unrolled"], jit=False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--peer", default="liftax")
    parser.add_argument("--sort", choices=("tottime", "cumulative"), default="tottime")
    parser.add_argument("--only", default="", help="show functions whose file has this in its path")
    parser.add_argument("--lines", type=int, default=30)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--callers", action="store_true")
    options = parser.parse_args(arguments)

    try:
        call = CASES[options.case](load(options.peer))
    except (Missing, ValueError) as error:
        parser.error(f"{options.peer}: {error}")
    for _ in range(3):
        call()
    start = time.process_time()
    for _ in range(options.repeats):
        call()
    plain = (time.process_time() - start) / options.repeats

    # The process's own time: other programs on the machine do not show in the figures.
    profiler = cProfile.Profile(time.process_time)
    profiler.enable()
    for _ in range(options.repeats):
        call()
    profiler.disable()
    stats = pstats.Stats(profiler).sort_stats(options.sort)
    print(f"{options.peer}, {options.case}: {plain * 1e3:.2f} ms a call without the profiler")
    print(f"figures below are of {options.repeats} calls, slowed down by the profiler")
    print_rooms(stats, options.repeats)
    stats.print_stats(options.only, options.lines)
    if options.callers:
        stats.print_callers(options.only, options.lines)
    return 0


def print_rooms(stats: pstats.Stats, repeats: int) -> None:
    """Time spent in the functions of each package themselves."""
    rooms: dict[str, float] = {}
    for (file, _, _), (_, _, own, _, _) in stats.stats.items():  # type: ignore[attr-defined]
        rooms[room(file)] = rooms.get(room(file), 0.0) + own
    total = sum(rooms.values())
    for name, own in sorted(rooms.items(), key=lambda item: -item[1])[:10]:
        print(f"  {own / repeats * 1e3:8.3f} ms a call  {own / total:5.1%}  {name}")


def room(file: str) -> str:
    for package in ("liftax", "flax", "equinox", "haiku", "jax", "benchmarks"):
        if f"/{package}/" in file:
            inside = file.split(f"/{package}/")[-1].split("/")[0]
            return package if package in ("jax", "benchmarks") else f"{package}/{inside}"
    return "builtins" if file.startswith(("~", "<")) else "standard library and others"


if __name__ == "__main__":
    sys.exit(main())
