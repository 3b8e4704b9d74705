"""Trees of carried and shared variables in a loop: compared, completed, written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..core.pack import Group, Opening
from .axes import Placed
from .invariants import Birth, Marks
from .looperrors import check_variable


def updated(before: Any, after: Any) -> Any:
    """Returns ``before`` with the values of ``after`` where there are any."""
    if isinstance(before, tuple):
        return tuple(updated(b, a) for b, a in zip(before, after, strict=True))
    if isinstance(before, dict) and isinstance(after, dict):
        return {k: updated(v, after[k]) if k in after else v for k, v in before.items()}
    return after


def created(after: Any, before: Any) -> bool:
    """Tells whether ``after`` has a name that ``before`` lacks."""
    if isinstance(after, tuple):
        return any(created(a, b) for a, b in zip(after, before, strict=True))
    if not (isinstance(after, dict) and isinstance(before, dict)):
        return False
    return any(k not in before or created(v, before[k]) for k, v in after.items())


def changed(after: Any, before: Any, marks: Marks) -> Any:
    """Returns what the body wrote to ``before``, but for the births that it left alone."""
    if isinstance(after, tuple):
        return tuple(changed(a, b, marks) for a, b in zip(after, before, strict=True))
    found = {}
    for key, value in after.items():
        old = before.get(key, None)
        if isinstance(value, dict):
            part = changed(value, old if isinstance(old, Mapping) else {}, marks)
            if part:
                found[key] = part
        elif value is not old and not marks.stands_on(value):
            found[key] = value
    return found


def written_first(opening: Opening, marks: Marks, carried: bool, leaves: list[Any]) -> list[Any]:
    """Writes the births' initial values to the scopes outside; returns what stands there."""
    values, found = iter(leaves), []
    for birth in marks.births:
        if birth.carried != carried:
            continue
        value = jax.tree.unflatten(birth.treedef, [next(values) for _ in birth.marks])
        top = opening.tops[birth.top]
        node: Any = value
        for name in reversed(birth.path[1:]):
            node = {name: node}
        top._root.late = birth.late
        top.put_variable(birth.col, birth.path[0], node)
        top._root.late = False
        node = top._own(birth.col)
        for name in birth.path:
            node = node[name]
        found += jax.tree.leaves(node)
    return found


def final_of(scope: Any, birth: Birth, at: Placed) -> list[Any]:
    """Returns the value, at the end of the body, of a variable born in it."""
    node = scope._nodes[birth.col]
    for name in birth.path:
        node = node[name]
    if node is not birth.first:
        check_variable(at, (birth.col, *birth.path), birth.first, node)
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(node)]


def with_births(group: Group, births: Iterable[Birth], leaves: Iterable[Any]) -> Group:
    """Puts the values of births, given as their leaves, among other variables."""
    values = iter(leaves)
    for birth in births:
        value = jax.tree.unflatten(birth.treedef, [next(values) for _ in birth.marks])
        node = group[birth.top].setdefault(birth.col, {})
        for name in birth.path[:-1]:
            node = node.setdefault(name, {})
        node[birth.path[-1]] = value
    return group


def writable(opening: Opening, group: Group) -> Group:
    """Leaves out the collections that may not be written in this call."""
    return tuple(
        {c: v for c, v in collections.items() if top._root.is_mutable(c)}
        for top, collections in zip(opening.tops, group, strict=True)
    )


def strengthened(before: list[Any], after: list[Any]) -> list[Any] | None:
    """Returns the carry in the dtypes that the body makes of it, None if they agree."""
    kept = [
        old if jax.typeof(old).dtype == new.dtype else jnp.asarray(old, new.dtype)
        for old, new in zip(before, after, strict=True)
    ]
    return None if all(a is b for a, b in zip(kept, before, strict=True)) else kept
