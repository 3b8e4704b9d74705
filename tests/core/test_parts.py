"""A program in parts: the numbers of its equations run one by one, equal parts compiled once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from liftax import compat
from liftax.core.parts import Parts


def program(fn: Callable[..., Any], *args: Any) -> tuple[Any, list[Any]]:
    closed = jax.make_jaxpr(fn)(*args)
    return compat.consts_as_inputs(closed), [*closed.consts, *jax.tree.leaves(args)]


def check(fn: Callable[..., Any], *args: Any) -> Parts:
    jaxpr, inputs = program(fn, *args)
    parts = Parts(jaxpr)
    expected, found = compat.evaluate(jaxpr, inputs), parts(inputs)
    for a, b in zip(expected, found, strict=True):
        assert a.dtype == b.dtype
        assert a.weak_type == b.weak_type
        assert np.array_equal(a, b, equal_nan=True)
    return parts


def compiled(parts: Parts) -> int:
    return len({id(step.run) for step in parts.steps})


def layers(key: Any, n: int, shape: tuple[int, ...] = (5, 7)) -> list[Any]:
    init = jax.nn.initializers.lecun_normal()
    keys = [jax.random.fold_in(key, np.uint32(i * 1009)) for i in range(n)]
    return [leaf for k in keys for leaf in (init(k, shape), jnp.zeros(shape[-1]))]


def test_equal_layers_are_compiled_once() -> None:
    parts = check(lambda key: layers(key, 12), jax.random.key(3))
    assert len(parts.steps) >= 12
    assert compiled(parts) == compiled(check(lambda key: layers(key, 2), jax.random.key(3)))


def test_other_numbers_are_other_values_and_no_other_program() -> None:
    def scaled(key: Any) -> list[Any]:
        def one(i: int) -> Any:
            return jax.random.normal(jax.random.fold_in(key, i), (9,)) * np.float32(0.1 * i)

        return [one(1), one(2)]

    assert compiled(check(scaled, jax.random.key(0))) == 1


def test_other_shapes_are_another_program() -> None:
    def shapes(key: Any) -> list[Any]:
        return [jax.random.normal(jax.random.fold_in(key, n), (n,)) for n in (20, 21)]

    assert compiled(check(shapes, jax.random.key(0))) == 2


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (x, jnp.float32(2.0), 3),  # an input and constants as outputs
        lambda x: jax.lax.scan(lambda c, y: (c + y, c * y), 0.0, jnp.sin(x)),
        lambda x: jax.lax.cond(x[0] > 0, jnp.sin, jnp.cos, x * 3) + 1,
        lambda x: jax.lax.while_loop(lambda v: v.sum() < 50, lambda v: v * 1.5, jnp.exp(x)),
        lambda x: (
            (x / 3.0 + 0.1) * x - jnp.sqrt(jnp.abs(x) + 7)
        ),  # a fused product would round once
        lambda x: jnp.linalg.qr(jnp.outer(x, x) + jnp.eye(x.size))[0],
        lambda x: jnp.full((20,), 2),  # weakly typed
    ],
    ids=["trivial", "scan", "cond", "while", "rounding", "qr", "weak"],
)
def test_same_numbers(fn: Callable[..., Any]) -> None:
    check(fn, jnp.linspace(-1.0, 2.0, 24))


def test_parts_that_need_each_other_are_run_equation_by_equation() -> None:
    def crossed(x: Any) -> Any:
        a, b = jnp.sin(x), jnp.cos(x)
        p, q = a.sum(), b.sum()  # little, and used twice: a cut on either side
        return a * q + p, b * p + q

    parts = check(crossed, jnp.arange(40.0))
    assert len(parts.steps) == len(parts.jaxpr.eqns)


def test_effects_stay_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    def speaks(x: Any) -> Any:
        jax.debug.print("first", ordered=True)
        y = jnp.sin(x)
        jax.debug.print("second", ordered=True)
        return y

    jaxpr, inputs = program(speaks, jnp.ones(20))
    Parts(jaxpr)(inputs)
    jax.effects_barrier()
    assert capsys.readouterr().out == "first\nsecond\n"


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 9)), max_size=12))
def test_random_programs(ops: list[tuple[int, int, int]]) -> None:
    """Whatever is made of whatever, much or little."""

    def fn(x: Any) -> list[Any]:
        values = [x, x.sum(), jnp.float32(1.5)]
        for op, kind, where in ops:
            a, b = values[op % len(values)], values[where % len(values)]
            values.append(
                [lambda a, b: a + b, lambda a, b: a * 3.0, lambda a, b: (a * b).sum(), jnp.fmin][
                    kind
                ](a, b)
            )
        return values

    check(fn, jnp.linspace(-1.0, 1.0, 17))
