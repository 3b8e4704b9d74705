"""flax's FrozenDict and the functions around it, where flax is installed; liftax needs none."""

from __future__ import annotations

from typing import Any

from ..absent import flaxs_own, refusal

NAMES = ("FrozenDict", "copy", "freeze", "pop", "pretty_repr", "unfreeze")
__all__ = [*NAMES]


def __getattr__(name: str) -> Any:
    if name in NAMES:
        instead = (
            "Plain dicts go in and come out of liftax, so it is rarely needed; pip install flax "
            "otherwise"
        )
        return flaxs_own(__name__, name, "flax.core.frozen_dict", instead)
    raise refusal(__name__, name, NAMES)
