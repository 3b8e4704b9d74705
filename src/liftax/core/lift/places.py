"""Variables by place: as lifts compare, carry and name them one by one.

A group is nested dicts, one for each opened scope. By place it is one flat dict, in which what a
body made is found by comparing keys, and what it wrote by comparing values by identity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..types import Group

Place = tuple[int, str, *tuple[str, ...]]
"""Where a variable lies among opened scopes: (which scope, collection, *names)."""

Variables = dict[Place, object]
"""Variables by place, as a loop carries them."""


def flat(group: Group) -> Variables:
    """Returns the variables of a group by place."""
    found: Variables = {}
    for top, collections in enumerate(group):
        for col, node in collections.items():
            _find((top, col), node, found)
    return found


def _find(place: Place, node: object, found: Variables) -> None:
    # An empty dict has a place too: a variable may be one, and must come out again.
    if isinstance(node, dict) and node:
        for name, value in node.items():
            _find((*place, name), value, found)
    else:
        found[place] = node


def nested(places: Mapping[Place, object], scopes: int) -> Group:
    """Undoes `flat`."""
    group: Group = tuple([{} for _ in range(scopes)])
    for (top, *names), value in places.items():
        node: dict[str, Any] = group[top]
        *above, last = names
        for name in above:
            node = node.setdefault(name, {})
        # A variable that is an empty dict: a new one, which what is below it may fill.
        node[last] = {} if type(value) is dict else value
    return group


def without(group: Group, places: Iterable[Place]) -> Group:
    """Returns a group less the variables at some places."""
    left = flat(group)
    for place in places:
        left.pop(place, None)
    return nested(left, len(group))


def rewritten(after: Group, before: Mapping[Place, object]) -> Variables:
    """Returns what a body wrote, by place: what is not the very value that stood there before."""
    missing = object()
    return {
        place: value
        for place, value in flat(after).items()
        if len(place) > 2 and value is not before.get(place, missing)
    }


def name_of(place: Place) -> str:
    """Names a variable in messages."""
    return "variable " + "/".join(map(str, place[1:]))
