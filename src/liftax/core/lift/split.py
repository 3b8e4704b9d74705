"""What lies split over a mesh of explicit axes along the axis that a lift goes over.

JAX loops over what is whole along that axis, and maps over what is split alike; of anything else it
says no more than that it is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import jax
from jax.sharding import PartitionSpec
from jax.tree_util import KeyPath, keystr

from ...errors import SplitAxisError
from ...words import argument_text, describe
from ..roles import Axis
from ..types import Group, Tree
from .axes import Lifted, Named, argument, variable

Has = tuple[jax.Array, int, Callable[[], Named]]
"""An array, its axis that a lift goes over, and what names both, for a message."""


def having(
    at: Lifted,
    args: Tree,
    axes: Sequence[Axis],
    in_axes: Tree,
    groups: Iterable[tuple[int, Group]],
    skip: int,
) -> Iterator[Has]:
    """Yields the arguments and variables that have a lift's axis; ``axes`` are the arguments'."""
    leaves = jax.tree_util.tree_leaves_with_path(args)
    for (path, leaf), axis in zip(leaves, axes, strict=True):
        if isinstance(axis, int) and at.roles.lift == "stack":
            yield leaf, axis, partial(_per_layer, at, path)
        elif isinstance(axis, int):
            yield leaf, axis, partial(argument, at, path, in_axes, skip)
    for axis, group in groups:
        for path, leaf in jax.tree_util.tree_leaves_with_path(group):
            yield leaf, axis, partial(variable, at, path[1:])


def _per_layer(at: Lifted, path: KeyPath) -> Named:
    """An argument of a stack that is cut by layer: its path is what the loop has of it."""
    key = str(getattr(path[2], "key", "")) if len(path) > 2 else ""
    call = getattr(at.target, "source", None) or getattr(at.target, "func", type(None)).__call__
    # Those that were given by position have their number, after the module and x.
    name = argument_text(call, 2 + int(key)) if key.isdecimal() else f"argument {key!r}"
    return Named(name + keystr(path[3:]), "per_layer=")


def split_over(leaf: jax.Array, axis: int) -> str | tuple[str, ...] | None:
    """Returns the explicit axes of a mesh that an array is split over along one of its own."""
    sharding = getattr(jax.typeof(leaf), "sharding", None)
    found: str | tuple[str, ...] | None = (
        None if sharding is None else sharding.spec.partitions[axis]
    )
    return found


def check_whole(
    at: Lifted,
    args: Tree,
    axes: Sequence[Axis],
    in_axes: Tree,
    groups: Iterable[tuple[int, Group]],
    cause: Exception,
) -> None:
    """Raises SplitAxisError where what a loop goes over is split along the loop's axis."""
    for leaf, axis, naming in having(at, args, axes, in_axes, groups, skip=2):
        if split_over(leaf, axis) is None:
            continue
        (name, asked), spec = naming(), jax.typeof(leaf).sharding.spec
        asked = asked if asked.endswith("=") else f"{asked}={axis}"
        parts = list(spec.partitions)
        parts[axis] = None
        whole = PartitionSpec(*parts)
        stack = at.roles.lift == "stack" and name.startswith("variable params")
        hint = "; fsdp= splits the parameters of a stack along others" if stack else ""
        raise SplitAxisError(
            f"{at.place}: {name} is split over the mesh along the axis that the loop goes over.\n"
            f"found: {describe(leaf)} split as {spec}, {asked}\n"
            f"expected: that axis whole, as by jax.sharding.reshard(value, {whole}){hint}"
        ) from cause


def split_alike(
    at: Lifted,
    args: Tree,
    axes: Sequence[Axis],
    in_axes: Tree,
    groups: Sequence[tuple[int, Group]],
) -> str | tuple[str, ...] | None:
    """Returns the axes of a mesh that all is split over along the axis of a map.

    Raises:
      SplitAxisError: they are not the same ones.
    """
    leaves = list(zip(jax.tree.leaves(args), axes, strict=True))
    leaves += [(leaf, axis) for axis, group in groups for leaf in jax.tree.leaves(group)]
    if all(not isinstance(axis, int) or split_over(leaf, axis) is None for leaf, axis in leaves):
        return None  # nearly always, and known without a name
    first: Has | None = None
    over = None
    for leaf, axis, naming in having(at, args, axes, in_axes, groups, skip=1):
        its = split_over(leaf, axis)
        if first is None:
            first, over = (leaf, axis, naming), its
        if its == over:
            continue
        both = [(x, a, *said()) for x, a, said in (first, (leaf, axis, naming))]
        lines = "".join(
            f"found: {name}, {describe(x)} split as {jax.typeof(x).sharding.spec}, {asked}={a}\n"
            for x, a, name, asked in both
        )
        raise SplitAxisError(
            f"{at.place}: what is mapped over is split over the mesh in two ways along the axis.\n"
            f"{lines}"
            f"expected: all split alike along that axis, by jax.sharding.reshard"
        )
    return over
