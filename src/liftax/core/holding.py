"""What a function holds on to."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable

import jax
import numpy as np

_PLAIN = (
    *(bool, int, float, complex, str, bytes, type(None), type(...), type, np.dtype, np.generic),
    *(np.ndarray, jax.Array, types.BuiltinFunctionType, types.ModuleType),
)


def may_hold_tracers(value: object, _seen: tuple[object, ...] = ()) -> bool:
    """Tells whether traced values may be within reach of a function or a container.

    What is unknown may hold any. Global names are not looked at: there a tracer is a leak.

    Example:
      >>> may_hold_tracers(lambda key: jax.numpy.zeros(3)), may_hold_tracers(object())
      (False, True)
    """
    if isinstance(value, jax.core.Tracer):
        return True
    if isinstance(value, _PLAIN):
        return False
    if any(value is other for other in _seen):  # a function that calls itself
        return False
    parts: Iterable[object]
    if isinstance(value, types.FunctionType):
        cells = [_content(cell) for cell in value.__closure__ or ()]
        parts = (*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values())
    elif type(value) is functools.partial:
        parts = (value.func, *value.args, *value.keywords.values())
    elif type(value) is tuple or type(value) is list:
        parts = value
    elif type(value) is dict:
        parts = value.values()
    else:
        return True
    return any(may_hold_tracers(part, (*_seen, value)) for part in parts)


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # nothing yet
        return None
