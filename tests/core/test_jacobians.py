"""Jacobians of functions of a module: against jax's of the same function written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn
from liftax.core import apply, init, lift

X = jnp.arange(6.0).reshape(2, 3) / 5
BOTH = pytest.mark.parametrize("name", ["jacfwd", "jacrev"])


class Noisy(nn.Module):
    @nn.compact
    def __call__(self, x):
        seen = self.variable("stats", "seen", jnp.zeros, ())
        if self.is_mutable_collection("stats"):
            seen.value = seen.value + jnp.sum(x)
        y = nn.Dense(2)(jnp.tanh(x))
        return y + nn.Dropout(0.5, deterministic=False)(y) ** 2


class Slopes(nn.Module):
    """A Jacobian of a layer, and of the same layer over again."""

    jacobian: str

    @nn.compact
    def __call__(self, x):
        layer = Noisy(name="layer")

        def both(mdl, x, scale):
            y = mdl(x) * scale
            return {"y": y}, y

        return getattr(nn, self.jacobian)(both, layer, x, 2.0, has_aux=True)


def keys():
    return {"params": jax.random.key(0), "dropout": jax.random.key(1)}


@BOTH
def test_equals_jax_of_the_pure_function(name):
    model = Slopes(name)
    variables = jax.jit(model.init)(keys(), X)
    # As the layer by itself has them: names, collections, values, draws.
    assert list(variables) == ["params", "stats"] and list(variables["params"]) == ["layer"]
    run = jax.jit(functools.partial(model.apply, mutable=["stats"]))
    (found, y), changed = run(variables, X, rngs=keys())
    assert float(changed["stats"]["layer"]["seen"]) == float(2 * X.sum())

    class Alone(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Noisy(name="layer")(x)

    def pure(x, scale):
        return {"y": Alone().apply(variables, x, rngs=keys()) * scale}

    alone = jax.jit(Alone().init)(keys(), X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), alone, variables)
    expected = jax.jit(getattr(jax, name)(pure, argnums=(0, 1)))(X, 2.0)
    assert jax.tree.map(jnp.shape, found) == {"y": ((2, 2, 2, 3), (2, 2))}
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6)  # noqa: E731
    jax.tree.map(same, found, expected)
    same(y, pure(X, 2.0)["y"])


def test_in_a_scan_under_jit_with_a_gradient_around(name="jacfwd"):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            (rows,) = getattr(nn, name)(lambda mdl, c: jnp.sin(mdl(c)), nn.Dense(3), c)
            return c + jnp.trace(rows), rows

    deep = nn.scan(
        nn.remat(Step), variable_axes={"params": 0}, split_rngs={"params": True}, length=4
    )()
    variables = jax.jit(deep.init)(jax.random.key(0), X[0], None)

    def loops(variables, c):
        for i in range(4):
            p = jax.tree.map(lambda w: w[i], variables["params"]["Dense_0"])  # noqa: B023
            rows = jax.jacrev(lambda c: jnp.sin(c @ p["kernel"] + p["bias"]))(c)  # noqa: B023
            c = c + jnp.trace(rows)
        return c.sum()

    run = jax.jit(jax.value_and_grad(lambda v, c: deep.apply(v, c, None)[0].sum(), (0, 1)))
    found, expected = (
        run(variables, X[0]),
        jax.jit(jax.value_and_grad(loops, (0, 1)))(variables, X[0]),
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), found, expected)


def test_several_modules_and_functions_of_scopes(name="jacrev"):
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            modules = (nn.Dense(3, name="a"), nn.Dense(3, name="b"))
            return getattr(nn, name)(lambda two, x: two[0](two[1](x)), modules, x)[0]

    variables = Pair().init(jax.random.key(0), X[0])
    p = variables["params"]
    product = (p["b"]["kernel"] @ p["a"]["kernel"]).T
    np.testing.assert_allclose(Pair().apply(variables, X[0]), product, rtol=1e-6)

    def scaled(scope, x):
        return x * scope.param("w", lambda key: jnp.full((), 2.0))

    run = lambda scope, x: getattr(lift, name)(scaled, scope, x)[0]  # noqa: E731
    out, variables = init(run)(jax.random.key(0), X[0])
    np.testing.assert_array_equal(out, 2 * jnp.eye(3))
    np.testing.assert_array_equal(apply(run)(variables, X[0]), out)
