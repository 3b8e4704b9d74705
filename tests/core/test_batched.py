"""Loops that make initial values, side by side: the numbers of the loop, and loops where not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn
from liftax import compat
from liftax.core.batched import batched, is_batch

KEYS = jax.random.split(jax.random.key(5), 3)
SHAPE = (160, 144)  # of three slices, more than 2 ** 16 elements
INIT = jax.nn.initializers


def _scanned(make: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda keys: jax.lax.scan(lambda _, key: (None, make(key)), None, keys)[1]


def _check(fn: Callable[..., Any], *args: Any) -> list[str]:
    """Compares a program with its batch; returns the names of what the batch calls."""
    closed = jax.make_jaxpr(fn)(*args)
    jaxpr, inputs = compat.consts_as_inputs(closed), [*closed.consts, *jax.tree.leaves(args)]
    changed = batched(jaxpr)
    for a, b in zip(compat.evaluate(jaxpr, inputs), compat.evaluate(changed, inputs), strict=True):
        assert a.dtype == b.dtype
        assert np.array_equal(a, b)
    return ["batch" if is_batch(eqn) else eqn.primitive.name for eqn in changed.eqns]


@pytest.mark.parametrize(
    ("init", "dtype"),
    [
        (INIT.lecun_normal(), "float32"),
        (INIT.lecun_normal(), "bfloat16"),
        (INIT.he_uniform(), "float32"),
        (INIT.normal(0.02), "float32"),
        (INIT.truncated_normal(0.02), "bfloat16"),
        (INIT.constant(0.3), "float32"),
    ],
)
def test_the_numbers_are_those_of_the_loop(init: Any, dtype: str) -> None:
    assert _check(_scanned(lambda key: init(key, SHAPE, dtype)), KEYS) == ["batch"]


def test_loops_in_loops_are_one_batch() -> None:
    make = _scanned(lambda key: INIT.lecun_normal()(key, (40, 48)))
    keys = jax.random.split(jax.random.key(5), (12, 3))
    assert _check(_scanned(make), keys) == ["batch"]


def test_old_style_keys_and_what_all_share() -> None:
    def make(keys: Any, scale: Any) -> Any:
        return _scanned(lambda key: scale * jax.random.normal(key, SHAPE))(keys)

    raw = jax.random.key_data(KEYS)
    assert _check(make, raw, jnp.float32(0.7)) == ["batch"]


@pytest.mark.parametrize(
    "make",
    [
        lambda key: INIT.orthogonal()(key, SHAPE),  # more than elements by themselves
        lambda key: jnp.cumsum(jax.random.normal(key, SHAPE), 0),
        lambda key: INIT.lecun_normal()(key, (7, 5)),  # small
        lambda key: jax.random.bits(key, (2048, 4096)),  # large
    ],
)
def test_what_stays_a_loop(make: Any) -> None:
    assert _check(_scanned(make), KEYS) == ["scan"]


def test_other_generators_stay_loops() -> None:
    keys = jax.random.split(jax.random.key(5, impl="rbg"), 3)
    assert _check(_scanned(lambda key: jax.random.normal(key, SHAPE)), keys) == ["scan"]


def test_a_carry_stays_a_loop() -> None:
    def make(keys: Any) -> Any:
        def body(total: Any, key: Any) -> Any:
            value = total + jax.random.normal(key, SHAPE)
            return value, value

        return jax.lax.scan(body, jnp.zeros(SHAPE), keys)[1]

    assert "scan" in _check(make, KEYS)


def test_init_of_a_stack_is_a_batch_with_the_numbers_of_the_loop() -> None:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(x.shape[-1])(nn.LayerNorm()(x))), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
            return nn.scan(Block, length=12, **axes)()(x, None)[0]

    x = jnp.ones((2, 96))
    program = jax.make_jaxpr(lambda key: Model().init(key, x))(jax.random.key(0))
    assert "scan" not in {eqn.primitive.name for eqn in program.eqns}
    expected = Model().init_with_output(jax.random.key(0), x)[1]  # runs the loop
    for _ in range(3):
        found = Model().init(jax.random.key(0), x)
        assert jax.tree.all(jax.tree.map(np.array_equal, found, expected))
