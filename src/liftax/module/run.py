"""Running functions of a module: apply, init, init_with_output."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core import run
from ..core.filters import DenyList, Filter, union
from ..core.making.kept import KeptLoops
from ..core.making.program import staged
from ..core.scope import Scope
from ..errors import (
    ApplyModuleInvalidMethodError,
    InvalidInstanceModuleError,
    NotCallableMethodError,
)
from .attach import is_module, own_methods
from .bound import Variables

Capture = bool | Callable[[Any, str], bool]

INIT_COLLECTIONS = DenyList("intermediates")
"""What ``init`` makes unless it is told: everything but captured values."""


def _flags(capture: bool | Callable[..., bool]) -> dict[str, Any]:
    if not capture:
        return {}
    return {"capture_intermediates": _calls if capture is True else capture}


def _calls(module: Variables, method: str) -> bool:
    return method == "__call__"


def function_of(module: Any, method: Any) -> Callable[..., Any]:
    """Returns what ``method=`` of `apply` and `init` stands for: a function of a module.

    Raises:
      InvalidInstanceModuleError: a class stands where its instance belongs.
      ApplyModuleInvalidMethodError: the module has no such method, or it is none.
    """
    check_instance(module)
    cls = type(module)
    if method is None:
        method = "__call__"
    if isinstance(method, str):
        name = method
        # Not by hasattr: a class can be called itself.
        method = module.__dict__.get(name)
        for owner in cls.__mro__:
            if name in owner.__dict__:
                method = owner.__dict__[name]
                break
        if method is None:
            own = own_methods(cls)
            near = difflib.get_close_matches(name, own, n=1)
            raise ApplyModuleInvalidMethodError(
                f"{cls.__name__}: method={name!r} is no method of it"
                + (f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(own)}")
            )
        if isinstance(method, (staticmethod, classmethod, property)):
            method = method.__get__(module, cls)
        if is_module(method):
            method = _Submodule(name)
    if is_module(getattr(method, "__self__", None)):
        method = method.__func__
    if not callable(method):
        raise NotCallableMethodError(
            f"{cls.__name__}: method= expected a method, its name or a function of the module; "
            f"found {type(method).__name__}"
        )
    code = getattr(method, "__code__", None)
    if code is not None and code.co_argcount == 0 and not code.co_flags & inspect.CO_VARARGS:
        raise ApplyModuleInvalidMethodError(
            f"{cls.__name__}: method= expected a function of the module; found "
            f"{method.__name__}, which takes no argument by position"
        )
    return method


def check_instance(module: Any) -> None:
    """Raises InvalidInstanceModuleError for a class that stands where its instance belongs."""
    if not is_module(module):
        raise InvalidInstanceModuleError(
            "init, apply and bind are called on an instance of a module: Model(...).init(...), "
            "not Model.init(...)"
        )


class _Submodule(NamedTuple):
    """The call of a module in a field, as a function of the module that has it."""

    name: str

    def __call__(self, module: Any, /, *args: Any, **kwargs: Any) -> Any:
        return getattr(module, self.name)(*args, **kwargs)


def _on_scope(fn: Callable[..., Any], module: Variables) -> Callable[..., Any]:
    """Returns ``fn`` as a function of a scope."""

    def body(scope: Scope, *args: Any, **kwargs: Any) -> Any:
        bound = module.clone(parent=scope, _deep_clone=True)
        y = fn(bound, *args, **kwargs)
        bound._state.forget()
        return y

    return body


def apply(
    fn: Callable[..., Any],
    module: Variables,
    mutable: Filter = False,
    capture_intermediates: bool | Callable[..., bool] = False,
) -> Callable[..., Any]:
    """Returns ``run(variables, *args, rngs=None, **kwargs)`` for a function of a module.

    Args:
      fn: called as ``fn(bound_module, *args, **kwargs)``.
      module: an unbound module.
      mutable: the collections that may be written.
      capture_intermediates: as in ``Module.apply``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import liftax as nn
      >>> dense = nn.Dense(2)
      >>> variables = dense.init(jax.random.key(0), jnp.ones(3))
      >>> twice = nn.apply(lambda m, x: m(x) * 2, dense)
      >>> twice(variables, jnp.ones(3)).shape
      (2,)
    """
    if capture_intermediates:
        mutable = union(mutable, "intermediates")

    return run.apply(_on_scope(fn, module), mutable, _flags(capture_intermediates))


def init_with_output(
    fn: Callable[..., Any],
    module: Variables,
    mutable: Filter = INIT_COLLECTIONS,
    capture_intermediates: bool | Callable[..., bool] = False,
) -> Callable[..., Any]:
    """Returns ``run(rngs, *args, **kwargs) -> (y, variables)`` for a function of a module.

    Args are those of `liftax.apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import liftax as nn
      >>> run = nn.init_with_output(lambda m, x: m(x), nn.Dense(2))
      >>> y, variables = run(jax.random.key(0), jnp.ones(3))
      >>> y.shape
      (2,)
    """
    if capture_intermediates:
        mutable = union(mutable, "intermediates")

    return run.init(_on_scope(fn, module), mutable, _flags(capture_intermediates))


def init(
    fn: Callable[..., Any],
    module: Variables,
    mutable: Filter = INIT_COLLECTIONS,
    capture_intermediates: bool | Callable[..., bool] = False,
) -> Callable[..., Any]:
    """Returns ``run(rngs, *args, **kwargs) -> variables`` for a function of a module.

    Args are those of `liftax.apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> import liftax as nn
      >>> make = nn.init(lambda m, x: m(x), nn.Dense(2))
      >>> sorted(make(jax.random.key(0), jnp.ones(3))['params'])
      ['bias', 'kernel']
    """

    run = init_with_output(fn, module, mutable, capture_intermediates)
    return staged(run, _kept_loops(type(module)))


def _kept_loops(cls: type) -> KeptLoops:
    """Returns the compiled loops of a module's class; they go with the class."""
    kept: KeptLoops | None = cls.__dict__.get("_init_loops")
    if kept is None:
        kept = KeptLoops()
        type.__setattr__(cls, "_init_loops", kept)
    return kept
