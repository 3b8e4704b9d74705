"""How the cost of a call grows: many values, leaves and layers, liftax beside flax.linen.

What is counted in the tests (walks, equations, bytes) is timed here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.table import Table, error_text
from benchmarks.timing import Settings, interleave

SOWN = (250, 2000)
LEAVES = 20_000
FIELDS = 10_000
DEPTH = 128


def run(settings: Settings) -> list[Table]:
    table = Table("growth", "what grows, ratios are to flax.linen", ["flax.linen", "liftax"])
    calls: dict[str, dict[str, Callable[[], Any]]] = {}
    for column, name in (("flax.linen", "flax.linen"), ("liftax", "liftax")):
        try:
            found = cases(__import__(name, fromlist=["Module"]))
        except Exception as error:  # one library's fault must not hide the other's figures
            table.note(f"{column}: failed, {error_text(error)}")
            continue
        for row, call in found.items():
            calls.setdefault(row, {})[column] = call
    for row, by_column in calls.items():
        samples = interleave(by_column, settings, warm_up=1)
        table.put_samples(row, samples, reference=samples.get("flax.linen"))
    return [table]


def cases(nn: Any) -> dict[str, Callable[[], Any]]:
    """Row -> what is timed, for a library with Linen's names."""

    class Sows(nn.Module):
        times: int

        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(self.times):
                self.sow("intermediates", "seen", x)
            return x

    class Reads(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x * self.param("w0", nn.initializers.ones, ())

    class Holds(nn.Module):
        held: tuple[Any, ...]

        def __call__(self, x: Any) -> Any:
            return x

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            y = nn.Dense(64)(nn.LayerNorm()(x))
            return x + nn.Dense(32)(nn.relu(y))

    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(DEPTH):
                x = Block()(x)
            return x

    variables = {"params": {f"w{i}": jnp.ones(()) for i in range(LEAVES)}}
    numbers, modules = Holds(tuple(range(FIELDS))), Holds(tuple(nn.Dense(3) for _ in range(1000)))
    key, x = jax.random.key(0), jnp.ones((2, 32))
    found: dict[str, Callable[[], Any]] = {
        f"sow of {n} values": lambda n=n: Sows(n).apply({}, 1.0, mutable=["intermediates"])
        for n in SOWN
    }
    bound = Reads().bind(variables)
    found |= {
        f"bind, {LEAVES:,} leaves": lambda: Reads().bind(variables),
        "apply": lambda: Reads().apply(variables, 1.0),
        "apply, mutable": lambda: Reads().apply(variables, 1.0, mutable=["params"]),
        "unbind": bound.unbind,
        "variables": lambda: bound.variables,
        f"hash, a field of {FIELDS:,} ints": lambda: hash(numbers),
        "hash, 1,000 layers": lambda: hash(modules),
        f"second init, loop of {DEPTH} layers": lambda: jax.block_until_ready(Deep().init(key, x)),
    }
    if hasattr(nn, "Stack"):
        for run in ("loop", "scan"):
            for store in ("stacked", "layers"):
                stack = nn.Stack(Block(), depth=DEPTH, run=run, store=store)
                found[f"second init, Stack of {DEPTH}, {run}, {store}"] = lambda stack=stack: (
                    jax.block_until_ready(stack.init(key, x))
                )
    return found
