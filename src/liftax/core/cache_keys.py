"""Keys of caches: equal where values and all their types are."""

from __future__ import annotations

import collections
import contextlib
import types
import weakref
from collections.abc import Hashable, Mapping
from typing import Any

import jax
import numpy as np

from ..errors import StaticArgumentError


def typed(value: Any) -> Hashable:
    """Returns a key that equals another's where the values and all their types agree.

    ``1``, ``1.0`` and ``True`` are equal to Python and hash alike; ``-1`` and
    ``-2`` hash alike. Keys made of types and values keep them apart.

    Raises:
      StaticArgumentError: the value is not hashable.
    """
    kind = type(value)
    if kind in _PLAIN:  # most by far, and the checks below are slow
        return kind, value
    if kind is dict or isinstance(value, Mapping):
        # Without order: dicts compare so.
        return kind, frozenset(zip(value, map(typed, value.values()), strict=True))
    if isinstance(value, (list, tuple, collections.deque, bytearray)):
        return kind, tuple(map(typed, value))
    if isinstance(value, (set, frozenset)):
        return kind, frozenset(map(typed, value))
    if isinstance(value, float):
        # By bits: 0.0 is not -0.0, and a NaN is itself.
        return kind, value.hex()
    if isinstance(value, (jax.Array, np.ndarray)):
        # What is in it may change, for NumPy, or is too much to compare.
        return _Identity(value)
    if hasattr(kind, "_fingerprint"):
        return value._fingerprint()
    if hasattr(kind, "__dataclass_fields__"):
        # By its fields: it may be hashable or not, and compare as equal what is of other types.
        with contextlib.suppress(StaticArgumentError):
            names = kind.__dataclass_fields__
            return kind, tuple(typed(getattr(value, name, None)) for name in names)
    try:
        hash(value)
    except Exception as cause:
        raise StaticArgumentError(
            f"a static argument of type {kind.__name__} is not hashable; pass a tuple "
            f"for a list, or define __hash__ and __eq__"
        ) from cause
    return kind, value


_PLAIN = frozenset((str, int, bool, type(None), type))


def weakly(key: Hashable) -> Hashable:
    """Returns a key like ``key`` that keeps no class and no function alive.

    jax drops what it cached for a function with the function. Where the cache's own
    keys hold the class that holds the function, nothing is ever dropped.
    """
    if type(key) is tuple:
        return tuple(map(weakly, key))
    if type(key) is frozenset:
        return frozenset(map(weakly, key))
    if isinstance(key, (type, types.FunctionType)):
        return weakref.ref(key)
    return key


class _Identity:
    """A key for an array that a module holds: equal to itself alone."""

    def __init__(self, value: object):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)
