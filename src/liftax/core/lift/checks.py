"""What a loop or map refuses of a body: its carry, what it returns, the axes of what comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, SupportsIndex, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import PyTreeDef, keystr, tree_leaves_with_path
from jax.typing import ArrayLike

from ...errors import (
    AxesTreeError,
    BodyReturnError,
    CarryError,
    LengthError,
    LiftOptionError,
    LiftWarning,
    LoopDependentError,
    MicrobatchError,
    SplitSharedError,
    TiedModulesError,
    UnusedFilterError,
)
from ...words import describe, did_you_mean, kind_of, shown, structure_of
from ..events import made_of
from ..filters import names_of
from ..roles import BROADCAST, CARRY, Axis, broadcast
from ..scope import Scope
from ..types import Group, Path, Placed, Tree
from .axes import Lifted, Named, out_of_range, variable
from .crossing import Opening
from .places import Variables, flat


def check_options(lift: str, options: Mapping[str, object]) -> None:
    """Raises LiftOptionError for options of a lift that mean nothing.

    Args:
      lift: its name.
      options: its options by name; those that are read elsewhere are let be.
    """
    for name, value in options.items():
        fits, expected = _OPTIONS.get(name, (None, ""))
        if fits is not None and not fits(value):
            raise LiftOptionError(
                f"{lift}: {name} does not mean anything as it is.\n"
                f"found: {name}={shown(value)}\n"
                f"expected: {expected}"
            )


def _whole(value: object) -> TypeGuard[SupportsIndex]:
    # An array has both: its value may be traced, and an option is to be known before.
    return hasattr(value, "__index__") and not hasattr(value, "__len__")


def _flag(value: object) -> bool:
    return isinstance(value, (bool, np.bool_)) or (_whole(value) and int(value) in (0, 1))


def _unroll(value: object) -> bool:
    # As `jax.lax.scan` takes it: 0 and True both write out the whole loop.
    return isinstance(value, bool) or (_whole(value) and int(value) >= 0)


def _function(value: object) -> bool:
    return value is None or callable(value)


_FLAGS = "reverse _split_transpose check_constancy_invariants prevent_cse concrete".split()
_OPTIONS: dict[str, tuple[Callable[[object], bool], str]] = {
    **dict.fromkeys(_FLAGS, (_flag, "True or False")),
    "unroll": (_unroll, "a number of iterations, or True or 0 to write out all of them"),
    "metadata_params": (
        lambda value: isinstance(value, Mapping),
        "a mapping, e.g. {nn.PARTITION_NAME: 'layers'}",
    ),
    "policy": (_function, "one of jax.checkpoint_policies, or None"),
    "data_transform": (
        _function,
        "a function (variable_groups, rng_groups) -> (variable_groups, rng_groups)",
    ),
}


def check_arguments(opening: Opening) -> None:
    """Checks the arguments of a lift with an axis against what is here.

    Raises:
      UnusedFilterError: a name in the arguments is mistyped.
      TiedModulesError: a module that was used without the lift would get an axis.

    Warns:
      LiftWarning: ``LX202``, all slices of the parameters would start identical.
    """
    roles = opening.roles
    if opening.initializing:
        role = roles.role("params")
        stacked = isinstance(role, int) and opening.can_write(role)
        # Nothing fails then, and it may be meant: so it is a warning.
        told = "LX202" in made_of(opening.target).quiet
        if stacked and roles.split("params") is False and not told:
            text = (
                f"{opening.place}: parameters are stacked along the axis, but stream 'params' is "
                f"not split: all slices start out identical. Pass "
                f"split_rngs={{'params': True}} to {roles.lift}, or share one set"
            )
            warnings.warn(LiftWarning("LX202", text), stacklevel=2)
        for top, table in zip(opening.tops, opening.tables, strict=True):
            # Only what would get an axis: shared by all iterations, a tie stays a tie.
            for col in top.collections():
                if isinstance(table.role(col), int):
                    _check_tied(opening, top, col, top.node(col) or {}, top.path)
    _check_spelled(opening)


def _check_spelled(opening: Opening) -> None:
    """Raises UnusedFilterError for a spelled-out name that looks mistyped.

    A name that matches nothing is fine in itself (no cache yet, no dropout in this call); one that
    matches nothing while a name much like it goes unmatched is a slip.
    """
    roles = opening.roles
    collections: frozenset[str] = frozenset().union(*[top.collections() for top in opening.tops])
    if opening.initializing:
        collections |= {"params"}  # there will be parameters, whatever there is by now
    streams: frozenset[str] = frozenset().union(*[top.rngs for top in opening.tops])
    # Comparing names for likeness is slow, and a model says the same of itself in each call.
    if (collections, streams) in roles.checked:
        return

    loose = [col for col in collections if roles.of(col) is None]
    named = [(row.argument, names_of(row.filter) - collections, loose) for row in roles.rows]
    loose = [stream for stream in streams if roles.split(stream) is None]
    named += [("split_rngs", names_of(which) - streams, loose) for which, _ in roles.streams]
    for argument, missing, near in named:
        for name in missing:
            # High enough for a letter or an ending; names such as cache and batch stay apart.
            hint = did_you_mean(name, near, like=0.75)
            if hint:
                raise UnusedFilterError(
                    f"{opening.place}: {argument} of {roles.lift} names {name!r}, which matches "
                    f"nothing here{hint}"
                )
    roles.checked.add((collections, streams))


def _check_tied(
    opening: Opening, top: Scope, col: str, node: Mapping[str, object], path: Path
) -> None:
    for name, value in node.items():
        here = (*path, name)
        if isinstance(value, dict):
            _check_tied(opening, top, col, value, here)
        elif (col, here) in top.call.made_plain:
            lift = opening.roles.lift
            raise TiedModulesError(
                f"{opening.place}: variable {'/'.join((col, *here))} was made outside the lift "
                f"and would be cut along axis {opening.roles.role(col)} inside it.\n"
                f"found: one module used both inside and outside of {lift}, which "
                f"gives each iteration its own {col!r}\n"
                f"expected: variable_broadcast={col!r} (scan) or "
                f"variable_axes={{{col!r}: None}} (vmap) to keep it shared, or a module of "
                f"its own inside"
            )


def not_a_pair(place: str, out: object) -> BodyReturnError:
    return BodyReturnError(
        f"{place}: the body must return a pair (carry, ys).\n"
        f"found: {kind_of(out)}\n"
        f"expected: return carry, ys; where there is nothing to stack, return carry, None"
    )


def no_carry(place: str) -> CarryError:
    return CarryError(
        f"{place}: called without a carry.\n"
        f"found: no argument by position\n"
        f"expected: (carry, *xs); None for the carry where there is nothing to carry"
    )


def nothing_first(place: str, names: Sequence[str]) -> LengthError:
    return LengthError(
        f"{place}: no iteration makes the first value of a carried variable.\n"
        f"found: {', '.join(names[:4])}, to be made by a loop of no iterations\n"
        f"expected: init over at least one iteration, or the variable made before the loop"
    )


def split_shared(place: str, name: str) -> SplitSharedError:
    """A shared parameter that each iteration would initialise differently."""
    return SplitSharedError(
        f"{place}: {name} is shared along the axis, but stream 'params' is split, so each "
        f"iteration would initialise it differently.\n"
        f"expected: split_rngs={{'params': False}} to share it, or "
        f"variable_axes={{'params': 0}} for one of its own in each iteration"
    )


def depends_on_loop(place: str, name: str, value: object) -> LoopDependentError:
    """What is to be made before a loop, and needs a value of the loop's."""
    return LoopDependentError(
        f"{place}: {name} is declared broadcast but depends on the loop.\n"
        f"found: {describe(value)}, computed from the carry or a scanned value\n"
        f"expected: a value that is the same in each iteration; otherwise stack it "
        f"(variable_axes, out_axes=0) or carry it (variable_carry)"
    )


def carry_error(place: str, what: str, before: str, after: str, hint: str) -> CarryError:
    return CarryError(
        f"{place}: {what} from one iteration to the next.\n"
        f"found: {after} comes out of the body\n"
        f"expected: {before}, as it went in; {hint}"
    )


def checked_carry(at: Placed, before: list[Any], before_def: PyTreeDef, carry: Tree) -> list[Any]:
    """Returns the leaves of the new carry.

    Raises:
      CarryError: it is not like the old one.
    """
    # JAX has this check too, and would show the engine's carry, all variables among it.
    after, after_def = jax.tree.flatten(carry)
    if after_def != before_def:
        old = jax.tree.unflatten(before_def, before)
        path, a, b = _difference(old, carry) or (
            "",
            structure_of(before_def),
            structure_of(after_def),
        )
        raise carry_error(
            at.place,
            f"carry{path} changes its structure",
            a,
            b,
            "return a carry of the same containers as the one that comes in",
        )
    # The path is looked for when it is known that one does not fit: most carries do.
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        if not _fits(old, new):
            tree = jax.tree.unflatten(before_def, range(len(before)))
            path = keystr(tree_leaves_with_path(tree)[i][0])
            raise _changes(at, f"carry{path}", old, new)
    return after


def _fits(old: ArrayLike, new: ArrayLike) -> bool:
    a, b = jax.typeof(old), jax.typeof(new)
    # On explicit axes of a mesh the split is part of the type, and JAX holds the loop to it.
    if a.shape != b.shape or a.sharding.spec != b.sharding.spec:
        return False
    # A weakly typed carry begins in the dtype that the body makes of it.
    return a.dtype == b.dtype or (a.weak_type and jnp.result_type(old, new) == b.dtype)


def _changes(at: Placed, name: str, old: object, new: object) -> CarryError:
    """A leaf that comes out with another shape or dtype, or split in another way."""
    a, b = jax.typeof(old), jax.typeof(new)
    if a.shape == b.shape and a.dtype == b.dtype and a.sharding.spec != b.sharding.spec:
        before, after = (f"{describe(x)} split as {x.sharding.spec}" for x in (a, b))
        hint = (
            "give the layer that returns it out_sharding=, lay it out by jax.sharding.reshard, "
            "or hand in one that is split as it comes out"
        )
        return carry_error(at.place, f"{name} changes its sharding", before, after, hint)
    if a.shape == b.shape:
        hint = "cast it to the dtype that comes in, or hand in the wider one"
    # The last axis is the features of nearly every layer: which argument to change is known.
    elif a.shape[:-1] == b.shape[:-1]:
        hint = (
            f"the residual width is {a.shape[-1]} and the body makes {b.shape[-1]}, "
            f"so set its features to {a.shape[-1]}"
        )
    else:
        hint = "the carry must keep its shape"
    return carry_error(at.place, f"{name} changes", describe(a), describe(b), hint)


def checked_variables(at: Placed, before: Group, written: Group) -> Group:
    """Returns the carried variables: what a body wrote of them, and the others as they were.

    Raises:
      CarryError: it wrote one of another kind.
    """
    after = tuple({**old, **new} for old, new in zip(before, written, strict=True))
    for group, changed in zip(before, after, strict=True):
        for col, node in group.items():
            _check_node(at, (col,), node, changed[col])
    return after


def _check_node(at: Placed, path: Path, old: object, new: object) -> None:
    if isinstance(old, dict) and isinstance(new, dict) and old.keys() == new.keys():
        for name, value in old.items():
            _check_node(at, (*path, name), value, new[name])
    # A variable that was only read is the very object that came in.
    elif old is not new:
        check_variable(at, path, old, new)


def check_variable(at: Placed, path: Path, old: object, new: object) -> None:
    """Raises CarryError where a carried variable comes out as another kind of value."""
    name = f"variable {'/'.join(path)}"
    before_def: PyTreeDef
    before, before_def = jax.tree.flatten(old)
    after, after_def = jax.tree.flatten(new)
    if before_def != after_def:
        raise carry_error(
            at.place,
            f"{name} changes its structure",
            kind_of(old),
            kind_of(new),
            "write a value of the same containers",
        )
    for a, b in zip(before, after, strict=True):
        if not _fits(a, b):
            raise _changes(at, name, a, b)


def _difference(old: Any, new: Any, path: str = "") -> tuple[str, str, str] | None:
    """Finds where two trees first differ: the path there, and what stands there in each."""
    # The first place alone: what differs below or behind it mostly follows from that.
    if type(old) is not type(new):
        return None if _is_leaf(old) and _is_leaf(new) else (path, kind_of(old), kind_of(new))
    if isinstance(old, Mapping):
        if set(old) != set(new):
            return path, kind_of(old), kind_of(new)
        parts = [(f"[{k!r}]", old[k], new[k]) for k in old]
    elif isinstance(old, (list, tuple)):
        if len(old) != len(new):
            return path, kind_of(old), kind_of(new)
        parts = [(f"[{i}]", a, b) for i, (a, b) in enumerate(zip(old, new, strict=True))]
    else:
        return None
    # A generator: what comes after the first difference is not looked at.
    found = (_difference(a, b, path + step) for step, a, b in parts)
    return next((f for f in found if f is not None), None)


def _is_leaf(value: object) -> bool:
    return jax.tree_util.all_leaves((value,))


def kinds(tree: Tree) -> Tree:
    """Returns a tree of shapes and dtypes for traced values: what may be kept of a trace."""

    def kind(leaf: object) -> object:
        # A shape in its place: a tracer would keep all that its trace has made.
        if not isinstance(leaf, jax.core.Tracer):
            return leaf
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)

    return jax.tree.map(kind, tree)


def check_out_axes(at: Placed, y: object, axes: Sequence[Axis], *, shared: Axis) -> None:
    """Checks the axes of a body's outputs.

    Args:
      at: where the lift stands.
      y: the outputs, before they get the axis.
      axes: the axis of each of their leaves.
      shared: what stands for "the same in each iteration": ``broadcast`` or None.

    Raises:
      AxesTreeError: another lift's word for it.
      AxisError: an axis is out of range.
    """
    # 0 and -1 have room in an array of any rank, and most calls have no others.
    if all(axis is shared or _always_fits(axis) for axis in axes):
        return
    word, other = ("nn.broadcast", "None") if shared is broadcast else ("None", "broadcast")
    # Axes of None are leaves here, so the two are paired by position and not as trees.
    for (path, leaf), axis in zip(tree_leaves_with_path(y), axes, strict=True):
        name = f"output{keystr(path)}"
        if axis is shared:
            continue
        if not isinstance(axis, int):
            raise AxesTreeError(
                f"{at.place}: out_axes has {other} for {name}; for a value that is the same in "
                f"each iteration use {word} in its place"
            )
        _check_room(at, axis, Named(name, "out_axes"), leaf)


def check_variable_axes(at: Lifted, groups: Sequence[Group], axes: Sequence[int]) -> None:
    """Raises AxisError where a variable has no room for the axis that it is to be stacked along."""
    for group, axis in zip(groups, axes, strict=True):
        if _always_fits(axis):
            continue
        for collections in group:
            for path, leaf in tree_leaves_with_path(collections):
                _check_room(at, axis, variable(at, path), leaf)


def _always_fits(axis: Axis) -> bool:
    return isinstance(axis, int) and axis in (0, -1)


def _check_room(at: Placed, axis: int, named: Named, leaf: jax.Array) -> None:
    rank = jnp.ndim(leaf) + 1
    if not -rank <= axis < rank:
        what = f"{describe(jax.typeof(leaf))} before it gets the axis"
        raise out_of_range(at, axis, named, what, rank)


def check_apart(opening: Opening, before: Variables, inner: Sequence[Scope]) -> None:
    """Raises MicrobatchError where a part of the batch makes or writes what others have too.

    Args:
      opening: the loop's.
      before: what all layers share and what is carried.
      inner: the scopes of a layer that has run.
    """
    for role in (BROADCAST, CARRY):
        for place, value in flat(opening.written(inner, role)).items():
            # By identity: a variable that was only read is the very value that went in.
            if place not in before or (role == BROADCAST and value is not before[place]):
                raise MicrobatchError(
                    f"{opening.place}: variable {'/'.join(place[1:])} is written by layers that "
                    f"work on different microbatches at the same time.\n"
                    f"found: {'all layers share it' if role == BROADCAST else 'it is new'}\n"
                    f"expected: an axis of layers for collection {place[1]!r}, another run=, or a "
                    f"call in which it is not mutable"
                )
