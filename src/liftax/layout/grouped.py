"""What belongs together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
Key = TypeVar("Key")


def grouped(items: Iterable[T], key: Callable[[T], Key]) -> dict[Key, list[T]]:
    """Items by what ``key`` says of each: groups and members in the order in which they come.

    Example:
      >>> grouped(['norm', 'dense', 'net'], lambda name: name[0])
      {'n': ['norm', 'net'], 'd': ['dense']}
    """
    groups: dict[Key, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups
