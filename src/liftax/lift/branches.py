"""Lifted branches: cond and switch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.filters import Filter
from ..core.pack import Group, Opening
from ..core.rngs import describe
from ..core.roles import THROUGH, through_roles
from ..errors import BranchError, ConditionError
from .invariants import Birth, Loop, Marks, trace_loop
from .looperrors import kind_of


def cond(
    pred: Any,
    true_fun: Callable[..., Any],
    false_fun: Callable[..., Any],
    scope: Any,
    *operands: Any,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`liftax.cond` over functions of a scope: ``fun(scope, *operands)``.

    Example:
      >>> from liftax.core import apply, lift
      >>> def double(scope, x): return x * 2
      >>> def negate(scope, x): return -x
      >>> float(apply(lambda s, p, x: lift.cond(p, double, negate, s, x))({}, True, 3.0))
      6.0
    """
    opening = Opening(through_roles("cond", variables, rngs), scope, true_fun)
    if not _is_scalar(pred, np.generic):
        raise ConditionError(
            f"{opening.place}: pred must be a scalar: one bool for all.\n"
            f"found: {kind_of(pred)}\n"
            f"expected: bool[], e.g. by .all() or .any(); jnp.where chooses value by value"
        )

    def select(branches: Sequence[Callable[..., Any]], *args: Any) -> Any:
        return jax.lax.cond(pred, *branches, *args)

    return _branch(opening, select, [true_fun, false_fun], operands)


def switch(
    index: Any,
    branches: Sequence[Callable[..., Any]],
    scope: Any,
    *operands: Any,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`liftax.switch` over functions of a scope: ``branch(scope, *operands)``.

    Example:
      >>> from liftax.core import apply, lift
      >>> branches = [lambda scope, x: x * 2, lambda scope, x: -x]
      >>> float(apply(lambda s, i, x: lift.switch(i, branches, s, x))({}, 1, 3.0))
      -3.0
    """
    if not branches:
        raise BranchError("switch: branches is empty; expected at least one function")
    opening = Opening(through_roles("switch", variables, rngs), scope, branches[0])
    if not _is_scalar(index, np.integer):
        raise ConditionError(
            f"{opening.place}: index must be a scalar of an integer type: one branch for all.\n"
            f"found: {kind_of(index)}\n"
            f"expected: int32[] from 0 to {len(branches) - 1}"
        )

    def select(chosen: Sequence[Callable[..., Any]], *args: Any) -> Any:
        return jax.lax.switch(index, chosen, *args)

    return _branch(opening, select, list(branches), operands)


def _is_scalar(value: Any, dtype: type) -> bool:
    if isinstance(value, (bool, int, float)):
        return bool(np.issubdtype(type(value), dtype))
    found = getattr(value, "dtype", None)
    return found is not None and np.shape(value) == () and bool(jnp.issubdtype(found, dtype))


def _branch(
    opening: Opening,
    select: Callable[..., Any],
    functions: list[Callable[..., Any]],
    operands: tuple[Any, ...],
) -> Any:
    keys = opening.keys(False)
    values = opening.values(THROUGH)
    if opening.can_write(THROUGH):
        return _traced(opening, select, functions, operands, values, keys)

    returned: dict[int, Any] = {}

    def pure(i: int, fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(*operands: Any) -> Any:
            inner = opening.enter([values], [keys])
            y = returned[i] = opening.call(fn, inner, operands, {})
            opening.close(inner)
            return y

        return run

    try:
        return select([pure(i, fn) for i, fn in enumerate(functions)], *operands)
    except TypeError as cause:
        if len(returned) == len(functions):
            _check_same(opening, [returned[i] for i in range(len(functions))], cause)
        raise


class _Branch:
    """One branch, traced: what it makes, writes and returns."""

    loop: Loop
    y_def: Any
    y_avals: list[Any]
    y: Any
    written: dict[tuple[Any, ...], Any]
    values: dict[tuple[Any, ...], Any]

    def __init__(self) -> None:
        self.marks = Marks()

    def births(self) -> dict[tuple[Any, ...], Birth]:
        return {(b.top, b.col, b.path): b for b in self.marks.births}


def _traced(
    opening: Opening,
    select: Callable[..., Any],
    functions: list[Callable[..., Any]],
    operands: tuple[Any, ...],
    values: Group,
    keys: Group,
) -> Any:
    """Traces each branch once, so that all of them return the same variables.

    A variable that some branches make and others don't is made before the
    branches, in any case; those that make it go on from there.
    """
    traced = []
    leaves, treedef = jax.tree.flatten(operands)
    for fn in functions:
        traced.append(_trace(opening, fn, leaves, treedef, values, keys))
    _check_same(opening, [branch.y for branch in traced])
    common = set.intersection(*(set(b.births()) for b in traced))
    early: dict[tuple[Any, ...], list[Any]] = {}
    for branch in traced:
        made = iter(branch.loop.first(leaves, []))
        for place, birth in branch.births().items():
            found = [next(made) for _ in birth.marks]
            if place not in common:
                early.setdefault(place, found)
    places = sorted({p for b in traced for p in b.written}, key=repr)

    def run(branch: _Branch) -> Callable[..., Any]:
        def call(leaves: list[Any], early: list[list[Any]]) -> Any:
            start = dict(zip(early_places, early, strict=True))
            made = iter(branch.loop.first(leaves, []))
            births: list[Any] = []
            for place, birth in branch.births().items():
                own = [next(made) for _ in birth.marks]
                births += start.get(place, own)
            _, _, out = branch.loop.step([], leaves, births, [])
            n = len(branch.y_avals)
            after = dict(zip(branch.written, _split(out[n:], branch.written), strict=True))
            written = []
            for place in places:
                if place in after:
                    written.append(after[place])
                elif place in start:
                    written.append(start[place])
                else:
                    written.append(jax.tree.leaves(_at(values, place)))
            return out[:n], written

        return call

    early_places = list(early)
    try:
        y, written = select([run(b) for b in traced], leaves, list(early.values()))
    except TypeError as cause:
        for top, col, path in places:
            name = f"variable {'/'.join((col, *path))}"
            stands = [b.values[top, col, path] for b in traced if (top, col, path) in b.values]
            if len(stands) < len(traced) and _stands(values, (top, col, path)):
                stands.append(_at(values, (top, col, path)))
            _check_same(opening, stands, cause, name)
        raise
    treedefs = {p: b.written[p] for b in traced for p in b.written}
    group: Group = tuple({} for _ in opening.tops)
    for place, found in zip(places, written, strict=True):
        top, col, path = place
        node = group[top].setdefault(col, {})
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = jax.tree.unflatten(treedefs[place], found)
    opening.write_back(group)
    return jax.tree.unflatten(traced[0].y_def, y)


def _trace(
    opening: Opening, fn: Any, leaves: list[Any], treedef: Any, values: Group, keys: Group
) -> _Branch:
    branch = _Branch()

    def body(carry: list[Any], x: list[Any]) -> Any:
        inner = opening.enter([values], [keys])
        for i, scope in enumerate(inner):
            scope._root.on_birth = _marker(branch.marks, opening, i)
        y = opening.call(fn, inner, jax.tree.unflatten(treedef, carry), {})
        branch.y = y
        y_leaves, branch.y_def = jax.tree.flatten(y)
        y_leaves = [jnp.asarray(leaf) for leaf in y_leaves]
        branch.y_avals = [jax.typeof(leaf) for leaf in y_leaves]
        branch.written = {}
        out = []
        branch.values = _written(opening, inner, values)
        for place, value in branch.values.items():
            found, branch.written[place] = jax.tree.flatten(value)
            out += found
        opening.close(inner)
        return [], [], [*y_leaves, *out], []

    branch.loop = trace_loop(body, leaves, [], branch.marks, str, opening.place)
    return branch


def _marker(marks: Marks, opening: Opening, top: int) -> Callable[..., Any]:
    depth = len(opening.tops[top].path)

    def on_birth(col: str, path: tuple[str, ...], value: Any, late: bool) -> Any:
        if isinstance(value, dict):  # what a lift inside the branch made, all at once
            return {k: on_birth(col, (*path, k), v, late) for k, v in value.items()}
        return marks.birth(True, top, col, path[depth:], value)

    return on_birth


def _written(opening: Opening, inner: Any, before: Group) -> dict[tuple[Any, ...], Any]:
    """Returns what a branch made or changed: (top, collection, path) -> value."""
    found: dict[tuple[Any, ...], Any] = {}

    def walk(top: int, col: str, path: tuple[str, ...], after: Any, old: Any) -> None:
        if isinstance(after, dict):
            for name, value in after.items():
                below = old.get(name) if isinstance(old, dict) else None
                walk(top, col, (*path, name), value, below)
        elif after is not old:
            found[top, col, path] = after

    for top, collections in enumerate(opening.written(inner, THROUGH)):
        for col, node in collections.items():
            walk(top, col, (), node, before[top].get(col, {}))
    return found


def _at(group: Group, place: tuple[Any, ...]) -> Any:
    top, col, path = place
    node = group[top][col]
    for name in path:
        node = node[name]
    return node


def _split(leaves: list[Any], treedefs: dict[Any, Any]) -> list[list[Any]]:
    values = iter(leaves)
    return [[next(values) for _ in range(d.num_leaves)] for d in treedefs.values()]


def _stands(group: Group, place: tuple[Any, ...]) -> bool:
    try:
        _at(group, place)
    except KeyError:
        return False
    return True


def _check_same(
    opening: Opening, values: list[Any], cause: Exception | None = None, name: str = ""
) -> None:
    """Raises BranchError where the branches make different kinds of values.

    Args:
      opening: for the place.
      values: what each branch returns, or leaves in a variable.
      cause: JAX's own error, where it has noticed first.
      name: the variable; empty for what is returned.
    """
    does, ends = ("leave", f" in {name}") if name else ("return", "")
    first: Any
    leaves, first = jax.tree.flatten(values[0])
    for i, value in enumerate(values[1:], 1):
        others, other = jax.tree.flatten(value)
        if other != first:
            raise BranchError(
                f"{opening.place}: the branches {does} different structures{ends}.\n"
                f"found: {kind_of(value)} from branch {i}\n"
                f"expected: {kind_of(values[0])}, as branch 0 {does}s"
            ) from cause
        for a, b in zip(map(jax.typeof, leaves), map(jax.typeof, others), strict=True):
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise BranchError(
                    f"{opening.place}: the branches {does} different arrays{ends}.\n"
                    f"found: {describe(b)} from branch {i}\n"
                    f"expected: {describe(a)}, as branch 0 {does}s"
                ) from cause
