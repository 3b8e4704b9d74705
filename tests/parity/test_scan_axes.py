"""What a lifted scan takes and gives: axes of inputs and outputs, methods, beside flax.linen."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both
from helpers.models import SHARED, SPLIT, STACKED, WIDTH, block, cheap, scanned
from helpers.run import everything, keys, ramp

# Streams that are not split while their parameters are stacked are among the cases.
pytestmark = pytest.mark.filterwarnings("ignore:LX202")

CARRY = ramp(WIDTH)
XS = ramp(2, WIDTH, start=0.5)


# Each case: in_axes, the arguments after the carry, and what the body sees of them.
INPUTS: dict[str, Any] = {
    "first": (0, (ramp(3, WIDTH), ramp(3, 2))),
    "second": (1, (ramp(WIDTH, 3), ramp(2, 3))),
    "last": (-1, (ramp(WIDTH, 3), ramp(2, 2, 3))),
    "each_its_own": ((1, 0), (ramp(WIDTH, 3), ramp(3, 2))),
    "one_whole": ((0, "broadcast"), (ramp(3, WIDTH), ramp(2))),
    "dict": (
        ({"a": 0, "b": "broadcast"}, -2),
        ({"a": ramp(3, WIDTH), "b": {"x": ramp(2), "y": ramp(1)}}, ramp(2, 3, 2)),
    ),
    "prefix_of_a_list": ((0, [1, 0]), ([ramp(3, WIDTH), ramp(3)], [ramp(2, 3), ramp(3)])),
    "none_inside": (0, ({"a": ramp(3, WIDTH), "b": None}, (ramp(3),))),
}


def _axes(lib: Library, tree: Any) -> Any:
    mark = lib.broadcast
    return jax.tree.map(lambda axis: mark if axis == "broadcast" else axis, tree)


@pytest.mark.parametrize("case", INPUTS)
def test_in_axes(case: str) -> None:
    in_axes, args = INPUTS[case]

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Body(nn.Module):
            @nn.compact
            def __call__(self, c, *xs):
                seen = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(xs)])
                y = nn.Dense(WIDTH, kernel_init=cheap)(seen)
                return c * 0.5 + y, [jax.tree.map(lambda leaf: leaf * 2.0, xs), y]

        model = scanned(lib, Body, in_axes=_axes(lib, in_axes))()
        return everything(model, (CARRY, *args))

    both(run)


OUTPUTS: dict[str, Any] = {
    "first": 0,
    "second": 1,
    "last": -1,
    "before_last": -2,
    "each_its_own": (0, -1, 1),
    "inside": (0, -1, {"p": 1, "q": (0, -1)}),
    "one_broadcast": (1, "broadcast", 0),
    "all_broadcast_but_one": (0, "broadcast", {"p": 0, "q": (1, "broadcast")}),
}


@pytest.mark.parametrize("case", OUTPUTS)
@pytest.mark.parametrize("shared", [True, False])
def test_out_axes(case: str, shared: bool) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Body(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                w = nn.Dense(WIDTH, kernel_init=cheap, name="w")
                c = w(c) + x
                constant = jnp.ones((2, WIDTH)) * 3.0
                loop_free = w(constant) if shared else constant
                more = {"p": jnp.outer(c, x), "q": (jnp.outer(x, c), jnp.sin(loop_free))}
                return c, (jnp.outer(c, c), loop_free, more)

        out_axes = _axes(lib, OUTPUTS[case])
        model = scanned(lib, Body, out_axes=out_axes, **(SHARED if shared else {}))()
        return everything(model, (CARRY, ramp(4, WIDTH)))

    both(run)


@pytest.mark.parametrize("names", [["encode", "decode"], ("encode",), "mapping"])
def test_methods(names: Any) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            def setup(self):
                self.w = nn.Dense(WIDTH, kernel_init=cheap)
                self.v = nn.Dense(WIDTH, kernel_init=cheap)

            def encode(self, c, x):
                return self.w(c) + x, None

            def decode(self, c, x):
                return self.v(self.w(c)), c * x

            def __call__(self, c, x):
                c, _ = self.encode(c, x)
                return self.decode(c, x)

        axes = {"variable_axes": STACKED, "split_rngs": SPLIT}
        if names == "mapping":
            methods = {
                "encode": axes,
                "decode": {**axes, "reverse": True},
                "__call__": {**axes, "out_axes": 1},
            }
            lifted = nn.scan(Layer, methods=methods)
        else:
            lifted = scanned(lib, Layer, methods=list(names) if len(names) > 1 else names)

        class Model(nn.Module):
            def setup(self):
                self.layers = lifted()

            def __call__(self, c, x):
                c, _ = self.layers.encode(c, x)
                if len(names) == 1:
                    return c
                c, y = self.layers.decode(c, x)
                return (c, self.layers(c, y)) if names == "mapping" else (c, y)

        return everything(Model(), (CARRY, XS))

    both(run)


def test_data_transform() -> None:
    def run(lib: Library) -> Any:
        def transform(variable_groups, rng_groups):
            def scale(leaf):
                floating = jnp.issubdtype(leaf.dtype, jnp.floating)
                return leaf * 2.0 if floating else leaf

            return jax.tree.map(scale, variable_groups), rng_groups

        model = scanned(lib, block("dense", lib), data_transform=transform)()
        made = scanned(lib, block("dense", lib))().init(keys(), CARRY, XS)
        return everything(model, (CARRY, XS), variables=made)

    both(run)


def test_roles_for_one_direction() -> None:
    """`In` reads a stacked collection, `Out` writes one."""

    def run(lib: Library) -> Any:
        plain = scanned(lib, block("sow", lib))()
        made = {"params": plain.init(keys(), CARRY, XS)["params"]}
        axes = {"params": lib.In(0), "intermediates": lib.Out(-1)}
        model = scanned(lib, block("sow", lib), variable_axes=axes)()
        return everything(model, (CARRY, XS), variables=made)

    both(run)
