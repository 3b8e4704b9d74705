"""What flax.core calls by other names: types of variables, filters and their algebra."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import jax

from .boxes import AxisMetadata
from .filters import CollectionFilter as CollectionFilter
from .filters import Filter, group, names_of
from .filters import in_filter as in_filter
from .filters import intersect as intersect_filters
from .filters import subtract as subtract_filters
from .filters import union as union_filters
from .roles import In, Out

__all__ = [
    "Array",
    "CollectionFilter",
    "FrozenVariableDict",
    "InOutAxis",
    "InOutScanAxis",
    "LogicalNames",
    "MutableVariableDict",
    "PRNGSequenceFilter",
    "RNGSequences",
    "TAxisMetadata",
    "VariableDict",
    "filter_to_set",
    "group_collections",
    "in_filter",
    "intersect_filters",
    "is_filter_empty",
    "subtract_filters",
    "union_filters",
]

Array = jax.Array
Collection = Mapping[str, object]
VariableDict = Mapping[str, Collection]
FrozenVariableDict = VariableDict
MutableVariableDict = dict[str, dict[str, object]]
RNGSequences = dict[str, jax.Array]
PRNGSequenceFilter = Filter
LogicalNames = tuple[str | None, ...]
InOutAxis = int | None | In | Out
InOutScanAxis = int | In | Out
TAxisMetadata = TypeVar("TAxisMetadata", bound="AxisMetadata[Any]")


def group_collections(
    xs: VariableDict, col_filters: Sequence[CollectionFilter]
) -> Sequence[MutableVariableDict]:
    """Sorts collections by the first filter that names them.

    Example:
      >>> group_collections({'params': {'w': 1}, 'cache': {}}, ['params', True])
      ({'params': {'w': 1}}, {'cache': {}})
    """
    groups = group(xs, col_filters)
    return tuple({col: xs[col] for col in names} for names in groups)  # type: ignore[misc]


def is_filter_empty(filter_like: Filter) -> bool:
    """Tells whether a filter has no name at all.

    Example:
      >>> is_filter_empty([]), is_filter_empty('params')
      (True, False)
    """
    if isinstance(filter_like, bool):
        return not filter_like
    # A DenyList has names without end, whatever it denies.
    return isinstance(filter_like, (list, tuple, set, frozenset)) and not filter_like


def filter_to_set(x: Filter) -> set[str]:
    """Returns the names that a filter spells out.

    Example:
      >>> filter_to_set('params')
      {'params'}
    """
    return set(names_of(x))
