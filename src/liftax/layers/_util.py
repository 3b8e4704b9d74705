"""What several layers share: messages, axes, and single operations run eagerly."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import LayerError, where


def fail(module: Any, problem: str, change: str) -> LayerError:
    """The error of ``module``: its place, what is wrong, what to change."""
    if isinstance(module, str):
        return LayerError(f"{module}: {problem}\n{change}")
    scope = getattr(module, "scope", None)
    place = where(scope.path) + ": " if scope is not None else ""
    return LayerError(f"{place}{type(module).__name__}: {problem}\n{change}")


def merge_option(module: Any, name: str, field: Any, argument: Any) -> Any:
    """An option that is a field or an argument of the call, and just one of them."""
    if field is None and argument is None:
        raise fail(
            module, f"{name} is not set.", f"Pass {name}= to the constructor or to the call."
        )
    if field is not None and argument is not None:
        raise fail(
            module,
            f"{name} is set by the constructor ({field}) and by the call ({argument}).",
            f"Pass {name}= to one of them.",
        )
    return argument if field is None else field


def to_tuple(value: int | Iterable[int]) -> tuple[int, ...]:
    """``3`` or ``[3, 4]`` as a tuple of ints."""
    if isinstance(value, Iterable):
        return tuple(map(operator.index, value))
    return (operator.index(value),)


def normalize_axes(module: Any, option: str, axes: Any, ndim: int) -> tuple[int, ...]:
    """``axes`` counted from 0, in order; out of range or repeated ones are an error."""
    given = to_tuple(axes)
    found = tuple(sorted(a + ndim if a < 0 else a for a in given))
    if any(not 0 <= a < ndim for a in found) or len(set(found)) != len(found):
        raise fail(
            module,
            f"{option}={given} does not name distinct axes of an input with {ndim} dimensions.",
            f"Change {option}= or the input.",
        )
    return found


def check_broadcast(module: Any, what: str, shape: Sequence[int], target: Sequence[int]) -> None:
    """``shape`` must broadcast to ``target``, without making it larger."""
    fits = len(shape) <= len(target) and all(
        a in (1, b) for a, b in zip(reversed(shape), reversed(target), strict=False)
    )
    if not fits:
        raise fail(
            module,
            f"{what} of shape {tuple(shape)} does not broadcast to {tuple(target)}.",
            f"Change {what}=.",
        )


# Each of these is one arithmetic operation. Run eagerly, a jitted function is called faster
# than a primitive is bound, and one operation alone has the same bits either way. Traced,
# the primitive goes straight into the program.

_STATIC_DOT = ("dimension_numbers", "precision")
_jit_dot_general = jax.jit(lax.dot_general, static_argnames=_STATIC_DOT)


def dot_general(lhs: Any, rhs: Any, dimension_numbers: Any, precision: Any = None) -> jax.Array:
    """``lax.dot_general``."""
    if isinstance(lhs, jax.core.Tracer) or isinstance(rhs, jax.core.Tracer):
        return lax.dot_general(lhs, rhs, dimension_numbers, precision=precision)
    return _jit_dot_general(lhs, rhs, dimension_numbers=dimension_numbers, precision=precision)


def matmul(x: jax.Array, kernel: jax.Array, precision: Any = None) -> jax.Array:
    """Contracts the last axis of ``x`` with the first of ``kernel``."""
    return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision)


def _add_bias(y: Any, bias: Any) -> jax.Array:
    return y + jnp.reshape(bias, (1,) * (y.ndim - bias.ndim) + bias.shape)


_jit_add_bias = jax.jit(_add_bias)


def add_bias(y: Any, bias: Any) -> jax.Array:
    """``y + bias``, the axes of ``bias`` being the last of ``y``."""
    if isinstance(y, jax.core.Tracer) or isinstance(bias, jax.core.Tracer):
        return _add_bias(y, bias)
    return _jit_add_bias(y, bias)
