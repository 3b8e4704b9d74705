"""The address that flax.linen has for products in eight bits, which are not here."""

from __future__ import annotations

from typing import Any

from .absent import refusal


def __getattr__(name: str) -> Any:
    raise refusal(__name__, name, [])
