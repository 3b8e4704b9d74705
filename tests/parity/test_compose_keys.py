"""Keys in nests of lifts whose bodies Linen traces more than once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, assert_same, both, ours
from helpers.interpret import interpret
from helpers.models import SHARED, WIDTH, cheap, key_bits, mapped, scanned
from helpers.run import everything, keys, ramp

pytestmark = pytest.mark.filterwarnings("ignore:LX202")


def _eighths(collections: Any) -> Any:
    """Mapping twice is mapping once: Linen maps what is there already once more in init."""
    return jax.tree.map(lambda w: jnp.round(w * 8.0) / 8.0, collections)


def _twice(lib: Library, target: Any) -> Any:
    """Two of a module, the first called twice."""

    class Twice(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, c, x):
            first = target(name="first")
            return target(name="second")(*first(*first(c, x)))

    return Twice


def _custom(lib: Library, target: Any) -> Any:
    """A module whose gradient is written by hand, and is the usual one."""
    nn = lib.nn

    def call(mdl, c, x):
        return mdl(c, x)

    class Custom(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            def forward(mdl, c, x):
                return nn.vjp(call, mdl, c, x)

            run = nn.custom_vjp(call, forward, lambda back, bars: back(bars))
            return run(target(name="inner"), c, x)

    return Custom


AXES = {"params": 0, "state": 0}
LIFTS: dict[str, Any] = {
    "S": lambda lib, t: scanned(lib, t, variable_axes=AXES),
    "T": lambda lib, t: scanned(lib, t, **{**SHARED, "variable_axes": {"state": 0}}),
    "V": lambda lib, t: mapped(lib, t, variable_axes=AXES),
    "J": lambda lib, t: lib.nn.jit(t),
    "M": lambda lib, t: lib.nn.map_variables(t, "params", _eighths, init=True),
    "R": lambda lib, t: lib.nn.remat(t),
    "F": lambda lib, t: (
        lib.nn.transforms.fold_rngs(t) if lib.name == "flax" else lib.nn.fold_rngs(t)
    ),
    "2": _twice,
    "K": _custom,
}


# What Linen's jit remembers of a class it finds again by hash: each nest has a class of its own,
# and none is dropped for another to take its place.
_KEPT: list[Any] = []


def body(lib: Library) -> type:
    """Draws keys before, between and after its parameters, and one for a state."""

    class Draws(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, c, x):
            first = key_bits(self.make_rng("dropout"))
            w = self.param("w", cheap, (WIDTH,))
            second = key_bits(self.make_rng("dropout"))
            b = self.param("b", cheap, (WIDTH,))
            kept = self.variable("state", "kept", lambda: key_bits(self.make_rng("params")))
            return jnp.sin(c * w + b) + first + kept.value, x + second

    return Draws


def build(lib: Library, nest: str) -> Any:
    target: Any = body(lib)
    for name in reversed(nest):
        target = LIFTS[name](lib, target)
        _KEPT.append(target)
    return target()


def inputs(nest: str) -> tuple[jax.Array, jax.Array]:
    return (
        ramp(*[2 for name in nest if name == "V"], WIDTH),
        ramp(*[2 for name in nest if name in "STV"], WIDTH, start=0.3),
    )


# No two equal jitted modules: what Linen's jit remembers of one leaks into the other, and its
# keys then depend on which models came before.
NESTS = [
    "SMJ", "TMJ", "MSJ", "MTS", "MTV", "MTJ", "MJS", "SJF", "TJF", "SSJ", "STJ", "TSJ", "SJT",
    "SRJ", "VJMT", "S2", "T2", "M2", "SM2", "TM2", "M2S",
]  # fmt: skip


@pytest.mark.parametrize("nest", NESTS)
def test_bases_of_keys_in_loops(nest: str) -> None:
    """Where a lift inside a loop draws a key to draw from, each trace has its own."""
    both(lambda lib: everything(build(lib, nest), inputs(nest), mutable=False))


@pytest.mark.parametrize("nest", ["SK", "JK", "SJK", "SRK", "S2K", "TK"])
def test_both_traces_of_a_custom_vjp_draw_the_same_keys(nest: str) -> None:
    """JAX traces the forward pass after the loop, or the program, that it stands in."""
    model, args = build(ours(), nest), inputs(nest)
    variables = model.init(keys(), *args)
    rngs = {"dropout": jax.random.key(5)}

    def run(variables: Any) -> Any:
        return model.apply(variables, *args, rngs=rngs)

    out = interpret(run, variables)
    assert_same(interpret(lambda v: jax.vjp(run, v)[0], variables), out)
