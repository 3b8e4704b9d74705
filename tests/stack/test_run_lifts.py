"""Stacks and lifts: a stack inside a stack, under every lift, and what a layout says of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stack.blocks import (
    KEY,
    RNGS,
    Residual,
    Scale,
    Uses,
    Wide,
    X,
    dense,
    equal,
    loss_and_grads,
    same,
)

import liftax as nn
from liftax.stack.storage import by_layers, stacked

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}


class Inside(nn.Module):
    """A model that lifts a function of its stack."""

    run: str = "scan"
    store: str = "stacked"
    lift: str = "jit"

    def setup(self):
        self.stack = nn.Stack(
            [Scale(), Residual()], repeats=3, run=self.run, store=self.store, after=[Scale()]
        )

    def __call__(self, x):
        return LIFTS[self.lift](self.stack, x)


def twice(mdl, x):
    return mdl(mdl(x))


def scanned(mdl, x):
    def body(mdl, x, _):
        return mdl(x), None

    lift = nn.scan(body, variable_broadcast="params", split_rngs={"params": False}, length=2)
    return lift(mdl, x, None)[0]


def while_loop(mdl, x):
    if mdl.is_initializing():
        return mdl(x)

    def below(mdl, c):
        return c[0] < 2

    def step(mdl, c):
        return c[0] + 1, mdl(c[1])

    return nn.while_loop(below, step, mdl, (0, x))[1]


def gradient(mdl, x):
    return nn.grad(lambda mdl, x: mdl(x).sum(), mdl, x)[0]


def pullback(mdl, x):
    y, vjp = nn.vjp(lambda mdl, x: mdl(x), mdl, x)
    return vjp(jnp.ones_like(y))[1]


def pushforward(mdl, x):
    return nn.jvp(lambda mdl, x: mdl(x), mdl, (x,), (x,), {})[1]


def custom(mdl, x):
    def forward(mdl, x):
        return nn.vjp(lambda mdl, x: mdl(x), mdl, x)

    def backward(vjp, y_bar):
        return vjp(y_bar)

    return nn.custom_vjp(lambda mdl, x: mdl(x), forward, backward)(mdl, x)


LIFTS = {
    "none": lambda mdl, x: mdl(x),
    "jit": lambda mdl, x: nn.jit(twice)(mdl, x),
    "remat": lambda mdl, x: nn.remat(twice)(mdl, x),
    "scan": scanned,
    "while_loop": while_loop,
    "cond": lambda mdl, x: nn.cond(x.sum() < 1e9, twice, lambda mdl, x: x, mdl, x),
    "switch": lambda mdl, x: nn.switch(1, [lambda mdl, x: x, twice], mdl, x),
    "grad": gradient,
    "vjp": pullback,
    "jvp": pushforward,
    "custom_vjp": custom,
    "vmap": lambda mdl, x: nn.vmap(
        lambda mdl, x: mdl(x), variable_axes={"params": None}, split_rngs={"params": False}
    )(mdl, x),
    "map_variables": lambda mdl, x: (
        nn.map_variables(twice, "params", lambda v: jax.tree.map(jnp.negative, v), init=False)(
            mdl, x
        )
        if not mdl.is_initializing()
        else mdl(x)
    ),
}


@pytest.mark.parametrize("lift", LIFTS)
def test_under_every_lift(lift):
    """The stack inside makes the same variables and results, however it runs."""
    _, variables = Inside(lift=lift).init_with_output(KEYS, X)
    expected = Inside(lift=lift).apply(variables, X)
    assert variables["params"]["stack"]["block_0"]["gain"].shape == (3, 1)
    written_out = Inside("loop", lift=lift)
    equal(written_out.init_with_output(KEYS, X)[1], variables)
    same(written_out.apply(variables, X), expected, rtol=1e-4)
    by_layer = Inside("loop", "layers", lift=lift)
    _, mine = by_layer.init_with_output(KEYS, X)
    same(by_layer.apply(mine, X), expected, rtol=1e-4)


class Drops(nn.Module):
    """A scan over a stack that makes parameters and draws keys in each iteration."""

    run: str = "scan"
    broadcast: bool = False

    @nn.compact
    def __call__(self, x):
        stack = nn.Stack(Residual(0.5, parent=None), depth=3, run=self.run)
        roles = {"variable_axes": {"params": 0}}
        if self.broadcast:
            roles = {"variable_broadcast": "params"}
        split = {"params": not self.broadcast, "dropout": True}
        scan = nn.scan(lambda m, x, _: (m(x), None), split_rngs=split, length=2, **roles)
        return scan(stack, x, None)[0]


@pytest.mark.parametrize(("run", "broadcast"), [("loop", False), ("scan of 2", True)])
def test_keys_in_a_scan_over_a_stack(run, broadcast):
    """A loop that calls its layer more than once draws the same numbers in every call."""
    y, variables = Drops("scan", broadcast).init_with_output(RNGS, X)
    z, made = Drops(run, broadcast).init_with_output(RNGS, X)
    equal(made, variables)
    same(z, y)


@pytest.mark.parametrize("lift", ["jit", "remat"])
def test_the_class_lifted(lift):
    Lifted = getattr(nn, lift)(nn.Stack)
    plain = nn.Stack(dense(4), depth=3)
    variables = plain.init(KEY, X)
    for run in ("scan", "loop"):
        same(Lifted(dense(4), depth=3, run=run).apply(variables, X), plain.apply(variables, X))


def test_an_ensemble_of_stacks():
    Ensemble = nn.vmap(
        nn.Stack,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )
    plain = Ensemble([dense(4), Scale()], repeats=2)
    y, variables = plain.init_with_output(KEY, X)
    assert y.shape == (3, *X.shape)
    assert variables["params"]["block_0"]["kernel"].shape == (3, 2, 4, 4)
    for options in ({"run": "loop"}, {"store": "layers", "run": "loop"}):
        other = plain.clone(**options)
        z, mine = other.init_with_output(KEY, X)
        same(z, y)
        if other.store == "layers":
            assert mine["params"]["layers_3"]["gain"].shape == (3, 1)
    one = jax.tree.map(lambda v: v[1], variables)
    same(nn.Stack([dense(4), Scale()], repeats=2).apply(one, X), y[1])


def nested(run="scan", inner="scan", store="stacked", inner_store="stacked"):
    layers = nn.Stack([Scale(), dense(4)], repeats=2, run=inner, store=inner_store)
    return nn.Stack([layers, Residual()], repeats=3, after=[layers], run=run, store=store)


def test_a_stack_in_a_stack():
    plain = nested()
    y, variables = plain.init_with_output(KEY, X)
    assert variables["params"]["block_0"]["block_1"]["kernel"].shape == (3, 2, 4, 4)
    assert variables["params"]["after_0"]["block_1"]["kernel"].shape == (2, 4, 4)
    for run, inner in (("loop", "scan"), ("scan", "loop"), ("loop", "loop")):
        other = nested(run, inner)
        equal(other.init_with_output(KEY, X)[1], variables)
        same(other.apply(variables, X), y)
    by_layer = nested("loop", "loop", "layers", "layers")
    z, mine = by_layer.init_with_output(KEY, X)
    same(z, y)
    assert sorted(mine["params"]) == [f"layers_{i}" for i in range(7)]
    assert sorted(mine["params"]["layers_4"]) == [f"layers_{i}" for i in range(4)]
    grads = loss_and_grads(plain, variables, X)[1]
    slopes = stacked(loss_and_grads(by_layer, mine, X)[1], by_layer.layout())
    inner = nested(inner_store="layers").before + nested(inner_store="layers").block
    part = slopes["params"]["after_0"]
    same(stacked({"params": part}, inner[0].layout())["params"], grads["params"]["after_0"], 1e-4)


def test_a_stack_that_layers_share():
    inner = nn.Stack(Scale(), depth=2, store="layers")
    stack = nn.Stack(Uses(inner), depth=3, shared=[inner])
    y, variables = stack.init_with_output(KEY, X)
    assert variables["params"]["shared_0"]["layers_1"]["gain"].shape == (1,)
    same(stack.clone(run="loop").apply(variables, X), y)
    by_layer = stack.clone(run="loop", store="layers")
    z, mine = by_layer.init_with_output(KEY, X)
    assert sorted(mine["params"]) == ["layers_0", "layers_1", "layers_2", "shared_0"]
    same(z, y)


# --- where things lie ---------------------------------------------------------------------


def test_places():
    at = nn.Stack([Scale()] * 2, repeats=3, before=[Scale()], after=[Scale()]).layout(("a", "b"))
    assert len(at) == at.layers == 8
    assert [at.place(i) for i in range(8)] == [
        ("before_0", None),
        ("block_0", 0),
        ("block_1", 0),
        ("block_0", 1),
        ("block_1", 1),
        ("block_0", 2),
        ("block_1", 2),
        ("after_0", None),
    ]
    assert at.place(-1) == ("after_0", None)
    assert at.layer_name(-1) == "layers_7"
    assert at.numbers(1) == [2, 4, 6]
    with pytest.raises(IndexError, match="layer 8 of a stack of 8"):
        at.place(8)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("outer", [0, 1, -1])
def test_axes_in_the_whole_model(axis, outer):
    """The axis that a layout names has the size of the repeats, wherever the lifts put theirs."""
    Ensemble = nn.vmap(
        nn.Stack,
        variable_axes={"params": outer},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=7,
    )
    inner = nn.Stack(dense(4), depth=3, param_axis=axis)
    model = Ensemble(inner, depth=5, param_axis=axis)
    shape = jax.eval_shape(lambda: model.init(KEY, X))["params"]["block_0"]["block_0"]["kernel"]
    whole, within = nn.stack_layouts(model, KEY, X)
    assert (whole.path, within.path) == ((), ("block_0",))
    assert [lift.kind for lift in within.enclosing] == ["vmap", "stack"]
    assert within.enclosing[1].stack == ()
    assert shape.shape[within.full_axis("params", 5)] == 3
    assert whole.full_axis("params", 3) is not None
    assert sorted(shape.shape) == [3, 4, 4, 5, 7]


def test_layouts_of_a_model():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Stack(Wide(), depth=2, name="encoder", store="layers", run="loop")(x)
            return nn.Stack([Scale()] * 2, repeats=2, variable_broadcast="params")(x)

    x = jax.ShapeDtypeStruct(X.shape, X.dtype)
    first, second = nn.stack_layouts(Model(), KEY, x)
    assert (first.path, first.store, first.axis_of("params")) == (("encoder",), "layers", 0)
    assert (second.path, second.store, second.axis_of("params")) == (("Stack_0",), "stacked", None)
    assert second.full_axis("params", 2) is None


def test_there_and_back():
    stack = nn.Stack([Scale(), Wide()], repeats=3, before=[Scale()], param_axis=-1)
    variables = stack.init(KEY, X)
    apart = by_layers(variables, stack.layout())
    equal(stacked(apart, stack.layout()), variables)
    assert np.shape(apart["params"]["layers_2"]["up"]["kernel"]) == (4, 6)


def test_the_layout_names_the_axis():
    stack = nn.Stack([Wide(), Scale()], repeats=3, metadata_params={nn.PARTITION_NAME: "layers"})
    table = nn.layout(stack, KEY, X)
    kernel = table["params/block_0/up/kernel"]
    assert [(a.label, a.size) for a in kernel.axes] == [("layers", 3), ("in", 4), ("out", 6)]
    assert [lift.title for lift in table.lifts] == ["stack × 3 over Wide + Scale"]
    assert not table.findings
    plain = nn.layout(stack.clone(store="layers", run="loop"), KEY, X)
    assert plain["params/layers_4/up/kernel"].shape == (4, 6)
    assert not plain["params/layers_4/up/kernel"].along


def test_the_layout_of_what_is_shared():
    inner = nn.Dense(4)
    table = nn.layout(nn.Stack(Uses(inner), depth=3, shared=[inner]), KEY, X)
    assert [a.label for a in table["params/shared_0/kernel"].axes] == ["in", "out"]
    assert [a.role for a in table["params/shared_0/kernel"].along] == ["shared"]
