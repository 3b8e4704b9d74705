"""States of optimizers: what is like the parameters is converted with them, the rest is refused.

Sizes collide on purpose: the depth is that of a memory, of the features, and 1.
"""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import liftax as nn
from liftax.checkpoint.tensors import flat, to_plain
from liftax.errors import StackingError

DEPTHS = [1, 3, 4]


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(x.shape[-1])(x)


class Model(nn.Module):
    depth: int
    store: str = "stacked"

    @nn.compact
    def __call__(self, x):
        x = nn.Stack(Layer(), depth=self.depth, store=self.store, name="blocks")(x)
        return nn.Dense(3, name="head")(x)


X = jax.ShapeDtypeStruct((2, 3), "float32")
KEY = jax.eval_shape(lambda: jax.random.key(0))
BY_LABEL = optax.partition(
    {"blocks": optax.adam(0.1), "head": optax.sgd(0.1, momentum=0.9)},
    lambda params: {name: name for name in params},
)
OPTIMIZERS = {
    **{
        name: getattr(optax, name)(0.1)
        for name in (
            "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage "
            "lamb lars lbfgs lion novograd optimistic_gradient_descent radam rmsprop rprop sgd sm3 "
            "yogi sign_sgd"
        ).split()
    },
    "polyak_sgd": optax.polyak_sgd(),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "scheduled": optax.sgd(optax.linear_schedule(0.1, 0.0, 10)),
    "injected": optax.inject_hyperparams(optax.adamw)(learning_rate=0.1),
    "memory of 3": optax.lbfgs(0.1, memory_size=3),
    "memory of 1": optax.lbfgs(0.1, memory_size=1),
    "factored": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "factored with momentum": optax.adafactor(0.1, min_dim_size_to_factor=2, momentum=0.9),
    "steps": optax.MultiSteps(optax.adam(0.1), 2),
    "chain": optax.chain(optax.clip(1.0), optax.ema(0.9), optax.adamw(0.1)),
    "by label": BY_LABEL,
    "masked": optax.masked(optax.adam(0.1), {"blocks": False, "head": True}),
    "lookahead": optax.chain(optax.trace(0.9), optax.apply_every(3)),
    "skipping": optax.apply_if_finite(optax.adam(0.1), 3),
    "muon": optax.contrib.muon(0.1),
    "prodigy": optax.contrib.prodigy(),
    "schedule free": optax.contrib.schedule_free_adamw(0.1),
    "sophia": optax.contrib.sophia(0.1),
    "ademamix": optax.contrib.ademamix(0.1),
    "cocob": optax.contrib.cocob(),
    "dadapt": optax.contrib.dadapt_adamw(0.1),
    "dog": optax.contrib.dog(),
    "plateau": optax.contrib.reduce_on_plateau(),
}
# What they keep for a parameter is not one array like it.
OTHERWISE = {
    *("adafactor", "factored", "factored with momentum"),  # rows, columns and placeholders
    *("lbfgs", "memory of 1", "memory of 3"),  # the last few, on an axis of their own
    "novograd",  # one number
    "sm3",  # one vector an axis
}
BY_RANK = {"muon"}  # chooses other parameters where arrays have an axis more


def shapes(tree):
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in flat(to_plain(tree))
            if hasattr(leaf, "shape")}  # fmt: skip


def cases(depth):
    """Everything that can tell what the parameters are: layout, tree with a state, state again."""
    params = Model(depth).init_with_output
    params = jax.eval_shape(lambda: Model(depth).init(jax.random.key(0), jnp.ones(X.shape)))
    params = params["params"]
    by_hand = nn.Stacking.of("blocks/block_0", depth, names="/blocks/layers_{}")
    traced = nn.stackings_of(Model(depth), KEY, X)
    return params, {
        "a traced model": (traced, lambda state, params: state),
        "nn.layout": (nn.layout(Model(depth), KEY, X), lambda state, params: state),
        "another storage": (
            nn.stackings_of(Model(depth, "layers"), KEY, X),
            lambda state, params: state,
        ),
        "parameters beside it": (
            by_hand,
            lambda state, params: {"opt_state": state, "params": params},
        ),
        "variables beside it": (by_hand, lambda state, params: ({"params": params}, state)),
        "a plain tree": (
            by_hand,
            lambda state, params: to_plain({"params": params, "opt_state": state}),
        ),
        "nothing": (by_hand, lambda state, params: state),
    }


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_in_both_directions(name, depth):
    init = OPTIMIZERS[name].init
    params, ways = cases(depth)
    layers = nn.to_layers(params, ways["nothing"][0], collection="params")
    state, in_layers = jax.eval_shape(init, params), jax.eval_shape(init, layers)
    ways_back = {nn.to_layers: nn.to_stacked, nn.to_stacked: nn.to_layers}
    for way, (layout, together) in ways.items():
        for convert, given, expected in (
            (nn.to_layers, together(state, params), together(in_layers, layers)),
            (nn.to_stacked, together(in_layers, layers), together(state, params)),
        ):
            if name in BY_RANK:
                back = ways_back[convert](convert(given, layout), layout)
                assert shapes(back) == shapes(given), way
                continue
            if name not in OTHERWISE:
                assert shapes(convert(given, layout)) == shapes(expected), way
                continue
            with pytest.raises(StackingError) as error:
                convert(given, layout)
            # The leaf is named as it is in the state.
            named = re.match(r"(\S+) (is|has) ", str(error.value))
            assert named is not None and named[1] in {n for n, _ in flat(to_plain(given))}, way


@pytest.mark.parametrize("depth", [3, 4])
def test_factors_of_a_users_own(depth):
    """One square array for each axis, as the optimizers of Kronecker factors keep."""
    params, ways = cases(depth)
    factors = jax.tree.map(
        lambda p: {f"axis_{i}": np.zeros((n, n), np.float32) for i, n in enumerate(p.shape)}, params
    )
    beside = jax.tree.map(lambda p: np.zeros(p.shape[:1], np.float32), params)
    for way, (layout, together) in ways.items():
        for state in (optax.TraceState(factors), optax.TraceState(beside)):
            if way != "nothing":
                with pytest.raises(StackingError, match="trace/blocks/block_0/Dense_0/"):
                    nn.to_layers(together(state, params), layout)
    layout = ways["nothing"][0]
    with pytest.raises(StackingError, match="only one of them can be like the parameter"):
        nn.to_layers((optax.EmaState(0, params), optax.TraceState(beside)), layout)


def test_a_state_of_other_parameters():
    """Another collection's state is converted like that collection."""
    layout = nn.Stacking.of("blocks", 2)
    params = {"blocks": {"kernel": np.zeros((2, 3, 3))}}
    lora = {"blocks": {"a": np.zeros((2, 3, 1)), "b": np.zeros((2, 1, 3))}}
    tree = {"params": params, "lora": lora, "opt_state": optax.adam(0.1).init(lora)}
    layers = nn.to_layers(tree, layout)
    assert layers["opt_state"][0].mu["blocks"]["layers_1"]["a"].shape == (3, 1)
    lost = {"params": params, "opt_state": optax.adam(0.1).init(lora)}
    with pytest.raises(StackingError, match=r"mu/blocks/a is .* belongs to no parameter"):
        nn.to_layers(lost, layout)


def test_two_models_of_one_layout():
    layout = nn.Stacking.of("blocks", 2)

    def train(width):
        params = {"blocks": {"w": np.zeros((2, width))}}
        return {"params": params, "opt_state": optax.adam(0.1).init(params)}

    layers = nn.to_layers({"one": train(3), "other": train(5)}, layout)
    assert layers["other"]["opt_state"][0].nu["blocks"]["layers_0"]["w"].shape == (5,)


@pytest.mark.parametrize(
    "state",
    [
        (),
        {},
        optax.sgd(0.1).init({"w": np.zeros(3)}),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1).init({"w": np.zeros(3)}),
        optax.scale_by_schedule(lambda count: 1.0).init({"w": np.zeros(3)}),
    ],
)
def test_a_state_without_parameters_stays(state):
    for convert in (nn.to_layers, nn.to_stacked):
        made = convert(state, nn.Stacking.of("blocks", 2))
        assert jax.tree.structure(made) == jax.tree.structure(state)


def test_what_is_donated_is_checked_first():
    params = {"blocks": {"w": jnp.zeros((3, 2))}}
    state = optax.lbfgs(0.1, memory_size=3).init(params)
    with pytest.raises(StackingError, match="memory/blocks/w is float32"):
        nn.to_layers({"params": params, "state": state}, nn.Stacking.of("blocks", 3), donate=True)
    assert not any(a.is_deleted() for a in jax.tree.leaves((params, state)))
