"""Layers taken out, put in, moved and merged, with what an optimizer keeps for them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import liftax as nn

KEY = jax.random.key(0)
X = jnp.linspace(0.0, 1.0, 4)
ROWS = jnp.arange(6.0)[:, None] + jnp.zeros(3)
LAYOUT = nn.Stacking.of("deep", 6)
PARAMS = {"deep": {"w": ROWS}, "head": {"w": jnp.ones(2)}}


def rows(tree):
    return tree["deep"]["w"][:, 0].tolist()


@pytest.mark.parametrize(
    ("change", "numbers"),
    [
        (lambda e: e.drop(3), [0, 1, 2, 4, 5]),
        (lambda e: e.drop(0, 5).drop(0), [2, 3, 4]),
        (lambda e: e.move(1, 4), [0, 2, 3, 4, 1, 5]),
        (lambda e: e.move(4, 0), [4, 0, 1, 2, 3, 5]),
        (lambda e: e.average([2, 4]), [0, 1, 3, 3, 5]),
        (lambda e: e.average([0, 1]).average([0, 1]), [1, 3, 4, 5]),
        (lambda e: e.insert(2, {"w": jnp.full(3, 9.0)}), [0, 1, 9, 2, 3, 4, 5]),
        (lambda e: e.insert(6, {"w": jnp.full(3, 9.0)}).drop(0), [1, 2, 3, 4, 5, 9]),
    ],
)
@pytest.mark.parametrize("form", ["stacked", "layers"])
def test_rows(change, numbers, form):
    given = PARAMS if form == "stacked" else nn.to_layers(PARAMS, LAYOUT)
    edit = change(nn.edit_layers({"params": given}, LAYOUT))
    made = edit.variables["params"]
    if form == "layers":
        assert len(made["deep"]) == len(numbers)
        made = nn.to_stacked(made, edit.layout)
    assert rows(made) == numbers
    assert edit.depth == len(numbers)
    assert made["head"]["w"] is PARAMS["head"]["w"]


def test_the_optimizers_state_goes_along():
    tx = optax.adam(1e-2)
    grads = jax.tree.map(lambda x: 2 * x + 1, PARAMS)
    _, state = tx.update(grads, tx.init(PARAMS), PARAMS)
    layer = {"w": jnp.full(3, 9.0)}
    edit = nn.edit_layers(PARAMS, LAYOUT).drop(1).insert(0, layer).average([3, 4])
    after = edit.of({"params": PARAMS, "opt": state})
    assert rows(after["params"]) == [9, 0, 2, 3.5, 5]
    mu = state[0].mu["deep"]["w"]
    wanted = jnp.stack([0 * mu[0], mu[0], mu[2], (mu[3] + mu[4]) / 2, mu[5]])
    np.testing.assert_allclose(after["opt"][0].mu["deep"]["w"], wanted, rtol=1e-6)
    assert after["opt"][0].count == 1
    tx.update(after["params"], after["opt"], after["params"])


def test_a_stack_of_that_depth_runs():
    stack = nn.Stack(nn.Dense(4), depth=4, before=[nn.Dense(4)], after=[nn.Dense(4)])
    variables = stack.init(KEY, X)
    edit = nn.edit_layers(variables, stack).drop(2).move(1, 2)
    shorter = stack.clone(depth=edit.depth, repeats=None)
    bound, x = stack.bind(variables), X
    for i in (0, 3, 1, 4, 5):
        x = bound[i](x)
    np.testing.assert_allclose(shorter.apply(edit.variables, X), x, rtol=1e-5)


def test_other_collections_and_dtypes():
    tree = {
        "params": {"deep": {"w": ROWS.astype(jnp.bfloat16)}},
        "stats": {"deep": {"n": jnp.arange(6)}},
    }
    made = nn.edit_layers(tree, LAYOUT).average([1, 2]).variables
    assert made["params"]["deep"]["w"].dtype == jnp.bfloat16
    assert made["stats"]["deep"]["n"].tolist() == [0, 1, 3, 4, 5]
    with pytest.raises(nn.errors.StackingError, match="the inserted layer has no stats"):
        _ = nn.edit_layers(tree, LAYOUT).insert(0, {"w": jnp.ones(3, jnp.bfloat16)}).variables


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda e: e.drop(6), "drop has layer 6; the repeated layers of deep are 0 to 5 now"),
        (lambda e: e.insert(8, {}), "insert has layer 8"),
        (lambda e: e.move(0, 6), "move has layer 6"),
        (lambda e: e.average([2]), "it takes two or more"),
        (lambda e: e.drop(*range(6)), "no layer would be left"),
        (lambda e: e.insert(0, {"w": X}).average([0, 1]), "inserted just now"),
    ],
)
def test_what_is_no_layer(change, match):
    with pytest.raises(nn.errors.StackingError, match=match):
        change(nn.edit_layers(PARAMS, LAYOUT))


def test_patterns_are_refused():
    stack = nn.Stack([nn.Dense(4), nn.Dense(4)], repeats=2)
    with pytest.raises(nn.errors.StackingError, match="2 repeated layers .*block_0, block_1"):
        nn.edit_layers({}, stack)
