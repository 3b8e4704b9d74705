"""One array, apart and together: slices along an axis, and slices joined along an axis.

Whatever has a shape and a dtype is handled by its kind: JAX arrays (tracers and key arrays
included) on their devices, numpy arrays and memory maps as views, shapes as shapes, and arrays
that are still in a file (`Lazy`) without being read.
"""

from __future__ import annotations

import abc
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from types import EllipsisType
from typing import NamedTuple, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding

from .. import jax_private, pytrees
from ..errors import StackingError

T = TypeVar("T")
Shape = tuple[int, ...]
Index = tuple["slice | int | EllipsisType", ...]
Change = Callable[[tuple[object, ...]], tuple[object, ...]]


BLOCK = 8 << 20
"""About so many bytes of an array are rearranged at one time, and no less than a row of it."""


class Lazy(abc.ABC):
    """An array that is not in memory: its shape and dtype are known, `read` brings the rest.

    Attributes:
      shape: its shape.
      dtype: its dtype.
      order: where in its file it comes from; arrays are read in this order.
      in_file: whether `read` is a view of the file, which takes no memory.
    """

    shape: Shape
    dtype: np.dtype
    order: Shape = ()
    in_file: bool = False

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
        return math.prod(self.shape) * self.dtype.itemsize

    def chunks(self) -> Iterator[np.ndarray]:
        """The array in C order, in pieces that need not be in memory at one time."""
        return self.blocks(_rows(self))

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array in pieces of so many rows, of its first axis; whole where it has no row."""
        array = self.read()
        if not array.size or not array.ndim:
            yield array
        else:
            for start in range(0, len(array), rows):
                yield array[start : start + rows]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype}{list(self.shape)})"


InMemory = jax.Array | np.ndarray
Array = InMemory | jax.ShapeDtypeStruct | Lazy


class View(Lazy):
    """A slice of another array, or that array with its axes in another order."""

    def __init__(self, base: Lazy, shape: Shape, see: Callable[[np.ndarray], np.ndarray]):
        self.base, self.shape, self.see = base, shape, see
        self.dtype, self.order, self.in_file = base.dtype, base.order, base.in_file

    def read(self) -> np.ndarray:
        """A view of the array that it is taken from."""
        return self.see(self.base.read())


class Joined(Lazy):
    """Arrays alike, stacked along `axis`."""

    def __init__(self, parts: Sequence[Lazy], axis: int):
        self.parts, self.axis = tuple(parts), axis
        self.shape = _with(parts[0].shape, axis, len(parts))
        self.dtype, self.order = parts[0].dtype, parts[0].order

    def read(self) -> np.ndarray:
        """A new array, filled one part after the other."""
        made = np.empty(self.shape, self.dtype)
        for i, part in enumerate(self.parts):
            made[_at(i, self.axis)] = part.read()
        return made

    def chunks(self) -> Iterator[np.ndarray]:
        """Part by part along the first axis; a few rows of all parts along any other."""
        if self.axis == 0:
            for part in self.parts:
                yield from part.chunks()
        else:
            for rows in zip(*(part.blocks(_rows(self)) for part in self.parts), strict=True):
                yield np.stack(rows, self.axis)


def _rows(array: Lazy) -> int:
    """How many rows of an array are a block."""
    rows = array.shape[0] if array.shape else 1
    return max(1, BLOCK * rows // max(array.nbytes, 1))


class Places(NamedTuple):
    """The axes of one array in both forms.

    Attributes:
      axis: where the layer axis lies in the stacked array, at least 0.
      order: for each axis of a layer's array, which one of the slice it is; None where they are
        in the same order.
    """

    axis: int
    order: tuple[int, ...] | None


def is_array(leaf: object) -> TypeGuard[Array]:
    """`pytrees.is_array`, which tells that it is one of those that are handled here."""
    return pytrees.is_array(leaf)


def take(leaf: Array, index: int, axis: int) -> Array:
    """Slice ``index`` of an array along ``axis``, which is gone then.

    Example:
      >>> take(np.arange(6).reshape(2, 3), 1, 0)
      array([3, 4, 5])
      >>> take(jax.ShapeDtypeStruct((2, 3), 'float32'), 1, 0).shape
      (3,)
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _shape(leaf, _without(leaf.shape, axis), lambda spec: _without(spec, axis))
    if isinstance(leaf, jax.core.Tracer):
        return jax.lax.index_in_dim(leaf, index, axis, keepdims=False)
    if isinstance(leaf, jax.Array):
        return _take_jax(leaf, index, axis)
    if isinstance(leaf, Lazy):
        taken = View(leaf, _without(leaf.shape, axis), lambda array: array[_at(index, axis)])
        taken.order = (*leaf.order, index)
        return taken
    return _numpy(leaf)[_at(index, axis)]


def apart(leaf: Array, places: Places) -> list[Array]:
    """The arrays of all layers, from the one in which they are stacked.

    Example:
      >>> apart(np.arange(4).reshape(2, 2), Places(0, None))
      [array([0, 1]), array([2, 3])]
    """
    if isinstance(leaf, jax.core.Tracer):
        slices: Sequence[Array] = unstack(leaf, places.axis)
    else:
        slices = [take(leaf, i, places.axis) for i in range(leaf.shape[places.axis])]
    return [permute(part, places.order) for part in slices]


def unstack(array: jax.Array, axis: int = 0) -> Sequence[jax.Array]:
    """The slices of an array along an axis, in a trace or outside of one.

    Example:
      >>> [int(x) for x in unstack(jax.numpy.arange(3))]
      [0, 1, 2]
    """
    if jax_private.is_run(jax_private.current_trace()):
        # One small program, run for each: one that makes hundreds takes a second to compile.
        return [_take_jax(array, i, axis) for i in range(array.shape[axis])]
    # One operation: its derivative is a stack, and not a sum of padded slices.
    return jnp.unstack(array, axis=axis)


def together(leaves: Sequence[Array], places: Places) -> Array:
    """Undoes `apart`.

    Raises:
      StackingError: some are arrays and others are shapes.
    """
    return join([permute(leaf, inverse(places.order)) for leaf in leaves], places.axis)


def permute(leaf: Array, order: tuple[int, ...] | None) -> Array:
    """An array with its axes in another order, as in `numpy.transpose`; None leaves it.

    Example:
      >>> permute(jax.ShapeDtypeStruct((2, 3), 'float32'), (1, 0)).shape
      (3, 2)
    """
    if order is None:
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return _shape(leaf, permuted(leaf.shape, order), lambda spec: permuted(spec, order))
    if isinstance(leaf, Lazy):
        return View(leaf, permuted(leaf.shape, order), lambda array: array.transpose(order))
    return leaf.transpose(order) if isinstance(leaf, jax.Array) else _numpy(leaf).transpose(order)


def permuted(entries: tuple[T, ...], order: tuple[int, ...]) -> tuple[T, ...]:
    """What stands for the axes of an array, in another order."""
    return tuple(entries[i] for i in order)


def inverse(order: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """The permutation that undoes another one.

    Example:
      >>> inverse((2, 0, 1))
      (1, 2, 0)
    """
    return None if order is None else tuple(order.index(i) for i in range(len(order)))


def join(leaves: Sequence[Array], axis: int) -> Array:
    """Arrays of one shape and dtype, stacked along ``axis`` of the result.

    Raises:
      StackingError: they are of kinds that do not mix (shapes, and arrays).

    Example:
      >>> join([np.zeros(3, np.int8), np.ones(3, np.int8)], 1).shape
      (3, 2)
    """
    lazy = [leaf for leaf in leaves if isinstance(leaf, Lazy)]
    shapes = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    if 0 < len(lazy) < len(leaves) or 0 < len(shapes) < len(leaves):
        raise StackingError("some layers are arrays and others are only described")
    if shapes:
        made = _with(shapes[0].shape, axis, len(shapes))
        return _shape(shapes[0], made, lambda spec: _with(spec, axis, None))
    if lazy:
        return Joined(lazy, axis)
    arrays = [leaf if isinstance(leaf, jax.Array) else _numpy(leaf) for leaf in leaves]
    if any(isinstance(array, jax.Array) for array in arrays):
        return _join_jax(tuple(arrays), axis)
    return np.stack(arrays, axis)


# The index is an argument: one program takes all layers of an array.
@functools.partial(jax.jit, static_argnums=2)
def _take_jax(array: jax.Array, index: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_index_in_dim(array, index, axis, keepdims=False)


# A program with a thousand operands takes long to compile; one with these few does not.
_AT_ONCE = 64


def _join_jax(arrays: tuple[InMemory, ...], axis: int) -> jax.Array:
    # In a trace the caller's program is compiled: there is no other one to be kept small.
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return jnp.stack(arrays, axis)
    if len(arrays) <= _AT_ONCE or not all(map(_on_one_device, arrays)):
        return _stack(arrays, axis)
    whole = _begin(arrays[:_AT_ONCE], len(arrays), axis)
    for start in range(_AT_ONCE, len(arrays), _AT_ONCE):
        whole = _put(whole, arrays[start : start + _AT_ONCE], start, axis)
    return whole


def _on_one_device(array: InMemory) -> bool:
    return (
        isinstance(array, jax.Array)
        # What is written into zeros must have some: keys and the like have none.
        and not jax.dtypes.issubdtype(array.dtype, jax.dtypes.extended)
        and len(array.devices()) == 1
    )


@functools.partial(jax.jit, static_argnums=1)
def _stack(arrays: tuple[InMemory, ...], axis: int) -> jax.Array:
    return jnp.stack(arrays, axis)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _begin(arrays: tuple[InMemory, ...], count: int, axis: int) -> jax.Array:
    part = jnp.stack(arrays, axis)
    shape = (*part.shape[:axis], count, *part.shape[axis + 1 :])
    return jax.lax.dynamic_update_slice_in_dim(jnp.zeros(shape, part.dtype), part, 0, axis)


# Donated: the whole is written into and not copied each time.
@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _put(whole: jax.Array, arrays: tuple[InMemory, ...], start: int, axis: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(whole, jnp.stack(arrays, axis), start, axis)


def _numpy(leaf: Array) -> np.ndarray:
    # A memory map stays one, and so does every view of it.
    return leaf if isinstance(leaf, np.ndarray) else np.asarray(leaf)


def _at(index: int, axis: int) -> Index:
    # The ellipsis keeps the slice of a vector an array, where numpy would make a scalar of it.
    return (*(slice(None),) * axis, index, ...)


def _shape(like: jax.ShapeDtypeStruct, shape: Shape, change: Change) -> jax.ShapeDtypeStruct:
    """A shape like another one, whose axes, and the names that a sharding has for them, changed."""
    sharding = like.sharding
    if isinstance(sharding, NamedSharding):
        # Along the new axis nothing is split, and what was split along a lost one is gathered.
        # A spec may stop before the last axes; the change counts on one entry for each.
        entries = (*sharding.spec, *(None,) * (len(like.shape) - len(sharding.spec)))
        sharding = sharding.update(spec=PartitionSpec(*change(entries)))
    elif isinstance(sharding, Sharding) and not sharding.is_fully_replicated:
        raise StackingError(
            f"has a {type(sharding).__name__}, which says nothing about its axes one by one; give "
            f"the shape a NamedSharding, or none"
        )
    return like.update(shape=shape, sharding=sharding)


def _without(entries: tuple[T, ...], axis: int) -> tuple[T, ...]:
    return (*entries[:axis], *entries[axis + 1 :])


def _with(entries: tuple[T, ...], axis: int, entry: T) -> tuple[T, ...]:
    return (*entries[:axis], entry, *entries[axis:])
