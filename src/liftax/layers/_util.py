"""What several layers share: messages, axes, and single operations run eagerly."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import LayerError, where
from ..jax_private import is_staged
from ..module import Module
from ..words import shown
from .dtypes import Array, PrecisionLike

_T = TypeVar("_T")
Ints = int | Iterable[int]


def fail(module: object, problem: str, change: str) -> LayerError:
    """The error of ``module``: its place, what is wrong, what to change."""
    if isinstance(module, str):
        return LayerError(f"{module}: {problem}\n{change}")
    scope = getattr(module, "scope", None)
    place = where(scope.path) + ": " if scope is not None else ""
    return LayerError(f"{place}{type(module).__name__}: {problem}\n{change}")


def merge_option(module: Module, name: str, field: _T | None, argument: _T | None) -> _T:
    """An option that is a field or an argument of the call, and just one of them."""
    if field is None:
        if argument is None:
            change = f"Pass {name}= to the constructor or to the call."
            raise fail(module, f"{name} is not set.", change)
        return argument
    if argument is not None:
        both = f"by the constructor ({field}) and by the call ({argument})"
        raise fail(module, f"{name} is set {both}.", f"Pass {name}= to one of them.")
    return field


def check_one(module: object, option: str) -> None:
    """An operation of the user's is given itself, or by the function that makes it."""
    if getattr(module, option) is not None and getattr(module, option + "_cls") is not None:
        raise fail(module, f"both {option} and {option}_cls are set.", "Pass one of them.")


def to_tuple(value: Ints) -> tuple[int, ...]:
    """``3`` or ``[3, 4]`` as a tuple of ints."""
    if isinstance(value, Iterable):
        return tuple(map(operator.index, value))
    return (operator.index(value),)


def sizes(module: object, option: str, value: Ints, least: int = 0) -> tuple[int, ...]:
    """``value`` as a tuple of sizes; what is no int, or less than ``least``, is an error."""
    try:
        found = to_tuple(value)
    except TypeError:
        found = (least - 1,)
    if min(found, default=least) < least:
        raise fail(
            module,
            f"{option}={shown(value)} is not made of ints, each {least} or more.",
            f"Change {option}=.",
        )
    return found


def check_size(module: object, option: str, value: int, least: int = 0) -> None:
    """``value`` must be one int, ``least`` or more."""
    if type(value) is int and value >= least:
        return
    if not hasattr(value, "__index__") or jnp.ndim(value) or operator.index(value) < least:
        raise fail(
            module, f"{option}={shown(value)} is not an int, {least} or more.", f"Change {option}=."
        )


def normalize_axes(module: object, option: str, axes: Ints, ndim: int) -> tuple[int, ...]:
    """``axes`` counted from 0, in order; out of range or repeated ones are an error."""
    try:
        given = to_tuple(axes)
    except TypeError:
        raise fail(
            module, f"{option}={shown(axes)} is not made of ints.", f"Change {option}=."
        ) from None
    found = tuple(sorted(a + ndim if a < 0 else a for a in given))
    if any(not 0 <= a < ndim for a in found) or len(set(found)) != len(found):
        raise fail(
            module,
            f"{option}={given} does not name distinct axes of an input with {ndim} dimensions.",
            f"Change {option}= or the input.",
        )
    return found


def check_broadcast(module: object, what: str, shape: Sequence[int], target: Sequence[int]) -> None:
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


# What follows runs one operation the quick way. Run eagerly, a jitted function is called faster
# than a primitive is bound; staged, a primitive is bound faster than jnp finds out what to bind.
# The operation is the same, and so are its bits: two operations in one jitted function could be
# fused, so there is never more than one. Differentiated, it is jitted where Linen's is and only
# there: what comes back to a value that a jitted function uses twice, as each does that is
# differentiated twice, is added up inside it, and sums in another order round otherwise.


def _quick(plain: Callable[..., Any], primitive: Callable[..., Array]) -> Callable[..., Array]:
    """``plain``, by ``primitive`` where an array is staged and the other operand is like it.

    Arrays are floating; a Python float takes the dtype of the array beside it.
    """

    def op(a: Any, b: Any) -> Array:
        if is_staged(a):
            if type(b) is float:
                return primitive(a, a.dtype.type(b))
            if isinstance(b, jax.Array) and a.dtype == b.dtype and a.ndim == b.ndim:
                return primitive(a, b)
        elif is_staged(b) and type(a) is float:
            return primitive(b.dtype.type(a), b)
        return plain(a, b)

    return op


add = _quick(operator.add, lax.add)
sub = _quick(operator.sub, lax.sub)
mul = _quick(operator.mul, lax.mul)
maximum = _quick(jnp.maximum, lax.max)


def square(x: Array) -> Array:
    """``x * x``."""
    return lax.square(x) if isinstance(x, jax.core.Tracer) else jnp.square(x)


def reshape(x: Array, shape: tuple[int, ...]) -> Array:
    """``x`` under another shape, in which no size is left open."""
    return lax.reshape(x, shape) if is_staged(x) else jnp.reshape(x, shape)


_jit_dot_general = jax.jit(
    lax.dot_general, static_argnames=("dimension_numbers", "precision"), inline=True
)


def dot_general(
    lhs: Array,
    rhs: Array,
    dimension_numbers: lax.DotDimensionNumbers,
    precision: PrecisionLike = None,
) -> Array:
    """``lax.dot_general``."""
    if isinstance(lhs, jax.core.Tracer) or isinstance(rhs, jax.core.Tracer):
        return lax.dot_general(lhs, rhs, dimension_numbers, precision=precision)
    return _jit_dot_general(lhs, rhs, dimension_numbers=dimension_numbers, precision=precision)


def is_differentiated(*values: object) -> bool:
    """Tells whether a value is traced and not staged: there jnp's own jitted functions are used."""
    return any(isinstance(value, jax.core.Tracer) and not is_staged(value) for value in values)


def matmul(x: Array, kernel: Array, precision: PrecisionLike = None) -> Array:
    """Contracts the last axis of ``x`` with the first of ``kernel``."""
    return dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())), precision)


def _add_bias(y: Array, bias: Array) -> Array:
    return add(y, reshape(bias, (1,) * (y.ndim - bias.ndim) + bias.shape))


_jit_add_bias = jax.jit(_add_bias, inline=True)


def add_bias(y: Array, bias: Array) -> Array:
    """``y + bias``, the axes of ``bias`` being the last of ``y``."""
    if isinstance(y, jax.core.Tracer) or isinstance(bias, jax.core.Tracer):
        return _add_bias(y, bias)
    return _jit_add_bias(y, bias)
