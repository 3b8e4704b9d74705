"""Eight threads at once compute what one at a time does."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
from helpers.compare import assert_same, ours
from helpers.interpret import interpret
from helpers.models import WIDTH, block, mapped, scanned
from helpers.run import keys, ramp

THREADS = 8


def _cases() -> list[tuple[Any, tuple[Any, Any]]]:
    lib = ours()
    one, two = ramp(WIDTH), ramp(2, WIDTH)
    return [
        (block("nested_rng", lib)(), (one, one)),
        (scanned(lib, lib.nn.remat(block("state", lib)))(), (one, two)),
        (mapped(lib, scanned(lib, block("direct_rng", lib)))(), (two, ramp(2, 2, WIDTH))),
        (lib.nn.jit(block("direct_rng", lib))(), (one, one)),
    ]


def _work(cases: list[Any], seed: int) -> Any:
    out: dict[int, Any] = {}
    for step in range(len(cases)):
        index = (step + seed) % len(cases)  # each thread begins with another model
        model, args = cases[index]
        rngs = keys(seed % 2)

        def run(rngs: Any, model: Any = model, args: Any = args) -> Any:
            variables = model.init(rngs, *args)
            return variables, model.apply(variables, *args, rngs=rngs, mutable=["batch_stats"])

        out[index] = jax.device_get(interpret(run, rngs))
    return out


def test_the_same_modules_from_eight_threads() -> None:
    cases = _cases()
    alone = [_work(_cases(), seed) for seed in range(THREADS)]
    start = threading.Barrier(THREADS)

    def run(seed: int) -> Any:
        start.wait()
        return _work(cases, seed)

    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(run, range(THREADS)))
    assert_same(together, alone)


def test_classes_defined_and_intercepted_in_threads_do_not_meet() -> None:
    """Names, interceptors and bound modules of one thread are not another's."""
    lib = ours()
    nn = lib.nn
    start = threading.Barrier(THREADS)

    def run(number: int) -> Any:
        class Own(nn.Module):
            @nn.compact
            def __call__(self, x):
                for _ in range(number + 1):
                    x = nn.Dense(WIDTH)(x)
                return x

        seen: list[str] = []

        def note(f: Any, args: Any, kwargs: Any, context: Any) -> Any:
            seen.append(context.module.name or "top")
            return f(*args, **kwargs)

        start.wait()
        with nn.intercept_methods(note):
            variables = Own().init(jax.random.key(0), ramp(WIDTH))
        return sorted(variables["params"]), seen

    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(run, range(THREADS)))
    for number, (names, seen) in enumerate(found):
        expected = [f"Dense_{i}" for i in range(number + 1)]
        assert names == expected
        assert [name for name in seen if name != "top"] == expected
