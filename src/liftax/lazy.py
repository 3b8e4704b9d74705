"""Names that a package loads when they are first asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, homes: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Returns ``__getattr__`` and ``__dir__`` for a package.

    Args:
      package: its name.
      homes: public name -> the submodule that has it; a name that is the last
        part of its submodule's is the submodule itself, unless a colon follows.

    Example:
      >>> getattr_, dir_ = lazy('liftax', {'relu': 'layers.activation'})
      >>> getattr_('relu').__name__
      'relu'
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        where, colon, _ = homes[name].partition(":")
        home = importlib.import_module(f"{package}.{where}")
        whole = not colon and where.rpartition(".")[2] == name
        value = home if whole else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names
