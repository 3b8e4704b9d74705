"""Methods whose submodules have a level of their own in the variables."""

from __future__ import annotations

import functools

from ..core.types import Fn, Function
from .bound import Variables
from .module import Module
from .state import state_of


class CompactNameScope(Module):
    """What interceptors, and filters of what is captured, are told is called, as in Linen.

    Attributes:
      fn: the method that was marked.
      module_fn: returns the module whose method it is.
    """

    fn: Function
    module_fn: Function

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Calls the method."""
        return self.fn(self.module_fn(), *args, **kwargs)


def compact_name_scope(fun: Fn) -> Fn:
    """Puts the submodules of a method under the method's own name.

    Like `compact`, but the submodules of the method live one level deeper, and their
    automatic names start over there; its own variables stay the module's. A module may have any
    number of such methods.

    Args:
      fun: a method of a module.

    Example:
      >>> import jax, liftax as nn
      >>> class Two(nn.Module):
      ...     @nn.compact_name_scope
      ...     def up(self, x):
      ...         return nn.Dense(8)(x)
      ...     @nn.compact_name_scope
      ...     def down(self, x):
      ...         return nn.Dense(2)(x)
      ...     def __call__(self, x):
      ...         return self.down(self.up(x))
      >>> variables = Two().init(jax.random.key(0), jax.numpy.ones(3))
      >>> {name: sorted(sub) for name, sub in sorted(variables['params'].items())}
      {'down': ['Dense_0'], 'up': ['Dense_0']}
    """

    @functools.wraps(fun)
    def scoped(self: Variables, *args: object, **kwargs: object) -> object:
        state = state_of(self)
        before = state.cursors, state.within
        assert self.scope is not None  # a compact method is called on bound modules only
        # Reused: the method may be called again, and its submodules are the same ones then.
        state.cursors, state.within = {}, self.scope.push(fun.__name__, reuse=True)
        try:
            return fun(self, *args, **kwargs)
        finally:
            state.cursors, state.within = before

    def told_as(module: Variables) -> CompactNameScope:
        assert module.scope is not None
        at = module.scope.push(fun.__name__, reuse=True)
        made = CompactNameScope(fun, lambda: module, parent=at, name=fun.__name__)
        made.__dict__["parent"] = module
        return made

    scoped.compact = True  # type: ignore[attr-defined]
    scoped.told_as = told_as  # type: ignore[attr-defined]
    return scoped  # type: ignore[return-value]
