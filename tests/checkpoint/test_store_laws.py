"""Laws: there and back is the identity, and conversions commute with steps of optimizers.

The stacked form is made here by numpy, from layers drawn at random, and not by the code under
test.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liftax as nn
from liftax.layout import Enclosing
from liftax.stack.storage import StackLayout

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DTYPES = ["float32", "bfloat16", "int8", "uint16", "bool", "complex64", "float8_e5m2"]


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@st.composite
def shapes(draw, deep=2):
    """The variables of one layer: nested dicts of shapes and dtypes."""
    names = draw(st.lists(st.sampled_from("abcd"), min_size=1, max_size=3, unique=True))
    made = {}
    for name in names:
        if deep and draw(st.booleans()):
            made[name] = draw(shapes(deep=deep - 1))
        else:
            shape = tuple(draw(st.lists(st.integers(0, 3), max_size=3)))
            made[name] = jax.ShapeDtypeStruct(shape, jnp.dtype(draw(st.sampled_from(DTYPES))))
    return made


def filled(tree, rng):
    return jax.tree.map(lambda s: rng.integers(0, 9, s.shape).astype(s.dtype), tree)


def least_rank(tree):
    return min(len(leaf.shape) for leaf in jax.tree.leaves(tree))


@st.composite
def stacks(draw):
    """A layout, the variables in the layers form, and the same ones stacked by numpy."""
    before, after = draw(st.integers(0, 2)), draw(st.integers(0, 2))
    positions, repeats = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    blocks = [draw(shapes()) for _ in range(before + positions + after)]
    rank = min(map(least_rank, blocks))
    axis = draw(st.integers(-rank - 1, rank))
    outer = draw(st.none() | st.integers(-rank - 1, rank))
    around = ()
    if outer is not None:  # an ensemble of two
        around = (Enclosing("vmap", 2, {"*": outer}),)
    path = tuple(draw(st.lists(st.sampled_from("xy"), max_size=2)))
    at = StackLayout(
        path=path,
        before=before,
        positions=positions,
        repeats=repeats,
        after=after,
        store="stacked",
        role_of=lambda collection: axis,
        enclosing=around,
    )
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    layers, stacked = {}, {}
    numbers = {i: before + p for p in range(positions) for i in at.numbers(p)}
    for i in range(at.layers):
        first = i < before
        block = blocks[i if first else numbers.get(i, i - positions * (repeats - 1))]
        members = [filled(block, rng) for _ in range(1 if outer is None else 2)]
        layers[i] = members
        name, index = at.place(i)
        if index is None:
            stacked[name] = joined(members, outer)
        else:
            stacked.setdefault(name, []).append(members)
    for name, repeated in stacked.items():
        if isinstance(repeated, list):
            each = [
                jax.tree.map(lambda *a: np.stack(a, axis), *m) for m in zip(*repeated, strict=True)
            ]
            stacked[name] = joined(each, outer)
    by_layer = {f"layers_{i}": joined(members, outer) for i, members in layers.items()}
    return at, nest(path, by_layer), nest(path, stacked)


def joined(members, outer):
    """The members of an ensemble as one; the axis counts in the array that the lift makes."""
    if outer is None:
        return members[0]
    return jax.tree.map(lambda *a: np.stack(a, outer), *members)


def nest(path, tree):
    for name in reversed(path):
        tree = {name: tree}
    return {"params": tree}


@given(stacks())
@settings(max_examples=150)
def test_there_and_back(case):
    at, layers, stacked = case
    same(nn.to_layers(stacked, at), layers)
    same(nn.to_stacked(layers, at), stacked)
    counts = nn.layer_counts(stacked, at)
    assert counts == nn.layer_counts(nn.to_layers(stacked, at), at)
    (each,) = counts.values()
    assert sum(each) == sum(leaf.size for leaf in jax.tree.leaves(stacked))
    shapes_alone = jax.eval_shape(lambda: jax.tree.map(jnp.asarray, stacked))
    wanted = jax.tree.map(np.shape, nn.to_layers(stacked, at))
    assert jax.tree.map(lambda s: s.shape, nn.to_layers(shapes_alone, at)) == wanted


@st.composite
def nested_stacks(draw):
    """Stacks in stacks, described by hand."""
    depths = draw(st.lists(st.integers(1, 3), min_size=2, max_size=3))
    shape = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    axes, array_shape = [], shape
    for depth in reversed(depths):  # the innermost is stacked first
        axis = draw(st.integers(-len(array_shape) - 1, len(array_shape)))
        at = axis if axis >= 0 else axis + len(array_shape) + 1
        array_shape = (*array_shape[:at], depth, *array_shape[at:])
        axes.insert(0, axis)
    same_path = draw(st.booleans())
    path = "" if same_path else "in"
    inner = None
    for depth, axis in reversed(list(zip(depths[1:], axes[1:], strict=True))):
        inner = nn.Stacking.of(path, depth, axis=axis, inside=[inner] if inner else [])
    outer = nn.Stacking.of("out", depths[0], axis=axes[0], inside=[inner])
    array = np.arange(np.prod(array_shape, dtype=int)).reshape(array_shape)
    below = {"w": array}
    for _ in depths[1:]:
        below = below if same_path else {"in": below}
    return outer, depths, axes, {"params": {"out": below}}, same_path


@given(nested_stacks())
@settings(max_examples=60)
def test_nested(case):
    layout, depths, axes, stacked, same_path = case
    layers = nn.to_layers(stacked, layout)
    same(nn.to_stacked(layers, layout), stacked)
    array = jax.tree.leaves(stacked)[0]
    assert len(jax.tree.leaves(layers)) == np.prod(depths)
    node = layers["params"]["out"]
    for depth, axis in zip(depths, axes, strict=True):
        node = node[f"layers_{depth - 1}"]
        node = node.get("in", node)
        array = np.take(array, depth - 1, axis)
    np.testing.assert_array_equal(node["w"], array)


class Weight(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x, self.param("w", lambda key: jax.random.uniform(key, (2, 3)))


@given(st.lists(st.sampled_from([0, 1, -1, -2]), min_size=2, max_size=3))
@settings(max_examples=8, deadline=None)
def test_scans_of_scans_at_one_path(axes):
    """Layer i of layer j is slice i, along the inner axis, of slice j along the outer one."""
    module, depths = Weight, [2, 3, 4][: len(axes)]
    for depth, axis in zip(depths, axes, strict=True):
        split = {"split_rngs": {"params": True}, "length": depth}
        module = nn.scan(module, variable_axes={"params": axis}, **split)
    args = (jax.random.key(0), jnp.zeros(()), None)
    variables, layout = module().init(*args), nn.layout(module(), *args)
    layers = nn.to_layers(variables, layout)
    same(nn.to_stacked(layers, layout), variables)
    for place in np.ndindex(*reversed(depths)):
        node, array = layers["params"], np.asarray(variables["params"]["w"])
        for i, axis in zip(place, reversed(axes), strict=True):
            node, array = node[f"layers_{i}"], np.take(array, i, axis)
        np.testing.assert_array_equal(node["w"], array)


OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "adamw": optax.adamw(0.1, weight_decay=0.01),
    "clipped": optax.chain(optax.clip_by_global_norm(1e3), optax.sgd(0.1, momentum=0.9)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@given(
    depth=st.sampled_from([1, 3]),
    axis=st.sampled_from([0, 1, -1]),
    seed=st.integers(0, 99),
    positions=st.sampled_from([1, 2]),
)
@settings(max_examples=6)
def test_conversions_commute_with_steps(name, depth, axis, seed, positions):
    """A step and then the conversion is the conversion and then a step, to the last bit."""
    optimizer = OPTIMIZERS[name]
    at = nn.Stack([nn.Dense(3)] * positions, repeats=depth, after=[nn.Dense(3)], param_axis=axis)
    rng = np.random.default_rng(seed)

    def one(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def tree():
        layers = {f"layers_{i}": {"w": one(2, 3), "b": one(3)} for i in range(at.layout().layers)}
        return nn.to_stacked(layers, at)

    params, grads = tree(), tree()
    state = optimizer.init(params)
    converted = [nn.to_layers(t, at) for t in (params, grads, state)]
    same(converted[2], optimizer.init(converted[0]))

    def step(params, grads, state):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(2):
        params, state = step(params, grads, state)
        converted[0], converted[2] = step(converted[0], converted[1], converted[2])
    if name != "clipped":  # a norm over all arrays is summed in another order
        same(nn.to_layers(params, at), converted[0])
        same(nn.to_layers(state, at), converted[2])
        same(nn.to_stacked(converted[2], at), state)
    else:
        for a, b in zip(
            jax.tree.leaves(nn.to_layers(params, at)), jax.tree.leaves(converted[0]), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6)
