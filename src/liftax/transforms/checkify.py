"""A module whose checks come out as a value."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, overload

from jax.experimental import checkify as jax_checkify

from ..core.filters import Filter
from ..core.lift.checkify import Checkify, Errors
from ..module.bound import Variables
from .target import lift_target, remembered

__all__ = ["checkify"]

Class = TypeVar("Class", bound=type[Variables])


@overload
def checkify(  # type: ignore[overload-overlap]  # a class can be called as well
    target: Class,
    errors: Errors = ...,
    variables: Filter = ...,
    rngs: Filter = ...,
    methods: Iterable[str] | None = ...,
) -> Class: ...
@overload
def checkify(
    target: Callable[..., object],
    errors: Errors = ...,
    variables: Filter = ...,
    rngs: Filter = ...,
) -> Callable[..., tuple[jax_checkify.Error, Any]]: ...
@remembered
def checkify(
    target: Any,
    errors: Errors = jax_checkify.user_checks,
    variables: Filter = True,
    rngs: Filter = True,
    methods: Iterable[str] | None = None,
) -> Any:
    """Lifts ``jax.experimental.checkify`` to modules: errors within are a value beside the output.

    ``checkify.check(value > 0, 'message')`` in a layer cannot raise where it is compiled. Under
    this lift it doesn't have to: what failed first comes out beside what the method returns,
    through `scan`, `jit`, `remat` and all others. Variables, keys and the module's name are as
    without the lift.

    Args:
      target: a module class, or a function whose first argument is a module.
      errors: what is checked: ``checkify.user_checks``, ``nan_checks``, ``index_checks``,
        ``div_checks``, or several of them joined by ``|``.
      variables: the collections that go in; writing another is an error.
      rngs: the streams that go in.
      methods: for a class, the methods to lift instead of ``__call__``.

    Returns:
      the lifted class or function. It returns ``(error, y)``: a ``checkify.Error``, which is a
      pytree, and what the method returned. ``error.get()`` is the message or None,
      ``error.throw()`` raises. An output of a scan or a map, it has the errors of all iterations,
      and ``get`` tells each by its number.

    Raises:
      LiftOptionError: ``errors`` is no set of what can be checked.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> from jax.experimental import checkify
      >>> class Root(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         checkify.check((x >= 0).all(), 'a root of less than nothing')
      ...         return nn.Dense(2)(jnp.sqrt(x))
      >>> model = nn.checkify(Root)()
      >>> variables = model.init(jax.random.key(0), jnp.ones(3))
      >>> error, y = jax.jit(model.apply)(variables, -jnp.ones(3))
      >>> error.get().split(' (')[0], sorted(variables['params'])
      ('a root of less than nothing', ['Dense_0'])
    """
    # No prefix: a lifted class keeps its name, and so its place among the variables.
    options = Checkify(errors, variables, rngs)
    return lift_target("checkify", target, lambda fn: options(fn), methods, prefix="")
