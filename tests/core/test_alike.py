"""Under jit, layers that are written out draw in one loop a shape, with the bits of each alone."""

from __future__ import annotations

from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn

KEY = jax.random.key(3)
X = jnp.ones((2, 8))


def deep(lib: Any, depth: int = 6, init: Any = None, remat: bool = False) -> Any:
    """A model of equal layers without a scan, in either library."""
    init = init or lib.initializers.lecun_normal()

    class Block(lib.Module):
        @lib.compact
        def __call__(self, x):
            h = lib.Dense(16, kernel_init=init)(lib.LayerNorm()(x))
            return x + lib.Dense(8, kernel_init=init)(lib.relu(h))

    class Deep(lib.Module):
        @lib.compact
        def __call__(self, x):
            for i in range(depth):
                x = (lib.remat(Block) if remat else Block)(name=f"block_{i}")(x)
            return x

    return Deep()


def same(one: Any, two: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, two)


def draws(model: Any) -> tuple[int, list[int]]:
    """How many draws the program of a jitted init writes out, and the turns of each loop."""
    program = jax.make_jaxpr(jax.jit(model.init))(KEY, X)
    (call,) = program.eqns
    eqns = call.params["jaxpr"].jaxpr.eqns
    alone = [e for e in eqns if e.params.get("name", "").startswith(("_truncated", "_normal"))]
    turns = [e.outvars[0].aval.shape[0] for e in eqns if "scan" in e.primitive.name.lower()]
    return len(alone), turns


@pytest.mark.parametrize(
    "init",
    ["lecun_normal", "xavier_uniform", "orthogonal", "he_normal"],
)
def test_the_bits_are_those_of_each_alone(init: str) -> None:
    made = [deep(lib, init=getattr(lib.initializers, init)()) for lib in (nn, flax.linen)]
    jitted = jax.jit(made[0].init)(KEY, X)
    same(jitted, jax.jit(made[1].init)(KEY, X))
    same(jitted, made[0].init(KEY, X))


def test_dtypes_and_scales_that_differ_are_apart() -> None:
    def model(lib: Any) -> Any:
        class Mixed(lib.Module):
            @lib.compact
            def __call__(self, x):
                for i in range(8):
                    init = lib.initializers.normal(0.02 if i % 2 else 0.5)
                    dtype = jnp.bfloat16 if i < 4 else jnp.float32
                    x = x + self.param(f"w_{i}", init, (5, 3), dtype).sum()
                return x

        return Mixed()

    same(jax.jit(model(nn).init)(KEY, X), jax.jit(model(flax.linen).init)(KEY, X))


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_any_kind_of_key(impl: str) -> None:
    key = jax.random.key(5, impl=impl)
    model = deep(nn)
    same(jax.jit(model.init)(key, X), model.init(key, X))
    old = jax.random.key_data(key)  # a key of the old style, of the default kind
    if impl == "threefry2x32":
        same(jax.jit(model.init)(old, X), model.init(old, X))


def test_one_loop_for_each_shape() -> None:
    assert draws(deep(nn)) == (0, [6, 6])
    assert draws(deep(nn, depth=2)) == (4, [])  # too few to be worth it


def test_the_program_hardly_grows_with_the_layers() -> None:
    """What is compiled for six layers more is their keys, and no draw."""
    lines = [len(jax.jit(deep(nn, n).init).lower(KEY, X).as_text().splitlines()) for n in (6, 12)]
    compiled = [
        jax.jit(deep(nn, n).init).lower(KEY, X).compile().as_text().count("erf_inv")
        for n in (6, 12)
    ]
    assert compiled[0] == compiled[1]
    assert lines[1] - lines[0] < lines[0]


def test_a_draw_of_what_was_drawn_waits_for_it() -> None:
    def model(lib: Any) -> Any:
        class Twice(lib.Module):
            @lib.compact
            def __call__(self, x):
                for i in range(4):
                    low = self.param(f"low_{i}", lib.initializers.normal(), (3,))
                    key = jax.random.fold_in(KEY, jnp.int32(low[0] * 1000))
                    high = self.param(f"high_{i}", lambda _, key=key: jax.random.normal(key, (3,)))
                    x = x + high.sum()
                return x

        return Twice()

    # Eagerly the last bit of a product with a deviation is another one, in Linen too.
    same(jax.jit(model(nn).init)(KEY, X), jax.jit(model(flax.linen).init)(KEY, X))


def test_under_vmap_and_abstract() -> None:
    model = deep(nn)
    keys = jax.random.split(KEY, 3)
    many = jax.jit(jax.vmap(model.init, in_axes=(0, None)))(keys, X)
    one = [model.init(key, X) for key in keys]
    jax.tree.map(lambda m, *o: np.testing.assert_allclose(m, jnp.stack(o), rtol=1e-6), many, *one)
    shapes = jax.eval_shape(model.init, KEY, X)
    assert jax.tree.map(lambda a, b: a.shape == b.shape and a.dtype == b.dtype, shapes, one[0])
