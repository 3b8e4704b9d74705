"""Axes of arguments and variables: prefix trees, sizes, moving to the front.

Shared by the lifts that add an axis. Everything a user can get wrong about an
axis is said here, by the name of the argument or variable.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, PyTreeDef, keystr
from jax.typing import ArrayLike

from ... import jax_private
from ...errors import (
    AxesTreeError,
    AxisError,
    LengthError,
    PartitioningMismatchError,
    PartitioningUnspecifiedError,
)
from ...pytrees import is_array
from ...words import argument_text, describe, names_on
from .. import boxes
from ..roles import Axis, Broadcast, Roles
from ..types import Group, Metadata, Placed, Tree


class Lifted(Placed, Protocol):
    """A lift as its messages need it: its place, its table and what is lifted."""

    roles: Roles
    target: object


def axes_of(axes: Tree, tree: Tree, at: Lifted, argument: str, skip: int = 0) -> list[Axis]:
    """Returns the axis of each leaf of ``tree``, from a prefix tree of axes.

    Args:
      axes: an axis, or a tree of them.
      tree: what has the axes.
      at: where the lift stands.
      argument: the lift's argument that says them.
      skip: where the tree is the arguments: how many stand before them.

    Raises:
      AxesTreeError: ``axes`` is not a prefix of ``tree``.
    """
    if type(axes) is int:
        # Nearly all calls.
        return [axes] * len(jax.tree.leaves(tree))
    found: list[Axis] = []
    if not _expand(axes, tree, found):
        raise _no_prefix(axes, tree, at, argument, skip)
    return found


def _no_prefix(axes: Tree, tree: Tree, at: Lifted, argument: str, skip: int) -> AxesTreeError:
    """Says where a tree of axes does not fit first, and what would."""
    # Down to where the two part, for a message about that place and not about the whole tree.
    path: tuple[object, ...] = ()
    while True:
        deeper = _first_misfit(axes, tree)
        if deeper is None:
            break
        key, axes, tree = deeper
        path = (*path, key)
    here = argument + "".join(f"[{key!r}]" for key in path)
    what = "output" + "".join(f"[{key!r}]" for key in path)
    if skip and path:
        what = argument_text(at.target, skip + int(str(path[0])))
        what += "".join(f"[{key!r}]" for key in path[1:])
    elif skip and isinstance(tree, tuple):
        names = [argument_text(at.target, skip + i) for i in range(len(tree))]
        what = f"{len(tree)} argument{'s' * (len(tree) != 1)} after the " + (
            "carry" if skip == 2 else "module"
        )
        what += ": " + ", ".join(name.removeprefix("argument ") for name in names)
    # What would have fitted depends on what was meant: one axis for all parts, or one for each.
    parts = isinstance(axes, (list, tuple)) and isinstance(tree, (list, tuple))
    if parts or (isinstance(axes, Mapping) and isinstance(tree, Mapping)):
        like = _shape_of(tree, lambda leaf: "0", 1)
        expected = f"one axis for all, {here}=0, or one for each, {here}={like}"
    elif isinstance(axes, (list, tuple, Mapping)):
        expected = f"one axis for it, {here}=0"
    else:
        whole = "None" if at.roles.lift == "vmap" else "nn.broadcast"
        expected = f"an int, or {whole} for what has no axis"
    return AxesTreeError(
        f"{at.place}: {argument} is not a prefix of the tree it describes.\n"
        f"found: {here}={_shape_of(axes, _axis_text)} for {what}"
        f"{'' if skip and not path else f', {_shape_of(tree, describe)}'}\n"
        f"expected: {expected}"
    )


def _first_misfit(axes: Tree, tree: Tree) -> tuple[object, Tree, Tree] | None:
    """Goes one level down to the first part that does not fit; None where this level does not."""
    if isinstance(axes, Mapping) and isinstance(tree, Mapping) and axes.keys() == tree.keys():
        pairs = [(key, axes[key], tree[key]) for key in axes]
    elif isinstance(axes, (list, tuple)) and isinstance(tree, (list, tuple)):
        pairs = list(zip(range(len(axes)), axes, tree))  # noqa: B905
        if len(axes) != len(tree):
            return None
    else:
        return None
    return next(((key, a, t) for key, a, t in pairs if not _expand(a, t, [])), None)


def _expand(axes: Tree, tree: Tree, found: list[Axis]) -> bool:
    """Appends the axis of each leaf of ``tree``; tells whether ``axes`` is a prefix."""
    # None is an axis here, and to JAX a container of nothing: so it is asked for first.
    if axes is None or isinstance(axes, (int, Broadcast)) and not isinstance(axes, bool):
        found += [axes] * len(jax.tree.leaves(tree))
        return True
    axis_def: PyTreeDef
    axis_parts, axis_def = jax.tree.flatten(axes, is_leaf=lambda a: a is not axes)
    tree_parts, tree_def = jax.tree.flatten(tree, is_leaf=lambda t: t is not tree)
    if len(axis_parts) == 1 and axis_parts[0] is axes:
        return False
    same = bool(axis_def == tree_def)
    # As with `jax.vmap`, a list of axes may stand for a tuple of arguments.
    if not same and not (
        isinstance(axes, (list, tuple))
        and isinstance(tree, (list, tuple))
        and len(axis_parts) == len(tree_parts)
    ):
        return False
    return all(_expand(a, t, found) for a, t in zip(axis_parts, tree_parts, strict=True))


def _shape_of(tree: Tree, leaf: Callable[[object], str], depth: int = 9) -> str:
    """Shows the containers of a tree down to a depth, and what ``leaf`` says of what is in them."""
    # A tree may hold a whole model, so that depth and width are both bounded.
    if depth == 0:
        return leaf(tree)
    if isinstance(tree, Mapping):
        parts = [f"{k!r}: {_shape_of(v, leaf, depth - 1)}" for k, v in list(tree.items())[:8]]
        return "{" + ", ".join(parts) + ", ..." * (len(tree) > 8) + "}"
    if isinstance(tree, (list, tuple)):
        inside = ", ".join(_shape_of(part, leaf, depth - 1) for part in tree[:8])
        inside += ", ..." * (len(tree) > 8)
        comma = "," * (len(tree) == 1)
        return f"[{inside}]" if isinstance(tree, list) else f"({inside}{comma})"
    return "None" if tree is None else leaf(tree)


def _axis_text(axis: object) -> str:
    return repr(axis) if isinstance(axis, (str, int, float)) else describe(axis)


def to_front(x: jax.Array, axis: int) -> jax.Array:
    return x if axis == 0 else jnp.moveaxis(x, axis, 0)


def from_front(x: jax.Array, axis: int) -> jax.Array:
    return x if axis == 0 else jnp.moveaxis(x, 0, axis)


class Named(NamedTuple):
    """What a message calls something that has an axis, and the argument that says which axis."""

    name: str
    argument: str


def out_of_range(at: Placed, axis: int, named: Named, what: str, rank: int) -> AxisError:
    """An axis for which what has it, or is to get it, has no room.

    Args:
      what: its dtype and shape, in words.
      rank: how many axes it has, or will have.
    """
    return AxisError(
        f"{at.place}: axis {axis} is out of range for {named.name}, which is {what}.\n"
        f"found: {named.argument}={axis}\n"
        f"expected: an axis from {-rank} to {rank - 1}"
    )


class Sizes:
    """The sizes seen along a lift's axis, each with the name of what has it.

    Args:
      at: what knows where the lift stands.
      given: the size that the user gave, or None.
      argument: the name of the argument that gives it.
    """

    def __init__(self, at: Lifted, given: int | None, argument: str):
        self.at = at
        self.argument = argument
        self.size: int | None = None
        self.source: Callable[[], str] = str
        if given is not None:
            # The symbol of an exported program stands for a number that nobody knows yet.
            if not jax_private.is_symbolic(given):
                if type(given) is not int and (
                    isinstance(given, bool) or not hasattr(given, "__index__") or jnp.ndim(given)
                ):
                    raise self._error(f"{argument} expected an int, found {describe(given)}")
                given = given.__index__()
                if given < 0:
                    raise self._error(f"{argument}={given} is negative")
            self.size, self.source = given, lambda: f"{argument}={given}"

    def see(self, leaf: ArrayLike, axis: int, naming: Callable[[], Named]) -> None:
        """Notes the size of ``leaf`` along ``axis``; raises if it contradicts another.

        Args:
          naming: names the leaf; asked only for a message.
        """
        shape = np.shape(leaf) if is_array(leaf) else ()  # a word has none, nor has a dtype
        if not -len(shape) <= axis < len(shape):
            if shape:
                raise out_of_range(self.at, axis, naming(), describe(leaf), len(shape))
            name, asked = naming()
            whole = "nn.broadcast" if self.at.roles.lift == "scan" else "None"
            share = f"{asked}={whole}, to hand it whole to each iteration"
            if not asked.startswith("in_axes"):
                share = "a collection without an axis for it (shared or carried)"
            raise AxisError(
                f"{self.at.place}: {name} is a scalar ({describe(leaf)}) and has no axis {axis}.\n"
                f"found: {asked}={axis}\n"
                f"expected: {share}"
            )
        size = shape[axis]
        if self.size is None:
            self.size = size
            # Called for a message alone: to put each leaf in words would be most of the work of a
            # call.
            self.source = lambda: f"{naming().name} ({describe(leaf)}, axis {axis})"
        elif size != self.size:
            name, asked = naming()
            raise self._error(
                f"sizes along the axis disagree.\n"
                f"found: {self.size} from {self.source()}\n"
                f"found: {size} from {name} ({describe(leaf)}, axis {axis})\n"
                f"expected: one size; check {asked} and {self.argument}, and what was handed in"
            )

    def see_variables(self, group: Group, axis: int) -> None:
        """Notes the sizes of a group of stacked variables."""
        for collections in group:
            # Paths are built for the leaves only where one of them does not fit.
            if self._all_fit(jax.tree.leaves(collections), axis):
                continue
            for path, leaf in jax.tree_util.tree_leaves_with_path(collections):
                self.see(leaf, axis, partial(variable, self.at, path))

    def see_arguments(self, args: Tree, axes: Sequence[Axis], in_axes: Tree, skip: int = 0) -> None:
        """Notes the sizes of the arguments; ``skip`` is how many stand before them."""
        if not axes or not any(isinstance(axis, int) for axis in axes):
            return
        leaves = jax.tree_util.tree_leaves_with_path(args)
        for (path, leaf), axis in zip(leaves, axes, strict=True):
            if isinstance(axis, int):
                self.see(leaf, axis, partial(argument, self.at, path, in_axes, skip))

    def _all_fit(self, leaves: Sequence[jax.Array], axis: int) -> bool:
        """Tells quickly whether all have the size that is known already."""
        try:
            for leaf in leaves:
                if leaf.shape[axis] != self.size:
                    return False
        except (AttributeError, IndexError):
            return False
        return True

    def known(self, hint: str) -> int:
        """Returns the size; raises LengthError if nothing told it."""
        if self.size is None:
            raise self._error(f"{self.argument} is unknown: {hint}")
        return self.size

    def _error(self, text: str) -> LengthError:
        return LengthError(f"{self.at.place}: {text}")


# Functions and no methods: `Sizes` keeps one to speak of the leaf that told the size, and would be
# kept by it, with all leaves, until the garbage collector comes.
def variable(at: Lifted, path: KeyPath) -> Named:
    """What a variable is called, and the argument that says its axis."""
    names = names_on(path)
    return Named(f"variable {'/'.join(names)}", axis_argument(at, names))


def argument(at: Lifted, path: KeyPath, in_axes: Tree, skip: int) -> Named:
    """What an argument is called, and the argument that says its axis."""
    number = getattr(path[0], "idx", 0)
    name = argument_text(at.target, number + skip) + keystr(path[1:])
    return Named(name, "in_axes" if isinstance(in_axes, int) else f"in_axes[{number}]")


def axis_argument(at: Lifted, names: Sequence[str]) -> str:
    """Names the argument that says the axis of a variable: a collection and the names below."""
    if at.roles.lift == "stack" and names[0] == "params":
        return "param_axis"
    return f"variable_axes[{names[0]!r}]"


def unnamed(at: Placed, group: Group, axis: int, metadata_params: Metadata) -> Group:
    """Takes the name of an axis out of the boxes of a group.

    A box may change its value on the way, even to one of another rank: what stands for all slices
    then becomes one for each. So the axis is looked for in what comes of it.
    """
    return _renamed(at, boxes.remove_axis, group, axis, metadata_params)


def named(at: Placed, group: Group, axis: int, metadata_params: Metadata) -> Group:
    """Undoes `unnamed`."""
    return _renamed(at, boxes.add_axis, group, axis, metadata_params)


def _renamed(
    at: Placed,
    change: boxes.Change,
    group: Group,
    axis: int,
    metadata_params: Metadata,
) -> Group:
    try:
        return tuple(change(collections, axis, metadata_params) for collections in group)
    except (PartitioningUnspecifiedError, PartitioningMismatchError) as error:
        # A box knows neither its variable nor the lift: both are said here.
        name = _first_refused(change, group, axis, metadata_params)
        raise type(error)(f"{at.place}: variable {name}: {error}") from None


def _first_refused(change: boxes.Change, group: Group, axis: int, metadata_params: Metadata) -> str:
    """Names the first variable whose box does not take the change."""
    # One by one, which is slow, and done for the message alone.
    is_box = boxes.is_axis_metadata
    for collections in group:
        for path, box in jax.tree_util.tree_leaves_with_path(collections, is_leaf=is_box):
            try:
                change(box, axis, metadata_params)
            except (PartitioningUnspecifiedError, PartitioningMismatchError):
                return "/".join(names_on(path))
    return "?"


def unstack(group: Group, axis: int) -> Group:
    """Moves the axis of a group to the front."""
    # `moveaxis` would be an equation for each variable in every program.
    if axis == 0 or not any(group):
        return group
    return jax.tree.map(lambda x: to_front(x, axis), group)


def restack(at: Placed, group: Group, axis: int, metadata_params: Metadata) -> Group:
    """Undoes `unstack` and `unnamed` on what came out."""
    if not any(group):
        return group
    if axis != 0:
        group = jax.tree.map(lambda x: from_front(x, axis), group)
    return named(at, group, axis, metadata_params)
