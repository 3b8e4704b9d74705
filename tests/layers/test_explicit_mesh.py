"""Layers on a mesh of explicit axes, where the type of an array says how it is split."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liftax as nn
from liftax.errors import PartitioningMismatchError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

P = PartitionSpec
KEY = jax.random.key(0)
RNGS = {"params": KEY, "dropout": jax.random.key(1)}
OUT = P("data", None, "model")


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((2, 4), ("data", "model"))


def x(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


class Case(NamedTuple):
    """A layer, its inputs, and how its output lies with kernels split along their features."""

    layer: nn.Module
    inputs: jax.Array
    out: P
    options: dict[str, Any] = {}


def attention(**options: Any) -> nn.Module:
    return nn.MultiHeadDotProductAttention(4, **options)


LENGTHS: dict[str, Any] = {"seq_lengths": jnp.full(4, 2)}
CASES = {
    "Dense": Case(nn.Dense(8), x(4, 8), P("data", "model")),
    "DenseGeneral": Case(nn.DenseGeneral((2, 4)), x(4, 8), P("data", None, "model")),
    "Einsum": Case(nn.Einsum((8, 4), "ab,bc->ac"), x(4, 8), P("data", "model")),
    "Embed": Case(nn.Embed(16, 8), jnp.arange(4), P("data", "model")),
    "Embed of one": Case(nn.Embed(1, 8), jnp.arange(4), P("data", "model")),
    "Dropout": Case(nn.Dropout(0.5, deterministic=False), x(4, 8), P("data", None)),
    "Dropout, one mask": Case(
        nn.Dropout(0.5, broadcast_dims=(0,), deterministic=False), x(4, 8), P("data", None)
    ),
    "LayerNorm": Case(nn.LayerNorm(), x(4, 8), P("data", "model")),
    "GroupNorm": Case(nn.GroupNorm(2), x(4, 4, 8), OUT),
    "BatchNorm": Case(nn.BatchNorm(use_running_average=False), x(4, 8), P("data", "model")),
    "SpectralNorm": Case(
        nn.SpectralNorm(nn.Dense(8)), x(4, 8), P("data", "model"), {"update_stats": True}
    ),
    "WeightNorm": Case(nn.WeightNorm(nn.Dense(8)), x(4, 8), P("data", "model")),
    "Conv": Case(nn.Conv(8, (3,)), x(4, 4, 8), OUT),
    "Conv, no batch": Case(nn.Conv(8, (3,)), x(4, 8), P(None, "model")),
    "ConvLocal": Case(nn.ConvLocal(8, (3,)), x(4, 4, 8), OUT),
    "ConvTranspose": Case(nn.ConvTranspose(8, (3,), padding="CIRCULAR"), x(4, 4, 8), OUT),
    "PReLU": Case(nn.PReLU(), x(4, 8), P("data", None)),
    "attention": Case(attention(), x(4, 4, 8), OUT),
    "attention, dropout": Case(
        attention(dropout_rate=0.5, deterministic=False, broadcast_dropout=False), x(4, 4, 8), OUT
    ),
    "decode": Case(attention(decode=True), x(4, 1, 8), OUT),
    "LSTM": Case(nn.RNN(nn.LSTMCell(8)), x(4, 3, 8), OUT),
    "OptimizedLSTM": Case(nn.RNN(nn.OptimizedLSTMCell(8)), x(4, 3, 8), OUT),
    "GRU": Case(nn.RNN(nn.GRUCell(8)), x(4, 3, 8), OUT),
    "MGU": Case(nn.RNN(nn.MGUCell(8)), x(4, 3, 8), OUT),
    "SimpleCell": Case(
        nn.RNN(nn.SimpleCell(8), time_major=True), x(3, 4, 8), P(None, "data", "model")
    ),
    "ConvLSTM": Case(
        nn.RNN(nn.ConvLSTMCell(8, (3,))), x(4, 2, 4, 8), P("data", None, None, "model")
    ),
    "lengths": Case(
        nn.RNN(nn.GRUCell(8), reverse=True, keep_order=True, return_carry=True),
        x(4, 3, 8),
        OUT,
        LENGTHS,
    ),
    "Bidirectional": Case(
        nn.Bidirectional(nn.RNN(nn.GRUCell(8)), nn.RNN(nn.GRUCell(8))), x(4, 3, 8), OUT
    ),
}
# Of these the values are compared too; of the others the program is made and not run.
RUN = ("Embed", "Dropout", "Dropout, one mask", "Conv", "ConvTranspose", "decode", "lengths")


def by_features(leaf: Any) -> P:
    if leaf.ndim == 4:  # a cache has a batch, and few features a head
        return P("data")
    fits = leaf.ndim > 0 and leaf.shape[-1] % 4 == 0
    return P(*[None] * (leaf.ndim - 1), "model") if fits else P()


def full(spec: P, leaf: Any) -> tuple[Any, ...]:
    """One entry for each axis."""
    return (*spec, *(None,) * (leaf.ndim - len(spec)))


def split(tree: Any, spec: Callable[[Any], P], mesh: jax.sharding.Mesh) -> Any:
    """Arrays and shapes, laid out on a mesh."""

    def one(leaf: Any) -> Any:
        place = NamedSharding(mesh, spec(leaf))
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, place)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)

    return jax.tree.map(one, tree)


def close(found: Any, expected: Any) -> None:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        jax.tree.map(np.asarray, found),
        jax.tree.map(np.asarray, expected),
    )


@pytest.mark.parametrize("name", CASES)
def test_every_layer_takes_a_split_batch_and_split_features(
    name: str, mesh: jax.sharding.Mesh
) -> None:
    case, runs = CASES[name], name in RUN

    def made(inputs: jax.Array) -> Any:
        return case.layer.init(RNGS, inputs, **case.options)

    def run(variables: Any, inputs: Any) -> Any:
        y, _ = case.layer.apply(variables, inputs, rngs=RNGS, mutable=True, **case.options)
        return y

    def with_gradient(variables: Any, inputs: Any) -> Any:
        state = dict(variables)

        def loss(params: Any) -> Any:
            y = run({**state, "params": params}, inputs)
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(y)), y

        return jax.grad(loss, has_aux=True)(state.pop("params", {}))

    batch = {"Conv, no batch": P(), "SimpleCell": P(None, "data")}.get(name, P("data"))
    variables = (jax.jit(made) if runs else functools.partial(jax.eval_shape, made))(case.inputs)
    expected = jax.jit(run)(variables, case.inputs) if runs else None
    with jax.set_mesh(mesh):
        inputs = jax.device_put(case.inputs, batch)
        spread = split(variables, by_features, mesh)
        gradient, y = jax.eval_shape(with_gradient, spread, inputs)
        jax.eval_shape(made, inputs)
        found = jax.jit(run)(spread, inputs) if runs else None
    assert jax.tree.leaves(y)[-1].sharding.spec == case.out
    params = spread.get("params", {})
    for leaf, like in zip(jax.tree.leaves(gradient), jax.tree.leaves(params), strict=True):
        assert full(leaf.sharding.spec, leaf) == full(by_features(like), like)
    close(found, expected)


ASKED = {
    "Dense": (nn.Dense, (8,), x(4, 8), P("data")),
    "DenseGeneral": (nn.DenseGeneral, ((8,),), x(4, 8), P("data")),
    "Einsum": (nn.Einsum, ((8, 8), "ab,bc->ac"), x(4, 8), P("data")),
    "Embed": (nn.Embed, (16, 8), jnp.arange(4), P(None, "data")),
    "Conv": (nn.Conv, (8, (3,)), x(2, 2, 4, 8), P("data", None, None, "model")),
    "ConvTranspose": (nn.ConvTranspose, (8, (3,)), x(4, 4, 8), P(None, None, "data")),
    "attention": (nn.MultiHeadAttention, (4,), x(4, 4, 8), P("data", "model")),
    "RNN": (lambda cell, **o: nn.RNN(cell(8), **o), (nn.GRUCell,), x(4, 3, 8), OUT),
}


@pytest.mark.parametrize("name", ASKED)
def test_an_output_lies_as_it_is_asked_to(name: str, mesh: jax.sharding.Mesh) -> None:
    make, arguments, inputs, out = ASKED[name]
    plain, asks = make(*arguments), make(*arguments, out_sharding=out)
    variables = jax.eval_shape(plain.init, KEY, inputs)

    # Split along what is contracted, as the second of two maps is: JAX knows two answers then.
    def by_inputs(leaf: Any) -> P:
        several = leaf.ndim > 1 and "RNN" not in name
        return P(*[None] * (leaf.ndim - 2 if "Conv" in name else 0), "model") if several else P()

    # On one device nothing is asked for.
    assert str(jax.make_jaxpr(asks.apply)(variables, inputs)) == str(
        jax.make_jaxpr(plain.apply)(variables, inputs)
    )
    with jax.set_mesh(mesh):
        spread = split(variables, by_inputs, mesh)
        batch = inputs if name in ("Embed", "ConvTranspose") else jax.device_put(inputs, P("data"))
        y = jax.eval_shape(asks.apply, spread, batch)
        jax.eval_shape(jax.grad(lambda v: jnp.sum(asks.apply(v, batch))), spread)
    assert full(y.sharding.spec, y) == full(out, y)


def test_logical_names_and_automatic_axes(mesh: jax.sharding.Mesh) -> None:
    layer = nn.Dense(8, out_sharding=("batch", "width"))
    inputs = x(4, 8)
    variables = layer.init(KEY, inputs)
    rules = (("batch", "data"), ("width", "model"))
    auto = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    for chosen in (mesh, auto):
        with jax.set_mesh(chosen):
            plain = jax.jit(layer.apply)(variables, inputs)
            with nn.logical_axis_rules(rules):
                y = jax.jit(layer.apply)(variables, inputs)
        assert not any(plain.sharding.spec) and tuple(y.sharding.spec) == ("data", "model")
        close(y, plain)
    place = NamedSharding(mesh, P(None, "model"))
    with jax.set_mesh(mesh):
        y = nn.Dense(8, out_sharding=place).apply(variables, inputs)
    assert y.sharding.spec == place.spec


class Block(nn.Module):
    """A layer whose output lies as its kernel does, so not as its input."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(8)(x)


class InScan(Block):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dense(8)(x), None


class InWhile(nn.Module):
    def setup(self):
        self.layer = nn.Dense(8)

    def __call__(self, x):
        if self.is_initializing():
            return self.layer(x)
        return nn.while_loop(lambda m, x: x.sum() < 9, lambda m, x: m.layer(x), self, x)


class Carried(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        kept = self.variable("state", "sum", jnp.zeros, x.shape)
        if not self.is_initializing():
            kept.value = kept.value + x
        return x, None


SPLIT: dict[str, Any] = {"split_rngs": {"params": True}, "length": 2}
CHANGES = {
    "scan": (nn.scan(InScan, variable_axes={"params": 0}, **SPLIT), "scan of InScan: carry"),
    "while_loop": (InWhile, "while_loop of .*: carry"),
    "Stack": (lambda: nn.Stack(Block(), depth=2), "Block.*: carry"),
    "remat_scan": (nn.remat_scan(Block, lengths=(2, 2)), "scan of Block: carry"),
    "variable": (nn.scan(Carried, variable_carry="state", length=2), "variable state/sum"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_carry_that_changes_its_sharding_is_a_carry_that_changes(
    name: str, mesh: jax.sharding.Mesh
) -> None:
    make, text = CHANGES[name]
    inputs = x(4, 8)
    variables = jax.eval_shape(make().init, KEY, inputs)
    with (
        jax.set_mesh(mesh),
        pytest.raises(
            nn.errors.CarryError,
            match=rf"^module .*{text}.* changes its sharding.*\n"
            r"found: float32\[4,8\] split as P\('data', .*\) comes out of the body\n"
            r"expected: float32\[4,8\] split as P\(.*\), as it went in; give the layer(?s:.*)LX102",
        ),
    ):
        spread = split(
            variables,
            lambda leaf: P() if name == "variable" else P(*[None] * (leaf.ndim - 1), "model"),
            mesh,
        )
        jax.eval_shape(
            functools.partial(make().apply, mutable=["state"]),
            spread,
            jax.device_put(inputs, P("data")),
        )


def test_a_wrong_axis_is_told(mesh: jax.sharding.Mesh) -> None:
    layer = nn.Dense(8, out_sharding=P("rows"))
    with (
        jax.set_mesh(mesh),
        pytest.raises(PartitioningMismatchError, match="'rows'.* is not an axis of the mesh"),
    ):
        layer.init_with_output(KEY, x(4, 8))
