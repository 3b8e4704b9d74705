"""Values, types, paths and sources put in words, for every message."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def describe(value: Any) -> str:
    """Names a value by type, dtype and shape, never by its contents.

    Example:
      >>> import numpy as np
      >>> describe(np.zeros((2, 3)))
      'float64[2,3]'
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return type(value).__name__
    return f"{dtype}[{','.join(map(str, shape))}]"


def shown(value: Any) -> str:
    """Shows an option's value: what it is if it is short and plain, else as `describe` does.

    Example:
      >>> import jax
      >>> shown('yes'), shown((2, 0.5)), shown(jax.numpy.zeros((2, 3)))
      ("'yes'", '(2, 0.5)', 'float32[2,3]')
    """
    plain = (str, int, float, type(None))
    parts = value if isinstance(value, (tuple, list)) else (value,)
    text = repr(value) if all(isinstance(part, plain) for part in parts) else ""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return text if 0 < len(text) <= 60 else describe(value)


def kind_of(value: Any) -> str:
    """Names a value by its container, or by its dtype and shape; never by its contents."""
    if value is None:
        return "None"
    if isinstance(value, Mapping):
        keys = ", ".join(map(repr, list(value)[:8]))
        return f"{type(value).__name__} with keys {keys}" if value else "an empty dict"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} of {len(value)} value{'s' * (len(value) != 1)}"
    return describe(value)


def _structure(treedef: Any) -> str:
    text = str(treedef).removeprefix("PyTreeDef(").removesuffix(")")
    return text if len(text) <= 120 else text[:117] + "..."


def names_on(path: Any) -> list[str]:
    """Returns the names on a path of JAX's, as text."""
    return [str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path]
