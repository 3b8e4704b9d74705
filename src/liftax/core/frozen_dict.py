"""flax's FrozenDict and the functions around it, where flax is installed; liftax needs none."""

from __future__ import annotations

import importlib
from typing import Any

from ..absent import refusal

NAMES = ("FrozenDict", "copy", "freeze", "pop", "pretty_repr", "unfreeze")
__all__ = [*NAMES]


def __getattr__(name: str) -> Any:
    if name in NAMES:
        try:
            return getattr(importlib.import_module("flax.core.frozen_dict"), name)
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "flax":
                raise
            raise AttributeError(
                f"{__name__}.{name} is flax's own, and flax is not installed. Plain dicts go in "
                f"and come out of liftax, so it is rarely needed; pip install flax otherwise"
            ) from None
    raise refusal(__name__, name, NAMES)
