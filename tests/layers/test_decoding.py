"""Decoding with a cache: in 64 bits, and with the cache closed over by every transformation."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax

pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32")
KEY = jax.random.key(0)


def decoder(nn):
    return nn.MultiHeadDotProductAttention(num_heads=2, qkv_features=4, decode=True)


def steps(nn, x):
    model = decoder(nn)
    variables = model.init(KEY, x)
    outputs = []
    for t in range(3):
        y, changed = model.apply(variables, x[:, t : t + 1], mutable="cache")
        outputs.append(y)
        variables = {**variables, **changed}
    return outputs, variables


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_in_64_bits(dtype):
    with jax.enable_x64(True):
        ours, theirs = (steps(nn, jnp.asarray(X, dtype)) for nn in (liftax, linen))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)


def over_scan(step, x):
    return jax.lax.scan(lambda c, x: (c, step(x)), None, x[None])[1][0]


WAYS = {
    "jit": lambda step, x: jax.jit(step)(x),
    "scan": over_scan,
    "cond": lambda step, x: jax.lax.cond(True, step, jnp.zeros_like, x),
    "grad": lambda step, x: jax.grad(lambda x: step(x).sum())(x),
    "vmap": lambda step, x: jax.vmap(step)(x[None])[0],
    "remat": lambda step, x: jax.checkpoint(step)(x),
    "eval_shape": lambda step, x: np.zeros(jax.eval_shape(step, x).shape),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_that_is_closed_over(way):
    def run(nn):
        _, variables = steps(nn, X)

        def step(x):
            return decoder(nn).apply(variables, x, mutable="cache")[0]

        return WAYS[way](step, X[:, 3:4])

    np.testing.assert_array_equal(run(liftax), run(linen), strict=True)


def test_a_full_cache_is_still_an_error():
    model, x = decoder(liftax), X[:, :1]
    variables = model.init(KEY, x)
    _, changed = model.apply(variables, x, mutable="cache")
    full = {**variables, **changed}
    for run in (lambda f: f(x), lambda f: jax.jit(f)(x)):
        with pytest.raises(liftax.errors.LayerError, match="the cache is full: it has 1 position"):
            run(lambda x: model.apply(full, x, mutable="cache"))
