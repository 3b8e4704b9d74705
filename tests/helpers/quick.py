"""Programs that LLVM optimises nothing of, here and in processes that are started for a run."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import jax

from liftax.lm.settings import Settings

# The second says nothing to a CPU. But JAX knows programs by it, so what is compiled so is never
# met where bits are compared, and still there for whoever compiles quickly next.
_SETTINGS = {"jax_disable_most_optimizations": True, "jax_pgle_profiling_runs": 1}

# Compiler options: fusions by the emitters that users have, where `conftest.py` asks for those
# before, which may round one otherwise in one program than in another that computes the same.
FUSED = {"xla_backend_extra_options": ""}


@contextlib.contextmanager
def quickly() -> Iterator[None]:
    """LLVM optimises nothing of what is compiled: for what is compared to rounding, or run once."""
    with _under(_SETTINGS):
        yield


@contextlib.contextmanager
def well() -> Iterator[None]:
    """In a module that is `compiled_quickly`: what is compiled here is compiled as elsewhere."""
    with _under({"jax_disable_most_optimizations": False, "jax_pgle_profiling_runs": 3}):
        yield


@contextlib.contextmanager
def _under(values: dict[str, Any]) -> Iterator[None]:
    before = {name: jax.config.values[name] for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)


def _quickly(values: dict[str, Any]) -> Settings:
    _set(_SETTINGS)
    return Settings(**values)


class Quick(Settings):
    """Whoever gets them from another process compiles without most optimizations."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _quickly, (vars(self),)
