"""The composed scan x vmap model: to the last bit flax.linen's, and its errors."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn
from liftax import recipes


class LinenBlock(linen.Module):
    features: int

    @linen.compact
    def __call__(self, x, _):
        return linen.relu(linen.Dense(self.features)(x)), None


def linen_model(num_layers, features):
    layers = linen.scan(
        LinenBlock, variable_axes={"params": 0}, split_rngs={"params": True}, length=num_layers
    )
    return linen.vmap(
        layers,
        in_axes=0,
        out_axes=0,
        variable_axes={"params": None},
        split_rngs={"params": False},
    )(features=features)


def batch(examples, features, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(7), (examples, features), dtype)


@pytest.mark.parametrize(
    ("seed", "layers", "examples", "features"),
    [(0, 1, 1, 1), (1, 3, 4, 8), (-5, 6, 2, 3), (2**40, 2, 5, 16)],
)
def test_equals_linen(seed, layers, examples, features):
    x = batch(examples, features)
    model = linen_model(layers, features)
    expected, _ = model.apply(model.init(jax.random.PRNGKey(seed), x, None), x, None)
    found = recipes.composed_lifts_forward(seed, x, layers, features)
    assert found.shape == (examples * features,)
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


def test_variables_equal_linens():
    x = batch(2, 4)
    found = recipes.composed_lifts(3, 4).init(jax.random.key(0), x, None)
    expected = linen_model(3, 4).init(jax.random.key(0), x, None)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_equals_a_loop_over_layers_and_examples():
    layers, x = 3, batch(4, 5)
    model = recipes.composed_lifts(layers, 5)
    variables = model.init(jax.random.key(3), x, None)
    dense = variables["params"]["Dense_0"]
    rows = []
    for example in x:
        for i in range(layers):
            example = jax.nn.relu(example @ dense["kernel"][i] + dense["bias"][i])
        rows.append(example)
    activation, nothing = model.apply(variables, x, None)
    assert nothing is None
    np.testing.assert_allclose(activation, jnp.stack(rows), rtol=1e-5, atol=1e-6)


def test_layers_differ_and_examples_share():
    kernel = recipes.composed_lifts(3, 4).init(jax.random.key(0), batch(2, 4), None)["params"][
        "Dense_0"
    ]["kernel"]
    assert kernel.shape == (3, 4, 4)
    assert not np.array_equal(kernel[0], kernel[1])


def test_accepts_lists_and_numpy_and_runs_under_jit():
    x = batch(2, 3)
    expected = recipes.composed_lifts_forward(0, x, 2, 3)
    for same in (np.asarray(x), np.asarray(x).tolist()):
        np.testing.assert_array_equal(recipes.composed_lifts_forward(0, same, 2, 3), expected)
    jitted = jax.jit(lambda x: recipes.composed_lifts_forward(0, x, np.int64(2), 3))
    np.testing.assert_allclose(jitted(x), expected, rtol=1e-6)


def test_float64_under_x64():
    with jax.enable_x64(True):
        x = np.asarray(batch(2, 3), np.float64)
        found = recipes.composed_lifts_forward(0, x, 2, 3)
        model = linen_model(2, 3)
        expected, _ = model.apply(model.init(jax.random.key(0), x, None), x, None)
    assert found.dtype == np.float64
    assert np.asarray(found).tobytes() == np.asarray(expected).tobytes()


X = np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0, np.ones(4, np.float32), 3, 4), ValueError, r"shape \(4,\): it must have two axes"),
        ((0, np.ones((1, 2, 4), np.float32), 3, 4), ValueError, "must have two axes"),
        ((0, np.float32(1), 3, 4), ValueError, r"shape \(\)"),
        ((0, X, 3, 5), ValueError, r"shape \(2, 4\): its last axis must be features=5"),
        ((0, X[:0], 3, 4), ValueError, "at least one example"),
        ((0, [[1.0, 2.0], [3.0]], 3, 2), ValueError, "rows of different lengths"),
        ((0, X, 0, 4), ValueError, "num_layers must be at least 1, not 0"),
        ((0, X, -2, 4), ValueError, "num_layers must be at least 1, not -2"),
        ((0, X, 2**31, 4), ValueError, "num_layers must be below"),
        ((0, X, 3, 0), ValueError, "features must be at least 1, not 0"),
        ((0, X, 3, -1), ValueError, "features must be at least 1, not -1"),
        ((0, X.astype(np.int32), 3, 4), TypeError, "floating-point numbers, not int32"),
        ((0, X.astype(np.float16), 3, 4), TypeError, "each layer turns float16 into float32"),
        ((0, jnp.bfloat16(X), 3, 4), TypeError, "each layer turns bfloat16 into float32"),
        ((0, X.astype(bool), 3, 4), TypeError, "floating-point numbers, not bool"),
        ((0, X.astype(np.complex64), 3, 4), TypeError, "not complex64"),
        ((0, [["a", "b"]], 3, 2), TypeError, "floating-point numbers, not <U1"),
        ((0, "digits", 3, 4), TypeError, "floating-point numbers, not <U6"),
        ((0, None, 3, 4), TypeError, "floating-point numbers, not object"),
        ((0, X, 3.0, 4), TypeError, "num_layers must be an integer, not float"),
        ((0, X, "3", 4), TypeError, "num_layers must be an integer, not str"),
        ((0, X, True, 4), TypeError, "num_layers must be an integer, not the bool True"),
        ((0, X, 3, 4.0), TypeError, "features must be an integer, not float"),
        ((0, X, 3, None), TypeError, "features must be an integer, not NoneType"),
        ((0.0, X, 3, 4), TypeError, "seed must be an integer, not float"),
        (("0", X, 3, 4), TypeError, "seed must be an integer, not str"),
        ((2**70, X, 3, 4), ValueError, "seed must fit in 64 bits"),
        ((-(2**70), X, 3, 4), ValueError, "seed must fit in 64 bits"),
    ],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        recipes.composed_lifts_forward(*arguments)


def test_block_is_a_module():
    assert issubclass(recipes.Block, nn.Module)
