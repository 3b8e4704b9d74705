"""Each layer beside flax.linen: the time of a call, run eagerly, traced and compiled.

Sizes are small, so that what is measured eagerly and traced is Python, not arithmetic. Ratios are
to flax.linen. Compiled programs do the same arithmetic, so their ratio shows how far the clock
scatters.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.table import Cell, Table, seconds
from benchmarks.timing import Settings, interleave

LIBRARIES = {"liftax": "liftax", "flax.linen": "flax.linen"}
WAYS = ("eager", "trace", "jit")
PAIR = ((8, 16), (8, 16))
IMAGE = (2, 8, 8, 4)


@dataclasses.dataclass(frozen=True)
class Case:
    """A layer and what it is called with."""

    make: Callable[[Any], Any]
    inputs: Any
    call: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def cases() -> dict[str, Case]:
    x, sequence = (8, 16), (2, 6, 16)
    return {
        "Dense": Case(lambda nn: nn.Dense(16), (x,)),
        "DenseGeneral": Case(lambda nn: nn.DenseGeneral((4, 4)), (x,)),
        "Einsum": Case(lambda nn: nn.Einsum((16, 16), "...a,ab->...b"), (x,)),
        "Embed": Case(lambda nn: nn.Embed(8, 16), ((8,),)),
        "Conv": Case(lambda nn: nn.Conv(4, (3, 3)), (IMAGE,)),
        "ConvTranspose": Case(lambda nn: nn.ConvTranspose(4, (3, 3), strides=(2, 2)), (IMAGE,)),
        "ConvLocal": Case(lambda nn: nn.ConvLocal(4, (3, 3)), (IMAGE,)),
        "LayerNorm": Case(lambda nn: nn.LayerNorm(), (x,)),
        "RMSNorm": Case(lambda nn: nn.RMSNorm(), (x,)),
        "GroupNorm": Case(lambda nn: nn.GroupNorm(4), (IMAGE,)),
        "InstanceNorm": Case(lambda nn: nn.InstanceNorm(), (IMAGE,)),
        "BatchNorm": Case(lambda nn: nn.BatchNorm(use_running_average=False), (x,)),
        "SpectralNorm": Case(
            lambda nn: nn.SpectralNorm(nn.Dense(16)), (x,), {"update_stats": True}
        ),
        "WeightNorm": Case(lambda nn: nn.WeightNorm(nn.Dense(16)), (x,)),
        "Dropout": Case(lambda nn: nn.Dropout(0.5, deterministic=False), (x,)),
        "PReLU": Case(lambda nn: nn.PReLU(), (x,)),
        "MultiHeadDotProductAttention": Case(
            lambda nn: nn.MultiHeadDotProductAttention(num_heads=4), (sequence,)
        ),
        "LSTMCell": Case(lambda nn: nn.LSTMCell(16), (PAIR, x)),
        "OptimizedLSTMCell": Case(lambda nn: nn.OptimizedLSTMCell(16), (PAIR, x)),
        "SimpleCell": Case(lambda nn: nn.SimpleCell(16), (x, x)),
        "GRUCell": Case(lambda nn: nn.GRUCell(16), (x, x)),
        "MGUCell": Case(lambda nn: nn.MGUCell(16), (x, x)),
        "ConvLSTMCell": Case(lambda nn: nn.ConvLSTMCell(4, (3, 3)), ((IMAGE, IMAGE), IMAGE)),
        "RNN": Case(lambda nn: nn.RNN(nn.GRUCell(16)), (sequence,)),
        "Bidirectional": Case(
            lambda nn: nn.Bidirectional(nn.RNN(nn.GRUCell(16)), nn.RNN(nn.GRUCell(16))),
            (sequence,),
        ),
        "Sequential": Case(lambda nn: nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(16)]), (x,)),
    }


def arrays(shapes: Any, dtype: Any = jnp.float32) -> Any:
    """A tree of shapes as arrays of ones."""
    if isinstance(shapes, tuple) and all(isinstance(n, int) for n in shapes):
        return jnp.ones(shapes, dtype)
    return tuple(arrays(s, dtype) for s in shapes)


def calls(case: Case, name: str) -> dict[str, dict[str, Callable[[], Any]]]:
    """For each way to call the layer, the call in each library."""
    args = arrays(case.inputs, jnp.int32 if name == "Embed" else jnp.float32)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    found: dict[str, dict[str, Callable[[], Any]]] = {way: {} for way in WAYS}
    for library, module in LIBRARIES.items():
        layer = case.make(importlib.import_module(module))
        variables = layer.init(keys, *args, **case.call)

        def apply(variables: Any, args: Any, layer: Any = layer) -> Any:
            rngs = {"dropout": keys["dropout"]}
            return layer.apply(variables, *args, rngs=rngs, mutable=["batch_stats"], **case.call)

        def eager(apply: Any = apply, variables: Any = variables) -> Any:
            return jax.block_until_ready(apply(variables, args))

        def trace(apply: Any = apply, variables: Any = variables) -> Any:
            return jax.jit(lambda v, a: apply(v, a)).trace(variables, args)

        compiled = jax.jit(apply)

        def run(compiled: Any = compiled, variables: Any = variables) -> Any:
            return jax.block_until_ready(compiled(variables, args))

        for way, call in zip(WAYS, (eager, trace, run), strict=True):
            found[way][library] = call
    return found


def run(settings: Settings | None = None, names: tuple[str, ...] = ()) -> list[Table]:
    """One row a layer: liftax's time in each way, and its ratio to flax.linen's."""
    settings = settings or Settings(rounds=7, min_sample=0.005)
    columns = [f"{library}, {way}" for way in WAYS for library in LIBRARIES]
    table = Table("layers", "one call of each layer; ratios are to flax.linen", columns)
    for name, case in cases().items():
        if names and name not in names:
            continue
        for way, both in calls(case, name).items():
            samples = interleave(both, settings)
            base = samples["flax.linen"]
            for library, sample in samples.items():
                ratio = None if sample is base else sample.ratio(base)
                text = seconds(sample.median) + (f" ({ratio:.2f}x)" if ratio else "")
                table.put(
                    name, f"{library}, {way}", Cell(text, sample.median, ratio, sample.spread)
                )
    return [table]


if __name__ == "__main__":
    from benchmarks.table import show

    for result in run():
        show(result)
