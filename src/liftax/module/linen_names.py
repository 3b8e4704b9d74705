"""What flax.linen.module calls by other names, private ones that public code uses among them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from .methods import intercepted, wrapped
from .state import local

wrap_method_once = wrapped


class _Context:
    """What runs now in this thread."""

    @property
    def module_stack(self) -> list[Any]:
        """The modules whose methods run, the innermost last; None stands before the first."""
        return local.stack


_context = _Context()


def _get_unbound_fn(method_or_fn: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function that takes the module as its first argument."""
    return method_or_fn.__func__ if inspect.ismethod(method_or_fn) else method_or_fn


def run_interceptors(
    orig_method: Callable[..., Any], module: Any, *args: Any, **kwargs: Any
) -> Any:
    """Calls a method of a module by way of the interceptors.

    Args:
      orig_method: the method, bound to the module.
      module: the module.
      *args, **kwargs: of the method.
    """
    fn = _get_unbound_fn(orig_method)
    return intercepted(fn, getattr(fn, "__name__", "__call__"), module, args, kwargs)
