"""Modules that stand at one place, and settings that may come from two."""

from __future__ import annotations

from typing import TypeVar

from ..core.scope import Scope
from ..errors import CallShareScopeOnUnboundModuleError
from .bound import Variables
from .state import state_of

T = TypeVar("T")


def merge_param(name: str, a: T | None, b: T | None) -> T:
    """Returns the one of two settings that is given.

    Args:
      name: the setting's name, for messages.
      a: the setting as given to the constructor, or None.
      b: the setting as given to the call, or None.

    Raises:
      ValueError: both are given, or neither is.

    Example:
      >>> merge_param('deterministic', None, True)
      True
    """
    if a is None and b is None:
        raise ValueError(
            f"{name} is not set: pass it to the constructor or to the call of the module"
        )
    if a is not None and b is not None:
        raise ValueError(
            f"{name} is set twice: pass it to the constructor or to the call, not to both"
        )
    return a if a is not None else b  # type: ignore[return-value]


def share_scope(module: Variables, other: Variables, /) -> None:
    """Puts ``other`` at the place of ``module``: both have one set of variables and names.

    Call it in ``setup``. It lets a module wrap another without a level of its own in
    the variables.

    Args:
      module: a bound module; it moves to the place of ``other`` where ``other`` is
        not one of its own submodules.
      other: a bound module.

    Raises:
      CallShareScopeOnUnboundModuleError: one of them is not bound.

    Example:
      >>> import jax, liftax as nn
      >>> class Wrapped(nn.Module):
      ...     def setup(self):
      ...         self.dense = nn.Dense(2)
      ...         nn.share_scope(self, self.dense)
      ...     def __call__(self, x):
      ...         return self.dense(x)
      >>> sorted(Wrapped().init(jax.random.key(0), jax.numpy.ones(3))['params'])
      ['bias', 'kernel']
    """
    if module.scope is None or other.scope is None:
        unbound = module if module.scope is None else other
        raise CallShareScopeOnUnboundModuleError(
            f"share_scope: {type(unbound).__name__} is not bound; call share_scope in setup "
            f"or in a compact method"
        )
    # A submodule comes up to the place of the module that has it: that place stays.
    if _lies_in(other.scope, module.scope):
        _move(other, module.scope)
    else:
        _move(module, other.scope)


def _lies_in(scope: Scope | None, outer: Scope) -> bool:
    while scope is not None and scope is not outer:
        scope = scope.parent
    return scope is not None


def _move(module: Variables, scope: Scope) -> None:
    """Gives a module, and the submodules it has already, another place."""
    object.__setattr__(module, "scope", scope)
    for name, child in list(state_of(module).children.items()):
        if isinstance(child, Variables) and child.scope is not None:
            scope.reserve(name)
            _move(child, scope.below(name))
