"""Packages whose names are loaded when they are first asked for, and written down once.

What a package offers stands in a stub beside it, ``__init__.pyi``, as ordinary imports: the
type checker, an editor and a reader see them there, and the running package reads the same
lines. Nothing is imported before somebody asks for it, so `import liftax` costs little.
"""

from __future__ import annotations

import ast
import importlib
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .absent import refusal


def lazy(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Returns ``__getattr__``, ``__dir__`` and ``__all__`` for a package.

    Args:
      package: its ``__name__``.
      file: its ``__file__``; the stub stands beside it.

    Raises:
      AttributeError: by the returned ``__getattr__``, for a name that the stub lacks; an
        ImportError in `from package import name`.

    Example:
      >>> import liftax
      >>> getattr_, dir_, all_ = lazy('liftax', liftax.__file__)
      >>> getattr_('relu').__name__
      'relu'
    """
    homes = _homes(Path(file).with_suffix(".pyi"))
    public = sorted(name for name in homes if not name.startswith("_"))

    def load(name: str) -> object:
        if name not in homes:
            raise refusal(package, name, homes)
        home, original = homes[name]
        if not home.strip("."):  # `from . import errors`: a module of the package itself
            value: object = importlib.import_module(home + original, package)
        else:
            value = getattr(importlib.import_module(home, package), original)
        vars(sys.modules[package])[name] = value
        return value

    def names() -> list[str]:
        # Completion offers what the stub does, not each file that something has imported by now.
        return sorted({*filter(_is_dunder, vars(sys.modules[package])), *public})

    # Importing `package.scan` sets the attribute `scan` of the package to that module, whoever
    # imports it. Where the stub says that `scan` is a function in it, the function it stays.
    held = frozenset(name for name, (home, _) in homes.items() if home.strip("."))

    class Package(types.ModuleType):
        def __setattr__(self, name: str, value: object) -> None:
            if not (name in held and isinstance(value, types.ModuleType)):
                super().__setattr__(name, value)

        def __reduce__(
            self,
        ) -> tuple[
            Callable[[str], types.ModuleType], tuple[str]
        ]:  # by its name, as cloudpickle does with plain modules
            return importlib.import_module, (self.__name__,)

    sys.modules[package].__class__ = Package
    return load, names, public


def _is_dunder(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _homes(stub: Path) -> dict[str, tuple[str, str]]:
    """Returns public name -> the module that has it, as in an import, and its name there."""
    found: dict[str, tuple[str, str]] = {}
    for node in ast.parse(stub.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            home = "." * node.level + (node.module or "")
            found.update({alias.asname or alias.name: (home, alias.name) for alias in node.names})
    return found
