"""Settings of a run that compiles quickly in the processes that are started for it."""

from __future__ import annotations

from typing import Any

import jax

from liftax.lm.settings import Settings


def _quickly(values: dict[str, Any]) -> Settings:
    jax.config.update("jax_disable_most_optimizations", True)
    return Settings(**values)


class Quick(Settings):
    """Whoever gets them from another process compiles without most optimizations."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _quickly, (vars(self),)
