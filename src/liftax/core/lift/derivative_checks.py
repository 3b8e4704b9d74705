"""What the lifted derivatives refuse: outputs, tangents and cotangents that do not fit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import KeyPath, PyTreeDef, keystr, tree_leaves_with_path

from ...errors import DifferentiationError
from ...pytrees import is_array
from ...words import describe, kind_of, names_on
from ..types import Group, Path, Tree
from .crossing import Opening

T = TypeVar("T")


def _is_pair(out: object) -> bool:
    return isinstance(out, (tuple, list)) and len(out) == 2


def check_unreduced(reduce_axes: Sequence[object], lift: str) -> None:
    """Raises DifferentiationError for an argument that JAX once had."""
    if tuple(reduce_axes):
        raise DifferentiationError(
            f"{lift}: reduce_axes is no longer supported by JAX; reduce the cotangents with "
            f"jax.lax.psum after {lift}"
        )


def with_aux(opening: Opening, y: T) -> T:
    """Returns what a function with ``has_aux`` returned, if it is a pair."""
    who = "with has_aux=True the function must return a pair (y, aux)"
    return _pair(opening, y, who, "return y, aux; or has_aux=False")


def with_residuals(opening: Opening, out: T) -> T:
    """Returns what ``forward_fn`` of a `custom_vjp` returned, if it is a pair."""
    who = "forward_fn must return a pair (y, residuals)"
    return _pair(opening, out, who, "return y, residuals; the residuals go to backward_fn")


def _pair(opening: Opening, out: T, who: str, expected: str) -> T:
    if not _is_pair(out):
        raise DifferentiationError(
            f"{opening.place}: {who}.\nfound: {kind_of(out)}\nexpected: {expected}"
        )
    return out


def check_scalar(opening: Opening, y: Any) -> None:
    """Raises DifferentiationError where there is no one number to differentiate."""
    if isinstance(y, (tuple, list, Mapping)) or y is None or jnp.shape(y) != ():
        aux = "; for a second value that is not differentiated, has_aux=True" * _is_pair(y)
        raise DifferentiationError(
            f"{opening.place}: the function must return a scalar.\n"
            f"found: {kind_of(y)}\n"
            f"expected: one number, e.g. y.sum(); nn.vjp differentiates arrays{aux}"
        )


def check_real(opening: Opening, values: Tree, name: str) -> None:
    """Raises DifferentiationError where there is no matrix of derivatives to be had.

    Args:
      values: the inputs, or the outputs.
      name: what they are, for the message.
    """
    leaves = tree_leaves_with_path(values)
    for path, leaf in leaves:
        dtype = leaf.dtype if is_array(leaf) else np.asarray(leaf).dtype
        if not jnp.issubdtype(dtype, jnp.floating):
            raise DifferentiationError(
                f"{opening.place}: {name}{keystr(path)} has no derivatives.\n"
                f"found: {kind_of(leaf)}\n"
                f"expected: real numbers; hand in what is none by the function, as "
                f"lambda mdl, x: fn(mdl, x, ids), and return it by has_aux=True"
            )
    if not leaves:
        raise DifferentiationError(
            f"{opening.place}: {name} has no arrays.\n"
            f"found: {kind_of(values)}\n"
            f"expected: at least one array of real numbers"
        )


def check_cotangent(place: str, y_bar: object, cause: Exception) -> None:
    """Raises DifferentiationError where JAX has refused a cotangent that does not fit."""
    # JAX's words for a cotangent that it refuses. Any other error is the rule's own.
    if "vjp function" in str(cause).lower():
        wanted = re.search(r"expected (\w+\[[\d,]*\])", str(cause))
        raise DifferentiationError(
            f"{place}: the cotangent given to vjp_fn does not fit the output.\n"
            f"found: {kind_of(y_bar)}\n"
            f"expected: {wanted[1] if wanted else 'the structure of the output'}, as fn returned"
        ) from cause


def check_named(opening: Opening, values: Group, given: Sequence[Mapping[str, object]]) -> None:
    """Raises DifferentiationError where tangents are given for what is no variable."""
    if len(given) != len(opening.tops):
        raise DifferentiationError(
            f"{opening.place}: variable_tangents expected one dict of collections for each of "
            f"{len(opening.tops)} scopes; found {len(given)}"
        )
    # In init there is nothing yet that a name could stand for.
    if opening.initializing:
        return
    for group, tangents in zip(values, given, strict=True):
        _check_names(opening, (), group, tangents)


def _check_names(opening: Opening, path: Path, node: object, tangent: object) -> None:
    if not (isinstance(node, Mapping) and isinstance(tangent, Mapping)):
        return
    for name, part in tangent.items():
        if name in node:
            _check_names(opening, (*path, name), node[name], part)
        elif not isinstance(part, Mapping) or part:
            kind = "variable" if path else "collection"
            raise DifferentiationError(
                f"{opening.place}: variable_tangents has {'/'.join((*path, name))!r}, which "
                f"is no {kind} here; there are {', '.join(map(repr, list(node)[:8])) or 'none'}"
            )


Inputs = tuple[Sequence[Tree], tuple[Tree, ...]]
"""The variables that have tangents, and the primals; or the tangents of both."""


def checked_jvp(
    opening: Opening, fn: Callable[..., T], given: Inputs, moves: Inputs
) -> tuple[T, Any]:
    """Calls `jax.jvp`.

    Raises:
      DifferentiationError: JAX has refused tangents that do not fit.
    """
    try:
        y, y_dot = jax.jvp(fn, given, moves)
    except (TypeError, ValueError) as cause:
        _check_tangents(opening, given, moves, cause)
        raise
    return y, y_dot


def _check_tangents(opening: Opening, given: Inputs, moves: Inputs, cause: Exception) -> None:
    (variables, primals), (directions, tangents) = given, moves
    if len(primals) != len(tangents):
        raise DifferentiationError(
            f"{opening.place}: there are {len(primals)} primals and {len(tangents)} tangents; "
            f"give one tangent for each primal"
        ) from cause
    # Only when JAX has refused: it takes more than could be checked here, and what it takes is
    # right.
    pairs = [(f"tangents[{i}]", *pair) for i, pair in enumerate(zip(primals, tangents))]  # noqa: B905
    for name, old, new in [*pairs, ("variable_tangents", variables, directions)]:
        # JAX has refused one of them; which, and by what name the user knows it, is found here.
        found = _misfit(old, new)
        if found is not None:
            path, got, want = found
            at = f" for {'/'.join(names_on(path[1:]))}" if old is variables else keystr(path)
            raise DifferentiationError(
                f"{opening.place}: {name}{at} does not fit.\n"
                f"found: {got}\n"
                f"expected: {want}, as what it is the tangent of"
            ) from cause


def _misfit(old: Tree, new: Tree) -> tuple[KeyPath, str, str] | None:
    """Finds where two trees differ: the path, what is there in the new and in the old one."""
    before: PyTreeDef
    before, after = jax.tree.structure(old), jax.tree.structure(new)
    if before != after:
        return (), kind_of(new), kind_of(old)
    for (path, a), b in zip(tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        a, b = jax.typeof(a), jax.typeof(b)
        # An integer has a tangent as well, of the dtype float0.
        if (a.shape, a.to_tangent_aval().dtype) != (b.shape, b.dtype):
            return path, describe(b), describe(a.to_tangent_aval())
    return None


# --- custom_vjp ---------------------------------------------------------------


def with_variables(place: str, out: T, arguments: int) -> T:
    """Returns what ``backward_fn`` returned, if it has one cotangent for each argument."""
    if not isinstance(out, (tuple, list)) or len(out) != 1 + arguments:
        n = f"{arguments} argument{'s' * (arguments != 1)}"
        raise DifferentiationError(
            f"{place}: backward_fn must return (variables_bar, *args_bar): the cotangents of the "
            f"variables and of {n}.\n"
            f"found: {kind_of(out)}\n"
            f"expected: tuple of {1 + arguments} values, the variables' cotangents first, e.g. "
            f"{{'params': ...}}"
        )
    return out


def check_cotangents(
    place: str, given: tuple[Group, Sequence[Tree]], bars: tuple[Sequence[Tree], Sequence[Tree]]
) -> None:
    """Raises DifferentiationError where cotangents do not fit what they belong to."""
    (variables, args), (variables_bar, args_bar) = given, bars
    for group, bar in zip(variables, variables_bar, strict=True):
        found = _unlike(group, bar, ())
        if found is not None:
            path, got, want = found
            name = "/".join(path) or "the variables"
            raise _wrong_bar(place, f"the cotangent of {name}", got, want)
    for i, (arg, bar) in enumerate(zip(args, args_bar, strict=True)):
        # Of other containers JAX compares the structure, and says so well enough.
        if isinstance(arg, Mapping) or jax.tree_util.all_leaves((arg,)):
            found = _unlike(arg, bar, ())
            if found is not None:
                raise _wrong_bar(
                    place, f"args_bar[{i}], the cotangent of an argument", found[1], found[2]
                )


def _unlike(value: Any, bar: object, path: Path) -> tuple[Path, str, str] | None:
    if bar is None:
        return None  # no cotangent is a cotangent of zero
    if isinstance(value, Mapping):
        if not isinstance(bar, Mapping):
            return path, kind_of(bar), kind_of(value)
        for name, part in value.items():
            if name not in bar:
                return (*path, name), "nothing", kind_of(part)
            found = _unlike(part, bar[name], (*path, name))
            if found is not None:
                return found
        more = [name for name in bar if name not in value]
        return ((*path, more[0]), kind_of(bar[more[0]]), "nothing") if more else None
    if jax.tree_util.all_leaves((value,)) and jnp.shape(value) != getattr(bar, "shape", ()):
        return path, kind_of(bar), kind_of(value)
    return None


def _wrong_bar(place: str, name: str, found: str, expected: str) -> DifferentiationError:
    return DifferentiationError(
        f"{place}: backward_fn: {name} does not fit.\n"
        f"found: {found}\n"
        f"expected: {expected}, as what it is the cotangent of"
    )
