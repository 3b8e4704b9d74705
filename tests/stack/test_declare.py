"""What a stack is declared as: names, templates, arguments, outputs, single layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stack.blocks import (
    KEY,
    RNGS,
    Counts,
    Residual,
    Scale,
    Uses,
    Wide,
    WithOutputs,
    X,
    as_stacked,
    equal,
    same,
)

import liftax as nn
from liftax.errors import BodyReturnError, CarryError, StackError

pytestmark = pytest.mark.usefixtures("compiled_quickly")


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def made(module, *args, **kwargs):
    """The shapes of a module's variables; nothing is computed."""
    return jax.eval_shape(lambda key: module.init(key, *args, **kwargs), KEY)


# --- names ------------------------------------------------------------------------------


def test_one_block():
    variables = made(nn.Stack(nn.Dense(4), depth=3), X)
    assert shapes(variables) == {"params": {"block_0": {"bias": (3, 4), "kernel": (3, 4, 4)}}}


def test_pattern_with_ends():
    stack = nn.Stack(
        [Scale()] * 2 + [nn.Dense(4)], repeats=2, before=[nn.Dense(4)], after=[Scale()]
    )
    dense = {"bias": (4,), "kernel": (4, 4)}
    assert len(stack) == 8
    assert shapes(made(stack, X)["params"]) == {
        "before_0": dense,
        "block_0": {"gain": (2, 1)},
        "block_1": {"gain": (2, 1)},
        "block_2": {"bias": (2, 4), "kernel": (2, 4, 4)},
        "after_0": {"gain": (1,)},
    }
    by_layer = made(stack.clone(store="layers"), X)["params"]
    assert sorted(by_layer) == [f"layers_{i}" for i in range(8)]
    assert shapes(by_layer["layers_0"]) == shapes(by_layer["layers_3"]) == dense
    assert shapes(by_layer["layers_7"]) == {"gain": (1,)}


def test_one_instance_at_many_places_is_many_layers():
    stack = nn.Stack([Scale()] * 2, repeats=2)
    params = stack.init(KEY, X)["params"]
    gains = np.concatenate([params["block_0"]["gain"], params["block_1"]["gain"]])
    assert len(np.unique(gains)) == 4


def test_depth_counts_layers_of_the_pattern():
    assert len(nn.Stack([Scale(), Wide()], depth=6)) == 6
    assert nn.Stack([Scale(), Wide()], depth=6).repeats == 3


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_param_axis(axis):
    stack = nn.Stack(nn.Dense(4, use_bias=False), depth=3, param_axis=axis)
    variables = stack.init(KEY, X)
    kernel = variables["params"]["block_0"]["kernel"]
    plain = nn.Stack(nn.Dense(4, use_bias=False), depth=3)
    straight = plain.init(KEY, X)
    equal(jnp.moveaxis(kernel, axis, 0), straight["params"]["block_0"]["kernel"])
    same(stack.apply(variables, X), plain.apply(straight, X))
    by_layer = stack.clone(store="layers").init(KEY, X)
    equal(as_stacked(stack.clone(store="layers"), by_layer), variables)


def test_axes_of_other_collections():
    class Stat(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("stats", "a", jnp.ones, (5,))
            self.variable("more", "b", jnp.ones, (5,))
            return nn.Dense(4)(x)

    stack = nn.Stack(Stat(), depth=3, variable_axes={"stats": 1, True: -1})
    variables = made(stack, X)
    assert variables["stats"]["block_0"]["a"].shape == (5, 3)
    assert variables["more"]["block_0"]["b"].shape == (5, 3)
    assert stack.layout().axis_of("stats") == 1


def test_in_a_compact_method_layers_leave_no_trace():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Stack([Residual(), Residual()], repeats=2, after=[Residual()])(x)
            x = Residual()(x)
            return nn.Stack(Residual(), depth=2, name="decoder")(x)

    assert sorted(made(Model(), X)["params"]) == ["Residual_0", "Stack_0", "decoder"]


def test_in_setup_and_as_a_field():
    class Model(nn.Module):
        first: nn.Module

        def setup(self):
            self.second = nn.Stack([Residual(), Wide()], repeats=2)

        def __call__(self, x):
            return self.second(self.first(x))

    params = made(Model(nn.Stack(Scale(), depth=2)), X)["params"]
    assert sorted(params) == ["first", "second"]
    assert sorted(params["second"]) == ["block_0", "block_1"]


def test_called_twice_uses_its_layers_twice():
    class Model(nn.Module):
        run: str = "scan"
        store: str = "stacked"

        def setup(self):
            self.stack = nn.Stack(nn.Dense(4), depth=3, run=self.run, store=self.store)

        def __call__(self, x):
            return self.stack(self.stack(x))

    variables = Model().init(KEY, X)
    assert variables["params"]["stack"]["block_0"]["kernel"].shape == (3, 4, 4)
    same(Model("loop").apply(variables, X), Model().apply(variables, X))
    by_layer = Model("loop", "layers").init(KEY, X)
    same(Model("scan", "layers").apply(by_layer, X), Model().apply(variables, X))


# --- arguments and outputs --------------------------------------------------------------


def outputs_by_hand(stack, variables, x, rates, scale):
    ys = []
    bound = stack.bind(variables)
    for i in range(len(stack)):
        x, y = bound[i](x, rates[i], scale, index=jnp.asarray(i))
        ys.append(y)
    return x, jax.tree.map(lambda *parts: jnp.stack(parts), *ys)


@pytest.mark.parametrize("run", ["scan", "loop", "scan of 2"])
def test_arguments_by_layer_and_outputs_in_order(run):
    stack = nn.Stack(
        [WithOutputs()] * 2,
        repeats=3,
        before=[WithOutputs()],
        after=[WithOutputs()] * 2,
        outputs=True,
        per_layer=("rate", "index"),
        run=run,
    )
    rates = jnp.linspace(0.1, 0.9, 9)
    variables = stack.init(KEY, X, rates, index=jnp.arange(9))
    x, ys = jax.jit(stack.apply)(variables, X, rates, 2.0, index=jnp.arange(9))
    np.testing.assert_array_equal(ys["index"], np.arange(9))
    same((x, ys), outputs_by_hand(stack, variables, X, rates, 2.0))


def test_outputs_of_different_shapes_come_by_position():
    stack = nn.Stack(
        [WithOutputs(), WithOutputs(extra=2)],
        repeats=3,
        before=[WithOutputs()],
        outputs="positions",
        per_layer=["rate"],
    )
    rates = nn.ByPosition((jnp.ones(()),), (jnp.arange(3.0), jnp.arange(3.0) + 3))
    (_, ys), variables = stack.init_with_output(KEY, X, rates)
    assert [part["h"].shape for part in ys.block] == [(3, 3), (3, 5)]
    assert ys.before[0]["h"].shape == (3,)
    assert ys.after == ()
    in_order = jnp.asarray([1.0, 0, 3, 1, 4, 2, 5])
    same(stack.apply(variables, X, in_order)[0], stack.apply(variables, X, rates)[0])
    with pytest.raises(StackError, match='outputs="positions"'):
        stack.clone(outputs=True).apply(variables, X, rates)


def test_an_argument_by_layer_may_be_left_out_or_none():
    stack = nn.Stack(WithOutputs(), depth=2, outputs=True, per_layer=("rate", "index"))
    variables = stack.init(KEY, X, jnp.ones(2))
    _, ys = stack.apply(variables, X, jnp.ones(2), index=None)
    assert ys["index"] is None


def test_static_arguments_reach_the_layers_as_they_are():
    class Picky(nn.Module):
        @nn.compact
        def __call__(self, x, mode, *, train):
            assert mode == "up"
            assert train is True
            return nn.Dense(4)(x)

    for run in ("scan", "loop"):
        for remat in (None, nn.Remat(), nn.Remat(positions=0)):
            stack = nn.Stack(Picky(), depth=2, after=[Picky()], run=run, remat=remat)
            jax.eval_shape(lambda x, s=stack: s.init(KEY, x, "up", train=True), X)


def test_a_pytree_goes_through():
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return {"a": nn.Dense(4)(x["a"]) + x["b"], "b": x["b"] * 2}

    x = {"a": X, "b": jnp.ones(4)}
    y, _ = nn.Stack(Pair(), depth=3).init_with_output(KEY, x)
    np.testing.assert_array_equal(y["b"], np.full(4, 8.0))


def test_ends_may_change_the_shape():
    stack = nn.Stack(Residual(), depth=2, before=[nn.Embed(7, 4)], after=[nn.Dense(3)])
    y, variables = stack.init_with_output(KEY, jnp.asarray([1, 2]))
    assert y.shape == (2, 3)
    same(stack.clone(remat=nn.Remat()).apply(variables, jnp.asarray([1, 2])), y)


# --- one layer --------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["stacked", "layers"])
def test_layers_one_by_one(store):
    stack = nn.Stack(
        [Residual(0.5), Scale()], repeats=2, before=[Wide()], after=[Scale()], store=store
    )
    variables = stack.init(RNGS, X)
    bound = stack.bind(variables, rngs=RNGS)
    x = X
    for layer in bound:
        x = layer(x)
    same(x, stack.apply(variables, X, rngs=RNGS))
    module, own = bound[-2].unbind()
    assert isinstance(module, Scale)
    assert own["params"]["gain"].shape == (1,)
    assert [type(layer) for layer in bound[-2:]] == [type(bound[4]), type(bound[5])]
    with pytest.raises(IndexError, match="no layer 6; there are 6 layers"):
        bound[6]
    with pytest.raises(TypeError, match="takes a layer's number; found 'a'"):
        bound["a"]
    assert isinstance(stack[1], Residual)
    assert stack[1].scope is None


# --- what is refused --------------------------------------------------------------------


class Holder(nn.Module):
    """Hands a layer that is bound elsewhere to a stack."""

    shared: bool = False

    def setup(self):
        self.inner = nn.Dense(4)
        given = [self.inner] if self.shared else []
        self.stack = nn.Stack(Uses(self.inner), depth=2, shared=given)

    def __call__(self, x):
        return self.stack(self.inner(x))


class InPlace(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Stack(nn.Sequential([nn.Dense(4)]), depth=2)(x)


class UsedBefore(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = Residual()
        x = layer(x)
        return nn.Stack(layer, depth=2)(x)


class UsedAfter(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = Residual()
        x = nn.Stack(layer, depth=2)(x)
        return layer(x)


class HandsItself(nn.Module):
    @nn.compact
    def __call__(self, x):
        class Calls(nn.Module):
            @nn.compact
            def __call__(self, x, other):
                return nn.Dense(4)(x)

        return nn.Stack(Calls(), depth=2)(x, self)


REFUSED = {
    "no depth": (lambda: nn.Stack(Scale()), "say how deep"),
    "no layers": (lambda: nn.Stack([], depth=2), "empty list"),
    "negative": (lambda: nn.Stack(Scale(), depth=-1), "0 or more; found -1"),
    "a bool": (lambda: nn.Stack(Scale(), depth=True), "0 or more; found True"),
    "remainder": (lambda: nn.Stack([Scale(), Wide()], depth=5), "give the\nremainder|remainder as"),
    "contradiction": (lambda: nn.Stack(Scale(), depth=2, repeats=3), "contradict each other"),
    "a class": (lambda: nn.Stack(Scale, depth=2), r"the class Scale; make an instance"),
    "a class within": (lambda: nn.Stack([Scale], depth=2), r"make an instance of it: Scale"),
    "a function": (lambda: nn.Stack(jnp.sin, depth=2), "expected a module or a list"),
    "outputs": (lambda: nn.Stack(Scale(), depth=2, outputs="all"), "outputs expected"),
    "store": (lambda: nn.Stack(Scale(), depth=2, store="flat"), "'stacked' or 'layers'"),
    "params axis": (
        lambda: nn.Stack(Scale(), depth=2, variable_axes={"params": 1}),
        "given by param_axis",
    ),
    "frozen": (lambda: nn.Stack(Scale(), depth=2, frozen=[2]), "frozen has layer 2"),
    "frozen by a word": (lambda: nn.Stack(Scale(), depth=2, frozen="all"), "found 'all'"),
    "frozen by one number": (
        lambda: nn.Stack(Scale(), depth=2, frozen=1),
        r"e.g. \[0, 1\]; found 1",
    ),
    "a number for run": (lambda: nn.Stack(Scale(), depth=2, run=4), "run expected 'scan'.*found 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case):
    make, message = REFUSED[case]
    with pytest.raises(StackError, match=message):
        make()


def test_freezing_a_part_of_what_is_tied_is_refused():
    tied = nn.Stack(Scale(), depth=2, variable_broadcast="params")
    variables = tied.init(KEY, X)
    with pytest.raises(StackError, match="share their parameters"):
        tied.clone(frozen=[0]).apply(variables, X)
    grads = jax.grad(lambda v: tied.clone(frozen=True).apply(v, X).sum())(variables)
    assert not np.any(grads["params"]["block_0"]["gain"])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Holder(), "shared=.* with that module"),
        (InPlace(), "parent=None"),
        (UsedBefore(), "used outside the stack"),
        (HandsItself(), "contains the stack"),
    ],
)
def test_modules_that_belong_elsewhere(model, message):
    with pytest.raises(StackError, match=message):
        model.init(KEY, X)


def test_a_template_is_no_layer_by_itself():
    with pytest.raises(nn.errors.CallCompactUnboundModuleError, match="unbound"):
        UsedAfter().init(KEY, X)


@pytest.mark.parametrize("run", ["scan", "loop"])
def test_layers_that_do_not_fit(run):
    with pytest.raises(CarryError, match="set its features to 4"):
        nn.Stack(nn.Dense(5), depth=2, run=run).init(KEY, X)
    with pytest.raises(BodyReturnError, match=r"each layer returns a pair \(x, ys\)"):
        nn.Stack(nn.Dense(4), depth=2, run=run, outputs=True).init(KEY, X)
    with pytest.raises(BodyReturnError, match="from Dense"):
        nn.Stack(
            WithOutputs(), depth=2, run=run, outputs=True, before=[nn.Dense(4)], per_layer="rate"
        ).init(KEY, X)


def test_arguments_that_do_not_fit():
    stack = nn.Stack(WithOutputs(), depth=3, outputs=True, per_layer="rate")
    with pytest.raises(StackError, match=r"float32\[4\]\nexpected: .* size 3, for 3 layers"):
        stack.init(KEY, X, jnp.ones(4))
    with pytest.raises(StackError, match=r"int32\[\]\n|float32\[\]\n|float"):
        stack.init(KEY, X, 0.5)
    with pytest.raises(StackError, match="names 'rat', which is no argument"):
        stack.clone(per_layer=("rat",)).init(KEY, X, jnp.ones(3))
    with pytest.raises(StackError, match="names 'x', which is no argument"):
        stack.clone(per_layer=("x",)).init(KEY, X, jnp.ones(3))
    with pytest.raises(StackError, match=r"ByPosition has \(1, 1, 0\) entries"):
        stack.init(KEY, X, nn.ByPosition((1.0,), (jnp.ones(3),)))
    with pytest.raises(StackError, match="3 repeats"):
        stack.init(KEY, X, nn.ByPosition((), (jnp.ones(2),)))


class Pair(nn.Module):
    def __call__(self, x, _=None):
        return x, None


def test_pairs_that_nobody_asked_for():
    """The bodies of a scan by hand return pairs; a layer of a stack does where it has outputs."""
    with pytest.raises(StackError, match=r"Pair returns a pair(.|\n)*outputs=True"):
        nn.Stack(Pair(), depth=2).init(KEY, X)
    y, nothing = nn.Stack(Pair(), depth=2, outputs=True).apply({}, X)
    assert nothing is None
    same(y, X)


def test_variables_of_another_depth():
    variables = nn.Stack(Scale(), depth=3).init(KEY, X)
    with pytest.raises(
        nn.errors.StackError, match="3 along axis 0\nexpected: 4 layers, by depth=4"
    ):
        nn.Stack(Scale(), depth=4).apply(variables, X)
    by_layer = nn.Stack(Scale(), depth=3, store="layers").init(KEY, X)
    with pytest.raises(StackError, match="layers_2, the last of 3 layers"):
        nn.Stack(Scale(), depth=4, store="layers").apply(by_layer, X)


# --- ties -------------------------------------------------------------------------------


def test_shared_with_the_model_around():
    variables = Holder(shared=True).init(KEY, X)
    assert shapes(variables["params"]) == {
        "inner": {"bias": (4,), "kernel": (4, 4)},
        "stack": {"block_0": {"Dense_0": {"bias": (2, 4), "kernel": (2, 4, 4)}}},
    }
    grads = jax.grad(lambda v: Holder(shared=True).apply(v, X).sum())(variables)
    assert np.any(grads["params"]["inner"]["kernel"])


def test_shared_by_the_layers_alone():
    inner = nn.Dense(4)
    stack = nn.Stack([Uses(inner), Scale(), inner], repeats=2, before=[Uses(inner)], shared=[inner])
    params = made(stack, X)["params"]
    assert sorted(params) == ["before_0", "block_0", "block_1", "shared_0"]
    assert params["shared_0"]["kernel"].shape == (4, 4)


def test_tied_layers_count_once():
    stack = nn.Stack([Residual(), Scale()], repeats=4, variable_broadcast="params")
    params = made(stack, X)["params"]
    assert params["block_0"]["Dense_0"]["kernel"].shape == (4, 4)


def test_carried_state():
    stack = nn.Stack(Counts(), depth=4, variable_carry="count")
    variables = stack.init(KEY, X)
    assert int(variables["count"]["block_0"]["n"]) == 4
