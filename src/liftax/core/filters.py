"""Collection filters: a small algebra of sets of names.

A filter is ``True`` (every name), ``False`` (none), one name, a container of
names, or :class:`DenyList` (every name that another filter does not have).
The same filters name rng streams.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable

from ..errors import InvalidFilterError


@dataclasses.dataclass(frozen=True, eq=True)
class DenyList:
    """Every name except those that ``deny`` names.

    Example:
      >>> in_filter(DenyList('params'), 'cache'), in_filter(DenyList('params'), 'params')
      (True, False)
    """

    deny: Filter


Filter = bool | str | Collection[str] | DenyList
CollectionFilter = Filter


def in_filter(filter_like: Filter, name: str) -> bool:
    """Tells whether a filter has ``name``.

    Raises:
      InvalidFilterError: ``filter_like`` is no filter.

    Example:
      >>> in_filter(['params', 'cache'], 'cache')
      True
    """
    if isinstance(filter_like, str):
        return name == filter_like
    if isinstance(filter_like, bool):
        return filter_like
    if isinstance(filter_like, DenyList):
        return not in_filter(filter_like.deny, name)
    if isinstance(filter_like, Collection):
        return name in filter_like
    raise InvalidFilterError(
        f"a filter is a bool, a name, a container of names or a DenyList; "
        f"found {type(filter_like).__name__}"
    )


def check_filter(filter_like: object, argument: str) -> None:
    """Raises InvalidFilterError, naming ``argument``, where no filter was given."""
    # When a lift is made: `in_filter` is asked for each variable, and looks at less.
    inner = filter_like
    while isinstance(inner, DenyList):
        inner = inner.deny
    names = inner if isinstance(inner, Collection) else [inner]
    if not isinstance(inner, bool) and not all(isinstance(name, str) for name in names):
        raise InvalidFilterError(
            f"{argument}: expected a bool, a name, a container of names or a DenyList; "
            f"found {type(inner).__name__}"
        )


def names_of(filter_like: Filter) -> frozenset[str]:
    """Returns the names that a filter spells out (none for ``True`` or a DenyList)."""
    if isinstance(filter_like, str):
        return frozenset((filter_like,))
    if isinstance(filter_like, (bool, DenyList)):
        return frozenset()
    return frozenset(filter_like)


def union(a: Filter, b: Filter) -> Filter:
    """Returns a filter with the names of either.

    Example:
      >>> union('params', 'cache') == {'params', 'cache'}
      True
    """
    if a is True or b is True:
        return True
    if a is False:
        return b
    if b is False:
        return a
    if isinstance(a, DenyList):
        # Everything but `a.deny`, and `b` besides: what is in `b` is denied no more.
        return DenyList(subtract(a.deny, b))
    if isinstance(b, DenyList):
        return DenyList(subtract(b.deny, a))
    return set(names_of(a) | names_of(b))


def intersect(a: Filter, b: Filter) -> Filter:
    """Returns a filter with the names that both have.

    Example:
      >>> intersect(['params', 'cache'], DenyList('cache')) == {'params'}
      True
    """
    if a is True:
        return b
    if b is True:
        return a
    if a is False or b is False:
        return False
    if isinstance(a, DenyList):
        if isinstance(b, DenyList):
            # Each denies for both.
            return DenyList(union(a.deny, b.deny))
        return subtract(b, a.deny)
    if isinstance(b, DenyList):
        return subtract(a, b.deny)
    return set(names_of(a) & names_of(b))


def subtract(a: Filter, b: Filter) -> Filter:
    """Returns a filter with the names of ``a`` that ``b`` lacks.

    Example:
      >>> subtract(True, 'params')
      DenyList(deny='params')
    """
    if b is False or a is False:
        return a
    if b is True:
        return False
    if a is True:
        # All, less all but some: those are left.
        return b.deny if isinstance(b, DenyList) else DenyList(b)
    if isinstance(a, DenyList):
        if isinstance(b, DenyList):
            # What ``b`` denies is all that it leaves, but for what ``a`` denies itself.
            return subtract(b.deny, a.deny)
        return DenyList(union(a.deny, b))
    return {name for name in names_of(a) if not in_filter(b, name)}


def group(names: Iterable[str], filters: Iterable[Filter]) -> list[list[str]]:
    """Sorts names by the first filter that has them.

    Example:
      >>> group(['params', 'cache', 'stats'], ['params', True])
      [['params'], ['cache', 'stats']]
    """
    left, groups = list(names), []
    for filter_like in filters:
        groups.append([name for name in left if in_filter(filter_like, name)])
        left = [name for name in left if not in_filter(filter_like, name)]
    return groups
