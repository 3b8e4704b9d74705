"""Initialisation: time of the first and of later calls, and what its program computes.

The first and second call are those of a fresh process, after JAX itself was warmed up by one
small program; ``python -m benchmarks.inits PEER eager|jit CASE`` is that process. Warm calls come
later still.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.checks import columns, wanted
from benchmarks.peers import BASELINE, Config, Peer, load
from benchmarks.programs import equations
from benchmarks.table import Table, error_text
from benchmarks.timing import Sample, Settings, interleave

STACKS = {"scanned": Config(), "unrolled": Config(lengths=(), unrolled=12)}
COLD_ROUNDS = 3
WARM_ROUNDS = 5  # at most: an eager init can take seconds


def run(settings: Settings) -> list[Table]:
    """Times and programs of ``init`` for the 12-layer transformer stack."""
    peers, missing = wanted(settings)
    times = Table("init", "init, 12-layer transformer, ratios to jitted by hand", columns(settings))
    sizes = Table("init-program", "equations in the jaxpr of init", columns(settings))
    times.note_missing(missing)
    for name, config in STACKS.items():
        put_program(sizes, name, config, peers)
        put_warm(times, name, config, peers, settings)
    put_cold(times, "scanned", peers)
    for row in times.cells:
        if "eager" in row:
            times.targets[row] = "<= 1.20x by hand, jit"
    return [times, sizes]


def put_program(table: Table, name: str, config: Config, peers: dict[str, Peer]) -> None:
    """Equations of init's jaxpr; a matrix product in it belongs to a forward pass."""
    for peer_name, peer in peers.items():
        try:
            jaxpr = jax.make_jaxpr(peer.init_arrays(config))(jax.random.key(0))
        except Exception as error:  # one peer's fault must not hide the others' figures
            table.note(f"{peer_name}: {name} failed, {error_text(error)}")
            continue
        found = [equation.primitive.name for equation in equations(jaxpr)]
        table.put_counts(f"{name}, equations", {peer_name: len(found)}, base=None)
        products = sum(p == "dot_general" for p in found)
        table.put_counts(f"{name}, matrix products", {peer_name: products}, base=None)
    table.targets[f"{name}, matrix products"] = "0"


def initialising(peer: Peer, config: Config, *, jit: bool) -> Callable[[], Any]:
    """A call of init with a new key, waited for."""
    init, keys = peer.init(config, jit=jit), iter(range(2**31))

    def call() -> Any:
        made = init(jax.random.key(next(keys)))
        for leaf in jax.tree.leaves(made):
            getattr(leaf, "block_until_ready", lambda: None)()
        return made

    return call


def put_warm(
    table: Table, name: str, config: Config, peers: dict[str, Peer], settings: Settings
) -> None:
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for peer_name, peer in peers.items():
        # Compiling the unrolled init takes everyone long; only the reference needs it.
        modes = ("eager", "jit") if config.lengths or peer_name == BASELINE else ("eager",)
        for mode in modes:
            call = initialising(peer, config, jit=mode == "jit")
            try:
                call()
                call()
            except Exception as error:  # one peer's fault must not hide the others' figures
                table.note(f"{peer_name}: {name} {mode} failed, {error_text(error)}")
            else:
                calls[peer_name, mode] = call
    keyed = {f"{mode}/{peer_name}": call for (peer_name, mode), call in calls.items()}
    settings = dataclasses.replace(settings, rounds=min(settings.rounds, WARM_ROUNDS))
    put(table, f"{name}, warm", interleave(keyed, settings, warm_up=0, wall=True))


def put_cold(table: Table, name: str, peers: dict[str, Peer]) -> None:
    calls: tuple[dict[str, list[float]], ...] = ({}, {})
    for _ in range(COLD_ROUNDS):
        for peer_name in peers:
            for mode in ("eager", "jit"):
                try:
                    found = cold(peer_name, mode, name)
                except RuntimeError as error:
                    table.note(f"{peer_name}: {name} {mode} failed cold, {error_text(error)}")
                    continue
                for seconds, value in zip(calls, found, strict=True):
                    seconds.setdefault(f"{mode}/{peer_name}", []).append(value)
    for which, seconds in zip(("first call", "second call"), calls, strict=True):
        full = {k: Sample(tuple(v)) for k, v in seconds.items() if len(v) == COLD_ROUNDS}
        put(table, f"{name}, {which}", full)


def put(table: Table, row: str, samples: dict[str, Sample]) -> None:
    """Rows for the eager and the jitted calls, both with their ratio to the jitted by-hand one."""
    base = samples.get(f"jit/{BASELINE}")
    for mode in ("eager", "jit"):
        found = {k.split("/", 1)[1]: s for k, s in samples.items() if k.startswith(mode)}
        table.put_samples(f"{row}, {mode}", found, reference=base)


def cold(peer_name: str, mode: str, stack: str) -> list[float]:
    """Seconds of the first two inits in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.inits", peer_name, mode, stack],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def main(peer_name: str, mode: str, stack: str) -> None:
    """Print the seconds that the first two inits of this process take."""
    call = initialising(load(peer_name), STACKS[stack], jit=mode == "jit")
    jax.jit(lambda x: x + 1)(jnp.zeros(1)).block_until_ready()
    jax.random.key(0).block_until_ready()
    times = [time.perf_counter()]
    for _ in range(2):
        call()
        times.append(time.perf_counter())
    print(json.dumps([times[1] - times[0], times[2] - times[1]]))


if __name__ == "__main__":
    main(*sys.argv[1:])
