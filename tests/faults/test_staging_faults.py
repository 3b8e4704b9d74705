"""Faults seen in other libraries' jit, remat and derivatives of modules; liftax has none."""

from __future__ import annotations

import gc
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Counter, ours
from helpers.models import WIDTH, cheap
from helpers.run import keys, ramp

lib = ours()
nn = lib.nn
errors = lib.errors
pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = ramp(WIDTH)
XX = ramp(2, WIDTH)


@pytest.mark.parametrize(
    ("one", "other"),
    [(-1, -2), (True, 1), (1, 1.0), (0, False), ("a", "b"), ((1, 2), (1, True))],
)
def test_jit_tells_fields_apart_that_hash_alike(one: Any, other: Any) -> None:
    """Elsewhere a jitted module is looked up by its hash, and -1 and -2 hash alike."""

    class Shows(nn.Module):
        value: Any

        @nn.compact
        def __call__(self, x):
            return x, jnp.array([ord(c) for c in f"{self.value!r:>12}"])

    jitted = nn.jit(Shows)

    def said(value: Any) -> str:
        return "".join(map(chr, jitted(value).apply({}, X)[1])).strip()

    assert [said(one), said(other), said(one)] == [repr(one), repr(other), repr(one)]


def test_jit_runs_the_right_axis() -> None:
    class Sums(nn.Module):
        axis: int

        @nn.compact
        def __call__(self, x):
            return x.sum(self.axis)

    jitted = nn.jit(Sums)
    assert jitted(-1).apply({}, XX).shape == (2,)
    assert jitted(-2).apply({}, XX).shape == (WIDTH,)


def test_jit_tells_static_arguments_apart_by_type() -> None:
    class Shows(nn.Module):
        @nn.compact
        def __call__(self, x, kind):
            return x, jnp.array([ord(c) for c in f"{kind!r:>6}"])

    model = nn.jit(Shows, static_argnums=(2,))()
    said = ["".join(map(chr, model.apply({}, X, k)[1])).strip() for k in (1, True, 1, -1, -2)]
    assert said == ["1", "True", "1", "-1", "-2"]


def test_no_cache_grows_with_the_modules_that_were_jitted() -> None:
    """Elsewhere a global cache of side effects keeps every distinct module."""

    def build(i: int) -> None:
        class Scaled(nn.Module):
            by: int

            @nn.compact
            def __call__(self, x):
                return x * self.by

        nn.jit(Scaled)(i).apply({}, X)

    def modules() -> int:
        gc.collect()
        return sum(isinstance(found, nn.Module) for found in gc.get_objects())

    build(0)
    before = modules()
    for i in range(1, 21):
        build(i)
    assert modules() <= before + 2


@pytest.mark.parametrize("lift", ["jit", "remat"])
@pytest.mark.parametrize(
    ("options", "static"),
    [
        ({"static_argnums": (0, 2)}, "first"),
        ({"static_argnums": (-1,)}, "second"),
        ({"static_argnums": (-2,)}, "first"),
        ({"static_argnums": (3,)}, "second"),
        ({"static_argnames": ("second",)}, "second"),
    ],
)
def test_static_arguments_are_static(lift: str, options: Any, static: str) -> None:
    """`self` counts, as in Linen, which has a way of its own with negative numbers."""
    if "static_argnames" in options:
        args, kwargs = (X, jnp.array(True)), {"second": "text"}
        model = getattr(nn, lift)(_named(), **options)()
    else:
        one, two = (True, jnp.array(1)) if static == "first" else (jnp.array(1), "text")
        model = getattr(nn, lift)(_positional(static), **options)()
        args, kwargs = (X, one, two), {}
    variables = model.init(keys(), *args, **kwargs)
    assert model.apply(variables, *args, **kwargs).shape == (WIDTH,)
    jax.grad(lambda v: model.apply(v, *args, **kwargs).sum())(variables)


def _positional(static: str) -> Any:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, first, second):
            value = first if static == "first" else second
            assert not isinstance(value, jax.core.Tracer)
            return jnp.sin(nn.Dense(WIDTH, kernel_init=cheap)(x))

    return Layer


def _named() -> Any:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, first, *, second):
            assert second == "text"
            return jnp.sin(nn.Dense(WIDTH, kernel_init=cheap)(x))

    return Layer


@pytest.mark.parametrize("number", [4, -5])
def test_a_static_number_out_of_range_is_an_error(number: int) -> None:
    model = nn.remat(_positional("first"), static_argnums=(number,))()
    with pytest.raises(errors.StaticArgumentError, match="static_argnums"):
        model.init(keys(), X, True, True)


def test_jvp_uses_the_tangents_of_every_scope() -> None:
    """Elsewhere only those of the first scope are read."""

    def two(scopes: Any, x: Any) -> Any:
        return x * scopes[0].param("w", cheap, ()) * scopes[1].param("w", cheap, ())

    def model(scope: Any, x: Any) -> Any:
        a, b = scope.push("a"), scope.push("b")
        two((a, b), x)
        pair = (a.rewound(), b.rewound())
        ones = {"params": {"w": jnp.ones(())}}
        none = {"params": {"w": jnp.zeros(())}}
        moved = [
            lib.lift.jvp(two, pair, (x,), (jnp.zeros_like(x),), tangents)[1]
            for tangents in ((ones, none), (none, ones))
        ]
        return moved

    moved, variables = lib.core.init(model)(jax.random.key(0), X)
    a, b = variables["params"]["a"]["w"], variables["params"]["b"]["w"]
    np.testing.assert_allclose(moved[0], X * b, rtol=1e-6)
    np.testing.assert_allclose(moved[1], X * a, rtol=1e-6)


def test_remat_replays_the_same_keys() -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(16, kernel_init=cheap)(x))
            return jnp.sin(x)

    rngs = keys()
    plain, again = Layer(), nn.remat(Layer)()
    variables = plain.init(rngs, X)

    def grads(model: Any) -> Any:
        return jax.grad(lambda v: model.apply(v, X, rngs=rngs).sum())(variables)

    a, b = grads(plain), grads(again)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), a, b)


def test_jit_keeps_what_python_remembers_on_a_cache_hit() -> None:
    """Counters of streams and of automatic names go on after a call that was not traced."""
    counter = Counter()

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            counter.hit()
            return x + jax.random.uniform(self.make_rng("dropout"), x.shape)

    class Model(nn.Module):
        jitted: bool

        @nn.compact
        def __call__(self, x):
            call = lambda mdl, x: mdl(x)  # noqa: E731
            call = nn.jit(call) if self.jitted else call
            noisy = Noisy()
            x = call(noisy, x)
            y = call(noisy, x)
            return x, y, jax.random.uniform(self.make_rng("dropout"))

    rngs = {"dropout": jax.random.key(2)}
    first = Model(True).apply({}, X, rngs=rngs)
    again = Model(True).apply({}, X, rngs=rngs)
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[0] - X, first[1] - first[0])
