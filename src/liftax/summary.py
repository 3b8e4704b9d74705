"""The address that flax.linen has for tables of a model."""

from __future__ import annotations

from typing import Any

from .absent import refusal
from .module.summary import tabulate as tabulate


def __getattr__(name: str) -> Any:
    raise refusal(__name__, name, ["tabulate"])
