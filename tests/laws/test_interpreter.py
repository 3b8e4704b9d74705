"""What the tests' interpreter leaves to NumPy has the bits that XLA makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from helpers.interpret import interpret
from jax import lax

_random = np.random.default_rng(0)
X = np.float32(_random.normal(size=(3, 7)) * 10.0 ** _random.integers(-30, 30, (3, 7)))
X[0, :6] = [0.0, -0.0, np.nan, np.inf, -np.inf, 1.0]
Y = np.float32(_random.normal(size=(3, 7)))
Y[0, :6] = [-0.0, 0.0, 1.0, 0.0, np.nan, 3.0]
M, N = _random.integers(-(2**31), 2**31, (2, 3, 7)).astype(np.int32)
U, B = M.astype(np.uint32), X > 0

CASES: dict[str, tuple[Callable[..., Any], list[tuple[Any, ...]]]] = {
    "arithmetic": (
        lambda x, y: [lax.add(x, y), lax.sub(x, y), lax.mul(x, y), lax.max(x, y), lax.min(x, y)],
        [(X, Y), (X[1:], Y[1:]), (M, N)],
    ),
    "floats": (
        lambda x, y: [lax.div(x, y), lax.rem(x, y), lax.sqrt(x), lax.is_finite(x)],
        [(X, Y)],
    ),
    "one operand": (lambda x: [lax.neg(x), lax.abs(x), lax.square(x)], [(X,), (M,)]),
    "comparisons": (
        lambda x, y: [lax.eq(x, y), lax.lt(x, y), lax.select(x > y, x, y)],
        [(X, Y), (M, N)],
    ),
    "bits": (
        lambda x, y: [x & y, x | y, x ^ y, ~x, lax.shift_right_logical(x, y % 33)],
        [(U, U[::-1])],
    ),
    "conversions": (
        lambda x: [lax.convert_element_type(x, d) for d in ("float32", "int32", "uint32", "bool")],
        [(X,), (M,), (U,), (B,)],
    ),
    "reductions": (lambda x: [x.max(0), x.min(1), x.max()], [(X,), (X[1:],), (M,)]),
    "bits seen otherwise": (lambda x: lax.bitcast_convert_type(x, np.uint32), [(X,), (M,)]),
    "moves": (
        lambda x, y: [
            lax.dynamic_slice(x, (2, -9), (2, 3)),
            lax.dynamic_update_slice(x, y[:2, :3], (4, 2)),
            lax.pad(x, np.float32(3), ((1, 2, 0), (0, 1, 0))),
            lax.pad(x, np.float32(3), ((1, 2, 1), (0, -1, 0))),
            lax.rev(x, (1,)),
            lax.broadcasted_iota(np.int32, (3, 4), 1),
        ],
        [(X, Y)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_numpy_has_the_bits_of_xla(name: str) -> None:
    fn, inputs = CASES[name]
    for args in map(jax.device_put, inputs):
        for found, expected in zip(
            jax.tree.leaves(interpret(fn, *args)), jax.tree.leaves(jax.jit(fn)(*args)), strict=True
        ):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            # Of NaNs there are many, and any is as good.
            left, right = (np.where(leaf == leaf, leaf, 0) for leaf in (found, expected))
            assert left.tobytes() == right.tobytes()
            assert np.array_equal(found == found, expected == expected)
