"""Boxes whose value stands for all slices: one number outside, one for each slice inside."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Library, both, ours
from helpers.run import ramp

SIZE = 3
OPTIONS = {"metadata_params": {"size": SIZE}}


def box_of(lib: Library) -> Any:
    base = next(cls for cls in lib.nn.Partitioned.__mro__ if cls.__name__ == "AxisMetadata")

    @dataclasses.dataclass(frozen=True)
    class Largest(base):  # type: ignore[misc, valid-type]
        value: Any

        def unbox(self):
            return self.value

        def replace_boxed(self, val):
            return Largest(val)

        def add_axis(self, index, params):
            return Largest(jnp.max(self.value, axis=index))

        def remove_axis(self, index, params):
            return Largest(jnp.stack([self.value] * params["size"], axis=index))

    jax.tree_util.register_dataclass(Largest, data_fields=["value"], meta_fields=[])
    return Largest


def scaled(lib: Library) -> Any:
    nn, box = lib.nn, box_of(lib)

    class Scaled(nn.Module):
        @nn.compact
        def __call__(self, x, y):
            shape = jnp.shape(x)
            largest = self.variable("largest", "of", lambda: box(jnp.zeros(shape)))
            out = x * nn.Dense(2)(y) + largest.value
            if self.is_mutable_collection("largest"):
                largest.value = jnp.maximum(largest.value, jnp.abs(out).max(-1) * jnp.ones(shape))
            return x + out.sum(), out

    return Scaled


LIFTS: dict[str, Any] = {
    "scan": lambda lib, t, axis: lib.nn.scan(
        t, variable_axes={"params": 0, "largest": axis}, split_rngs={"params": True}, **OPTIONS
    ),
    "scan_of_known_length": lambda lib, t, axis: lib.nn.scan(
        t,
        variable_axes={"largest": axis},
        variable_broadcast="params",
        split_rngs={"params": False},
        length=SIZE,
        **OPTIONS,
    ),
    "vmap": lambda lib, t, axis: lib.nn.vmap(
        t,
        variable_axes={"params": 0, "largest": axis},
        split_rngs={"params": True},
        in_axes=(None, 0),
        **OPTIONS,
    ),
}


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("lift", LIFTS)
def test_a_number_that_stands_for_all_slices(lift: str, axis: int) -> None:
    def run(lib: Library) -> Any:
        model = LIFTS[lift](lib, scaled(lib), axis)()
        args = jnp.float32(0.5), ramp(SIZE, 2)
        variables = model.init(jax.random.key(0), *args)
        found = [model.apply(variables, *args, mutable=m) for m in (False, ["largest"])]
        return variables, found

    variables, (_, (_, changed)) = both(run)
    (value,) = jax.tree.leaves(changed)
    assert value.shape == () and float(value) > 0
    assert [leaf.shape for leaf in jax.tree.leaves(variables["largest"])] == [()]


def _stack(store: str, run: str) -> Any:
    nn, scale = ours().nn, scaled(ours())

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return scale()(jnp.float32(0.5), x)[1]

    ends = {"before": [Block()], "after": [Block()], "repeats": 2}
    options = {"metadata_params": {"size": 2}, "variable_axes": {"largest": -1}}
    return nn.Stack([Block()], store=store, run=run, **ends, **options)


@functools.cache
def _ran(store: str, run: str) -> Any:
    """Initial numbers and those after one call, by layer; the outputs of a second call."""
    stack, x = _stack(store, run), ramp(2)
    variables = stack.init(jax.random.key(0), x)
    y, changed = stack.apply(variables, x, mutable=["largest"])
    again = stack.apply({**variables, **changed}, x)
    names = {"before_0": "layers_0", "after_0": "layers_3", "block_0": "layers_1"}
    numbers = []
    for tree in (variables["largest"], changed["largest"]):
        found = {names.get(name, name): jax.tree.leaves(part) for name, part in tree.items()}
        # One number stands for the repeats: each of the layers has it.
        found["layers_2"] = found.get("layers_2", found["layers_1"])
        numbers.append(found)
    return numbers, y, again


@pytest.mark.parametrize("run", ["scan", "loop", "scan of 2"])
@pytest.mark.parametrize("store", ["stacked", "layers"])
def test_such_boxes_in_every_storage_and_run_of_a_stack(store: str, run: str) -> None:
    found, expected = _ran(store, run), _ran("stacked", "scan")
    jax.tree.map(np.testing.assert_array_equal, found[0][0], expected[0][0])
    jax.tree.map(np.testing.assert_allclose, found, expected)
    first, changed = found[0]
    assert sorted(changed) == [f"layers_{i}" for i in range(4)]
    assert all(leaf.shape == () for leaf in jax.tree.leaves((first, changed)))
    assert len({float(leaf) for leaf in jax.tree.leaves(changed)}) == 3


@pytest.mark.parametrize("axis", [0, -1])
def test_such_boxes_are_converted_there_and_back(axis: int) -> None:
    nn, box = ours().nn, box_of(ours())
    axes = {"largest": axis, "params": 0}
    stacking = nn.Stacking.of("block", 2, axis=axes, metadata_params={"size": 2})
    layers = nn.to_layers({"largest": {"block": {"of": box(jnp.float32(4))}}}, stacking)["largest"]
    assert [float(layers["block"][f"layers_{i}"]["of"].value) for i in range(2)] == [4, 4]
    layers["block"]["layers_1"]["of"] = box(jnp.float32(5))
    (again,) = jax.tree.leaves(nn.to_stacked({"largest": layers}, stacking))
    assert again.shape == () and float(again) == 5
