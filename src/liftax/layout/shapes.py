"""Arguments as a user would type them: `f32[8,64]`, `(i32[2], None)`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..module.attach import is_module
from ..pytrees import is_array

_LONGEST = 120


def described(value: object) -> str:
    """A value as one would type it: arrays by dtype and shape, never by their contents.

    Example:
      >>> described({"x": [jax.ShapeDtypeStruct((2, 3), "bfloat16"), None]})
      "{'x': [bf16[2,3], None]}"
    """
    text = _described(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"


def call_text(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    """The arguments of a call, as one would type them: `f32[8,64], train=False`."""
    return ", ".join(
        [*map(described, args), *(f"{name}={described(value)}" for name, value in kwargs.items())]
    )


def _described(value: Any) -> str:
    # Arrays, shapes and tracers alike: the numbers of a tracer are not there to be shown.
    if is_array(value):
        return f"{_short(value.dtype)}[{','.join(map(str, value.shape))}]"
    if isinstance(value, (tuple, list)) and value:
        inside = ", ".join(map(_described, value))
        return f"[{inside}]" if isinstance(value, list) else f"({inside})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_described(v)}" for k, v in value.items()) + "}"
    # Its repr is a page of fields.
    if is_module(value):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 30 else type(value).__name__


def _short(dtype: Any) -> str:
    """`f32` for float32; a dtype of JAX's own by its name."""
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):
        return str(dtype)
    dtype = np.dtype(dtype)
    if dtype.name == "bfloat16":
        return "bf16"
    return f"{dtype.kind}{dtype.itemsize * 8}" if dtype.kind in "fiuc" else str(dtype.name)
