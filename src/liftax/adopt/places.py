"""Modules that stand in the place of flax's, and where they find what is asked of them."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .. import absent
from ..errors import MissingExtraError

# Only these parts of flax have other classes and functions here. Each is looked for in the
# modules behind it, in this order; what none of them has is flax's own.
HOMES: dict[str, tuple[str, ...]] = {
    "flax.linen": ("liftax", "flax.linen.fp8_ops"),
    "flax.linen.activation": ("liftax.activation", "liftax.linear"),
    "flax.linen.attention": ("liftax.attention", "liftax.linear", "liftax.module"),
    "flax.linen.batch_apply": ("liftax.batch_apply",),
    "flax.linen.combinators": ("liftax.combinators", "liftax.module"),
    "flax.linen.dtypes": ("liftax.dtypes",),
    "flax.linen.initializers": ("liftax.initializers",),
    "flax.linen.linear": ("liftax.linear", "liftax.module"),
    "flax.linen.module": ("liftax.module", "liftax.core"),
    "flax.linen.normalization": ("liftax.normalization", "liftax.linear", "liftax.module"),
    "flax.linen.partitioning": ("liftax.partitioning",),
    "flax.linen.pooling": ("liftax.pooling",),
    "flax.linen.recurrent": ("liftax.recurrent", "liftax.linear", "liftax.module"),
    "flax.linen.spmd": ("liftax.spmd",),
    "flax.linen.stochastic": ("liftax.stochastic", "liftax.module"),
    "flax.linen.summary": ("liftax.summary", "liftax.module"),
    "flax.linen.transforms": ("liftax.transforms", "liftax.module", "liftax.core"),
    "flax.core": ("liftax.core",),
    "flax.core.axes_scan": ("liftax.core.axes_scan",),
    "flax.core.lift": ("liftax.core.lift", "liftax.core"),
    "flax.core.meta": ("liftax.core.meta",),
    "flax.core.scope": ("liftax.core.scope", "liftax.core"),
    "flax.core.spmd": ("liftax.spmd",),
    "flax.core.variables": ("liftax.core.variables",),
    "flax.errors": ("liftax.errors",),
}
"""Name of a module of flax -> the modules that have its names."""


@dataclass
class Seen:
    """What was asked of the modules in flax's place: (name, who asked) -> how often."""

    taken: Counter[tuple[str, str]] = field(default_factory=Counter)
    fell_back: Counter[tuple[str, str]] = field(default_factory=Counter)


class Place(types.ModuleType):
    """A module in the place of one of flax's.

    Args:
      real: flax's module.
      seen: takes notes of what is asked for; None where nobody wants to know, so that each name
        is looked for once.
    """

    def __init__(self, real: types.ModuleType, seen: Seen | None):
        super().__init__(real.__name__, f"liftax, in the place of {real.__name__}.")
        self.__dict__.update(_real=real, _seen=seen, __file__=getattr(real, "__file__", None))
        spec = importlib.machinery.ModuleSpec(real.__name__, None, origin=real.__file__)
        if hasattr(real, "__path__"):
            # What is not in `HOMES` is imported from flax's folder, and finds liftax around it.
            self.__path__ = list(real.__path__)
            spec.submodule_search_locations = self.__path__
        self.__spec__ = spec
        self.__package__ = real.__package__

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":
            return [n for n in dir(self) if not n.startswith("_") and hasattr(self, n)]
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value, ours = found_in(self, name)
        seen = self._seen
        # Kept, so that the next look-up is a plain attribute; with a report each one has to be
        # heard.
        if seen is None:
            self.__dict__[name] = value
        else:
            notes = seen.taken if ours else seen.fell_back
            notes[f"{self.__name__}.{name}", _asker()] += 1
        return value

    def __dir__(self) -> Sequence[str]:
        return sorted({*vars(self._real), *super().__dir__()})


def flax_module(name: str, said: str) -> types.ModuleType:
    """Imports a module of flax's, or what stands in its place.

    Args:
      said: what is said where flax is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # What flax itself lacks is told by its own name.
        if (error.name or "").partition(".")[0] != "flax":
            raise
        raise MissingExtraError(f"{said}: pip install flax") from error


def real_of(module: types.ModuleType) -> types.ModuleType:
    """The module of flax's that stands behind one in its place; another one is its own."""
    # In the dict and not by attribute: a place would look for the name in liftax.
    return vars(module).get("_real", module)


def found_in(place: Place, name: str) -> tuple[object, bool]:
    """The value of a name in a place, and whether it is liftax's; nobody takes notes of it."""
    for home in HOMES[place.__name__]:
        module = importlib.import_module(home)
        try:
            return getattr(module, name), True
        except AttributeError:
            pass
    real = vars(real_of(place))
    if name in absent.NEEDS_FLAX_SCOPES or name not in real:
        raise absent.refusal(place.__name__, name, dir(place), depth=2)
    return real[name], False


def _asker() -> str:
    """The top package of the code that asks for a name."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", "?"))
        if not name.startswith("importlib"):
            return name.partition(".")[0]
        frame = frame.f_back  # type: ignore[assignment]
    return "?"


def stand_in(name: str, seen: Seen | None) -> Place:
    """Makes the module for the place of one of flax's, which is imported for what it has alone."""
    return Place(importlib.import_module(name), seen)
