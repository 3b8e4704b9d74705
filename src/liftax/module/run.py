"""Running functions of a module: apply, init, init_with_output."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from ..core import run
from ..core.filters import DenyList, Filter, union
from ..core.making.kept import KeptLoops
from ..core.making.program import staged
from ..core.scope import Scope
from ..core.streams import Rngs as Rngs
from ..core.types import Function
from ..errors import (
    ApplyModuleInvalidMethodError,
    InvalidInstanceModuleError,
    NotCallableMethodError,
)
from ..words import did_you_mean
from .attach import is_module, own_methods
from .bound import Variables
from .state import state_of

Capture = bool | Callable[..., bool]
"""Whether, or of which ``(module, name of the method)``, what methods return is kept."""

INIT_COLLECTIONS = DenyList("intermediates")
"""What ``init`` makes unless it is told: everything but captured values."""


def _captured(mutable: Filter, capture: Capture) -> tuple[Filter, dict[str, object]]:
    """Returns what may be written, captures among it, and the flag that asks for them."""
    if not capture:
        return mutable, {}
    chosen = _calls if capture is True else capture
    return union(mutable, "intermediates"), {"capture_intermediates": chosen}


def _calls(module: Variables, method: str) -> bool:
    return method == "__call__"


def function_of(module: object, method: object) -> Function:
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
            raise ApplyModuleInvalidMethodError(
                f"{cls.__name__}: method={name!r} is no method of it"
                + (did_you_mean(name, own) or f"; it has {', '.join(own)}")
            )
        if isinstance(method, (staticmethod, classmethod, property)):
            method = method.__get__(module, cls)
        if is_module(method):
            method = _Submodule(name)

    # A method bound to some instance stands for the function of its class: the module that it is
    # called with is a bound clone of this one.
    if inspect.ismethod(method) and is_module(method.__self__):
        method = method.__func__
    if not callable(method):
        raise NotCallableMethodError(
            f"{cls.__name__}: method= expected a method, its name or a function of the module; "
            f"found {type(method).__name__}"
        )
    # Python's own message would speak of the arguments that liftax passed.
    code = getattr(method, "__code__", None)
    if code is not None and code.co_argcount == 0 and not code.co_flags & inspect.CO_VARARGS:
        raise ApplyModuleInvalidMethodError(
            f"{cls.__name__}: method= expected a function of the module; found "
            f"{code.co_name}, which takes no argument by position"
        )
    return method


def check_instance(module: object) -> None:
    """Raises InvalidInstanceModuleError for a class that stands where its instance belongs."""
    if not is_module(module):
        raise InvalidInstanceModuleError(
            "init, apply and bind are called on an instance of a module: Model(...).init(...), "
            "not Model.init(...)"
        )


class _Submodule(NamedTuple):
    """The call of a module in a field, as a function of the module that has it.

    By name: the field of the bound clone has a clone of its own. A tuple, since two of them that
    are equal are one function to the caches.
    """

    name: str

    def __call__(self, module: object, /, *args: object, **kwargs: object) -> object:
        return getattr(module, self.name)(*args, **kwargs)


def on_scope(fn: Function, module: Variables) -> Function:
    """Returns ``fn`` as a function of a scope."""

    def body(scope: Scope, *args: object, **kwargs: object) -> object:
        # A clone for each call: the user's module stays unbound, whatever happens in here.
        bound = module.clone(parent=scope, _deep_clone=True)
        y = fn(bound, *args, **kwargs)
        state_of(bound).forget()
        return y

    return body


def apply(
    fn: Function,
    module: Variables,
    mutable: Filter = False,
    capture_intermediates: Capture = False,
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
    return run.apply(on_scope(fn, module), *_captured(mutable, capture_intermediates))


def init_with_output(
    fn: Function,
    module: Variables,
    mutable: Filter = INIT_COLLECTIONS,
    capture_intermediates: Capture = False,
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
    return run.init(on_scope(fn, module), *_captured(mutable, capture_intermediates))


def init(
    fn: Function,
    module: Variables,
    mutable: Filter = INIT_COLLECTIONS,
    capture_intermediates: Capture = False,
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
    # Past the class's own __setattr__ and not inherited: a metaclass may forbid the one, and the
    # loops of a base class are those of other code.
    kept: KeptLoops | None = cls.__dict__.get("_init_loops")
    if kept is None:
        kept = KeptLoops()
        type.__setattr__(cls, "_init_loops", kept)
    return kept
