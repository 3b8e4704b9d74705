"""One array, apart and together: slices along an axis, and slices joined along an axis.

Whatever has a shape and a dtype is handled by its kind: JAX arrays (tracers and key arrays
included) on their devices, numpy arrays and memory maps as views, shapes as shapes, and arrays
that are still in a file (`Lazy`) without being read.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from ..errors import StackingError


class Lazy(abc.ABC):
    """An array that is not in memory: its shape and dtype are known, `read` brings the rest."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @abc.abstractmethod
    def read(self) -> np.ndarray:
        """The array, mapped where it can be."""

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of the array."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """The array in C order, in pieces that need not be in memory at one time."""
        yield self.read()

    @property
    def order(self) -> tuple[int, ...]:
        """Where in its file the array comes from: to be read in this order."""
        return ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype}{list(self.shape)})"


class Taken(Lazy):
    """Slice `index` of another array, along `axis`."""

    def __init__(self, base: Lazy, index: int, axis: int):
        self.base, self.index, self.axis = base, index, axis
        self.shape = _without(base.shape, axis)
        self.dtype = base.dtype

    def read(self) -> np.ndarray:
        """A view of the array that it is taken from."""
        return _view(self.base.read(), self.index, self.axis)

    @property
    def order(self) -> tuple[int, ...]:
        """After the slices before it."""
        return (*self.base.order, self.index)


class Permuted(Lazy):
    """Another array with its axes in another order, as in `numpy.transpose`."""

    def __init__(self, base: Lazy, order: tuple[int, ...]):
        self.base, self.permutation = base, order
        self.shape = _permuted(base.shape, order)
        self.dtype = base.dtype

    def read(self) -> np.ndarray:
        """A view of the array."""
        return self.base.read().transpose(self.permutation)

    @property
    def order(self) -> tuple[int, ...]:
        """As the array itself."""
        return self.base.order


class Joined(Lazy):
    """Arrays alike, stacked along `axis`."""

    def __init__(self, parts: Sequence[Lazy], axis: int):
        self.parts, self.axis = tuple(parts), axis
        self.shape = _with(parts[0].shape, axis, len(parts))
        self.dtype = parts[0].dtype

    def read(self) -> np.ndarray:
        """A new array, filled one part after the other."""
        made = np.empty(self.shape, self.dtype)
        for i, part in enumerate(self.parts):
            made[_at(i, self.axis)] = part.read()
        return made

    def chunks(self) -> Iterator[np.ndarray]:
        """Part by part along the first axis; whole along any other."""
        if self.axis == 0:
            for part in self.parts:
                yield from part.chunks()
        else:
            yield self.read()

    @property
    def order(self) -> tuple[int, ...]:
        """Where the first part comes from."""
        return self.parts[0].order


def is_array(leaf: Any) -> bool:
    """Whether `leaf` has a shape and a dtype."""
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def described(leaf: Any) -> str:
    """A leaf in words: `float32[4,3]`, or its type.

    Example:
      >>> described(np.zeros((4, 3))), described("decay")
      ('float64[4,3]', "'decay'")
    """
    if is_array(leaf):
        return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
    text = repr(leaf)
    return text if len(text) <= 40 else type(leaf).__name__


def take(leaf: Any, index: int, axis: int) -> Any:
    """Slice `index` of an array along `axis`, which is gone then.

    Example:
      >>> take(np.arange(6).reshape(2, 3), 1, 0)
      array([3, 4, 5])
      >>> take(jax.ShapeDtypeStruct((2, 3), 'float32'), 1, 0).shape
      (3,)
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _shape(leaf, _without(leaf.shape, axis), lambda spec: _without(spec, axis))
    if isinstance(leaf, jax.Array):
        return _take_jax(leaf, index, axis)
    if isinstance(leaf, Lazy):
        return Taken(leaf, index, axis)
    return _view(_numpy(leaf), index, axis)


def permute(leaf: Any, order: tuple[int, ...] | None) -> Any:
    """An array with its axes in another order, as in `numpy.transpose`; None leaves it.

    Example:
      >>> permute(jax.ShapeDtypeStruct((2, 3), 'float32'), (1, 0)).shape
      (3, 2)
    """
    if order is None:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _shape(leaf, _permuted(leaf.shape, order), lambda spec: _permuted(spec, order))
    if isinstance(leaf, jax.Array):
        return leaf.transpose(order)
    if isinstance(leaf, Lazy):
        return Permuted(leaf, order)
    return _numpy(leaf).transpose(order)


def inverse(order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The permutation that undoes another one.

    Example:
      >>> inverse((2, 0, 1))
      (1, 2, 0)
    """
    return None if order is None else tuple(order.index(i) for i in range(len(order)))


def join(leaves: Sequence[Any], axis: int) -> Any:
    """Arrays of one shape and dtype, stacked along `axis` of the result.

    Raises:
      StackingError: they are of kinds that do not mix (shapes, and arrays).

    Example:
      >>> join([np.zeros(3, np.int8), np.ones(3, np.int8)], 1).shape
      (3, 2)
    """
    first = leaves[0]
    for kind in (jax.ShapeDtypeStruct, Lazy):
        if any(isinstance(leaf, kind) for leaf in leaves):
            if not all(isinstance(leaf, kind) for leaf in leaves):
                raise StackingError("some layers are arrays and others are only described")
    if isinstance(first, jax.ShapeDtypeStruct):
        made = _with(first.shape, axis, len(leaves))
        return _shape(first, made, lambda spec: _with(spec, axis, None))
    if isinstance(first, Lazy):
        return Joined(leaves, axis)
    if any(isinstance(leaf, jax.Array) for leaf in leaves):
        return _join_jax(tuple(leaves), axis)
    return np.stack([_numpy(leaf) for leaf in leaves], axis)


@functools.partial(jax.jit, static_argnums=2)
def _take_jax(array: jax.Array, index: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)


# A program with a thousand operands takes long to compile; one with these few does not.
_AT_ONCE = 64


def _join_jax(arrays: tuple[Any, ...], axis: int) -> jax.Array:
    if len(arrays) <= _AT_ONCE or not all(map(_on_one_device, arrays)):
        return _stack(arrays, axis)
    whole = _begin(arrays[:_AT_ONCE], len(arrays), axis)
    for start in range(_AT_ONCE, len(arrays), _AT_ONCE):
        whole = _put(whole, arrays[start : start + _AT_ONCE], start, axis)
    return whole


def _on_one_device(array: Any) -> bool:
    return (
        isinstance(array, jax.Array)
        and not isinstance(array, jax.core.Tracer)
        and not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)
        and len(array.devices()) == 1
    )


@functools.partial(jax.jit, static_argnums=1)
def _stack(arrays: tuple[Any, ...], axis: int) -> jax.Array:
    return jnp.stack(arrays, axis)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _begin(arrays: tuple[Any, ...], count: int, axis: int) -> jax.Array:
    part = jnp.stack(arrays, axis)
    shape = (*part.shape[:axis], count, *part.shape[axis + 1 :])
    return jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, part.dtype), part, 0, axis)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _put(whole: jax.Array, arrays: tuple[Any, ...], start: int, axis: int) -> jax.Array:
    part = jnp.stack(arrays, axis)
    return jax.lax.dynamic_update_slice_in_dim(whole, part, start, axis)


def _numpy(leaf: Any) -> np.ndarray:
    # A memory map stays one, and so does every view of it.
    return leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)


def _view(array: np.ndarray, index: int, axis: int) -> np.ndarray:
    return array[_at(index, axis)]


def _at(index: int, axis: int) -> tuple[Any, ...]:
    # The ellipsis keeps the slice of a vector an array, where numpy would make a scalar of it.
    return (*(slice(None),) * axis, index, ...)


def _shape(like: jax.ShapeDtypeStruct, shape: tuple[int, ...], spec: Any) -> jax.ShapeDtypeStruct:
    return like.update(shape=shape, sharding=_sharding(like.sharding, len(like.shape), spec))


def _sharding(sharding: Any, ndim: int, change: Any) -> Any:
    """The sharding of an array that has gained or lost an axis."""
    if isinstance(sharding, NamedSharding):
        entries = (*sharding.spec, *(None,) * (ndim - len(sharding.spec)))
        return sharding.update(spec=PartitionSpec(*change(entries)))
    if isinstance(sharding, Sharding) and not sharding.is_fully_replicated:
        raise StackingError(
            f"has a {type(sharding).__name__}, which says nothing about its axes one by one; give "
            f"the shape a NamedSharding, or none"
        )
    return sharding


def _without(entries: tuple[Any, ...], axis: int) -> tuple[Any, ...]:
    return (*entries[:axis], *entries[axis + 1 :])


def _permuted(entries: tuple[Any, ...], order: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(entries[i] for i in order)


def _with(entries: tuple[Any, ...], axis: int, entry: Any) -> tuple[Any, ...]:
    return (*entries[:axis], entry, *entries[axis:])
