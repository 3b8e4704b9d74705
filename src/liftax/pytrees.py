"""Pytrees taken apart: the leaves that are wanted, and a rest that they can be put back into."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, TypeVar

import jax
from jax.tree_util import PyTreeDef

T = TypeVar("T")


class Rest(NamedTuple):
    """A tree without some of its leaves.

    Attributes:
      leaves: all of them, None where one was taken out: it may be traced, and what holds on to a
        rest must not hold on to a trace.
      taken: which were taken out.
      treedef: the structure of the whole.
    """

    leaves: tuple[Any, ...]
    taken: tuple[int, ...]
    treedef: PyTreeDef

    def filled(self, values: Iterable[object]) -> Any:
        """Returns the whole tree, with ``values`` for the leaves that were taken out."""
        leaves = list(self.leaves)
        for i, value in zip(self.taken, values, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self.treedef, leaves)


def is_array(leaf: object) -> bool:
    """Tells whether a leaf is an array or the shape of one: it has a shape and a dtype.

    Example:
      >>> is_array(jax.ShapeDtypeStruct((2,), 'float32')), is_array(jax.numpy.float32)
      (True, False)
    """
    # The classes of numpy's scalars, which stand for dtypes, have both for their instances.
    return hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not isinstance(leaf, type)


def is_inexact(leaf: Any) -> bool:
    """Tells whether a leaf has numbers that are rounded: by those there are derivatives.

    Example:
      >>> is_inexact(1.5), is_inexact(jax.numpy.arange(3))
      (True, False)
    """
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jax.numpy.result_type(leaf)
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))


def floats(leaves: Iterable[T]) -> list[T]:
    """Returns the leaves by which there are derivatives."""
    return [leaf for leaf in leaves if is_inexact(leaf)]


def with_floats(leaves: Iterable[object], numbers: Iterable[object]) -> list[Any]:
    """Undoes `floats`.

    Example:
      >>> with_floats([1, 2.0, 3, 4.0], [0.5, 0.25])
      [1, 0.5, 3, 0.25]
    """
    given = iter(numbers)
    return [next(given) if is_inexact(leaf) else leaf for leaf in leaves]


def spread(leaves: Iterable[object], slopes: Iterable[object]) -> list[Any]:
    """Returns derivatives by all leaves, from those by `floats`: None by the others."""
    given = iter(slopes)
    return [next(given) if is_inexact(leaf) else None for leaf in leaves]


def parted(values: Iterable[T], which: Iterable[bool]) -> tuple[list[T], list[T]]:
    """Returns the values that are meant, and the others.

    Args:
      values: in order.
      which: one bool for each: whether it is meant.

    Example:
      >>> parted('abcd', [True, False, False, True])
      (['a', 'd'], ['b', 'c'])
    """
    those: list[T] = []
    others: list[T] = []
    for value, is_meant in zip(values, which, strict=True):
        (those if is_meant else others).append(value)
    return those, others


def joined(those: Iterable[T], others: Iterable[T], which: Iterable[bool]) -> list[T]:
    """Undoes `parted`.

    Example:
      >>> joined('ad', 'bc', [True, False, False, True])
      ['a', 'b', 'c', 'd']
    """
    left, right = iter(those), iter(others)
    return [next(left) if is_meant else next(right) for is_meant in which]


def split(tree: object, wanted: Callable[[Any], bool]) -> tuple[list[Any], Rest]:
    """Returns the leaves that are wanted, and the rest of the tree.

    Args:
      tree: any pytree.
      wanted: ``leaf -> bool``.

    Example:
      >>> texts, rest = split({'a': 1, 'b': 'two'}, lambda leaf: isinstance(leaf, str))
      >>> texts, rest.filled(['three'])
      (['two'], {'a': 1, 'b': 'three'})
    """
    return split_by(tree, map(wanted, jax.tree.leaves(tree)))


def split_by(tree: object, wanted: Iterable[bool]) -> tuple[list[Any], Rest]:
    """Returns the leaves that are wanted, and the rest of the tree.

    Args:
      tree: any pytree.
      wanted: one bool for each of its leaves.

    Example:
      >>> split_by([1, (2, 3)], [True, False, True])[0]
      [1, 3]
    """
    leaves, treedef = jax.tree.flatten(tree)
    # A plain loop: this runs in each call of a lift, where a comprehension would be a call more.
    found, taken = [], []
    for i, is_wanted in enumerate(wanted):
        if is_wanted:
            found.append(leaves[i])
            taken.append(i)
            leaves[i] = None
    return found, Rest(tuple(leaves), tuple(taken), treedef)
