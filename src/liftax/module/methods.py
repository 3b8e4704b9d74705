"""Calls of a module's methods: everything that happens around the user's code.

A class's methods are wrapped once, when the class is made. What a call then does (``setup`` first,
automatic names, interceptors, captures, names in profiles) stands in `call_method`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Iterable
from types import FunctionType
from typing import Any

import jax

from ..core.types import Fn, Function
from ..errors import (
    CallCompactUnboundModuleError,
    CallSetupUnboundModuleError,
    IncorrectPostInitOverrideError,
)
from ..tracebacks import say_where, shorten
from .bound import Variables
from .fields import own_init_of
from .foreign import refuse_linen
from .state import NEW, Interceptor, local, watch


def compact(fun: Fn) -> Fn:
    """Lets a method declare submodules and variables where it uses them.

    Submodules made in the method without a ``name`` are numbered by class, in the
    order in which they are made: ``Dense_0``, ``Dense_1``.

    Args:
      fun: a method of a module.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Dense(2)(nn.relu(nn.Dense(8)(x)))
      >>> variables = Block().init(jax.random.key(0), jax.numpy.ones(3))
      >>> sorted(variables['params'])
      ['Dense_0', 'Dense_1']
    """
    fun.compact = True  # type: ignore[attr-defined]
    return fun


def nowrap(fun: Fn) -> Fn:
    """Leaves a method alone: no setup before it, no interception, no capture.

    For methods that don't use variables or submodules, such as ones that make a
    carry, and for ones that stand for another module's.

    Args:
      fun: a method of a module.

    Example:
      >>> import liftax as nn
      >>> class Cell(nn.Module):
      ...     features: int
      ...     @nn.nowrap
      ...     def zeros(self):
      ...         return [0.0] * self.features
      >>> Cell(2).zeros()
      [0.0, 0.0]
    """
    fun.nowrap = True  # type: ignore[attr-defined]
    return fun


_LEFT_ALONE = frozenset(
    """__init__ __post_init__ __eq__ __ne__ __hash__ __repr__ __str__ __format__ __dir__ __del__
    __getattr__ __getattribute__ __setattr__ __delattr__ __getstate__ __setstate__ __reduce__
    __reduce_ex__ __copy__ __deepcopy__ __replace__ __sizeof__ setup""".split()
)
"""Methods by which Python, and not the model, handles an object."""


def wrap_methods(cls: type, names: Iterable[str]) -> None:
    """Wraps the methods among the names that a class defines, each once."""
    if "setup" in cls.__dict__:
        cls.setup = _guarded(cls.__dict__["setup"])  # type: ignore[attr-defined]
    for name in names:
        method = cls.__dict__.get(name)
        if (
            isinstance(method, FunctionType)
            and name not in _LEFT_ALONE
            and not getattr(method, "nowrap", False)
            and not getattr(method, "wrapped_method", False)
        ):
            setattr(cls, name, wrapped(method))


def _guarded(setup: Function) -> Function:
    """Returns ``setup`` so that it runs on bound modules only, and is intercepted.

    Raises:
      CallSetupUnboundModuleError: by what is returned, where the module is not bound.
    """

    @functools.wraps(setup)
    def call(self: Variables) -> object:
        if self.scope is None:
            raise CallSetupUnboundModuleError(
                f"{type(self).__name__}: setup was called on an unbound module; it runs by "
                f"itself inside init and apply"
            )
        if watch().interceptors:
            return intercepted(setup, "setup", self, (), {})
        return setup(self)

    return call


def wrapped(method: Function) -> Function:
    """Returns the method with everything that happens around its calls."""
    if getattr(method, "wrapped_method", False):
        return method

    is_compact = getattr(method, "compact", False)
    name = getattr(method, "__name__", "unnamed_function")

    @functools.wraps(method)
    def call(self: Any, *args: object, **kwargs: object) -> object:
        # A function may be lifted whose first argument is a container of modules; and a class may
        # share a method with one that is no module.
        if not hasattr(type(self), "_liftax_module"):
            return method(self, *args, **kwargs)
        return call_method(method, name, is_compact, self, args, kwargs)

    call.wrapped_method = True  # type: ignore[attr-defined]
    return call


def call_method(
    method: Function,
    name: str,
    is_compact: bool,
    module: Variables,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Calls a method on a module.

    Raises:
      CallCompactUnboundModuleError: a compact method of an unbound module.
      IncorrectPostInitOverrideError: the module's own ``__post_init__`` did not run.
    """
    try:
        state = module.__dict__["_state"]
    except KeyError:
        raise no_post_init(module) from None

    # Unbound, a plain method may run, e.g. one that computes with the fields. ``setup`` comes
    # before the first method of a bound one.
    scope = module.scope
    if scope is None:
        if is_compact:
            raise CallCompactUnboundModuleError(
                f"{type(module).__name__}: the compact method {name!r} was called on an unbound "
                f"module; use module.init(key, ...) and module.apply(variables, ...)"
            )
    elif state.setup == NEW:
        module._try_setup()

    # While the method runs, modules that are made belong to this one. A compact method may call
    # another: names go on counting until the outermost has ended.
    stack = local.stack
    stack.append(module)
    outermost = is_compact and not state.in_compact
    if is_compact:
        state.in_compact = True
    try:
        named, interceptors = watch()
        if interceptors:
            y = intercepted(method, name, module, args, kwargs)
        elif named and scope is not None:
            with jax.named_scope(_profile_name(module, name)):
                y = method(module, *args, **kwargs)
        else:
            y = method(module, *args, **kwargs)

        if scope is not None:
            capture = scope.call.flags.get("capture_intermediates")
            if capture is not None:
                called, told = _told(method, module, name)
                if capture(called, told):
                    called.sow("intermediates", told, y)
        return y
    except Exception as error:
        if scope is not None:
            refuse_linen(error, scope.where())
            say_where(error, scope.where(), scope.call.lift)
        if len(stack) == 1:  # the user's own call of a bound module, or of a function in init
            shorten(error)
        raise
    finally:
        stack.pop()
        if outermost:
            # A second call of the method finds the variables of the first, under the same names.
            state.in_compact = False
            state.cursors = {}
            if scope is not None:
                scope.reservations = {}


def no_post_init(module: object) -> IncorrectPostInitOverrideError:
    """A module whose own ``__post_init__``, or ``__init__``, left out the base class's."""
    own = own_init_of(type(module))
    if own is not None:
        init = vars(own)["__init__"]
        return IncorrectPostInitOverrideError(
            f"{own.__name__} has an __init__ of its own, so nn.Module knows neither its fields nor "
            f"its place.\n"
            f"found: {own.__name__}.__init__{inspect.signature(init)}\n"
            f"expected: what it takes as fields of the class, e.g. features: int; what is computed "
            f"of them in __post_init__ or setup"
        )
    return IncorrectPostInitOverrideError(
        f"{type(module).__name__} overrides __post_init__ without calling "
        f"super().__post_init__(); add that call as its last line"
    )


def intercepted(
    method: Function,
    name: str,
    module: Any,
    args: tuple[object, ...],
    kwargs: dict[str, object],
) -> object:
    """Calls a method by way of the interceptors."""
    interceptors = watch().interceptors

    def run(*args: object, **kwargs: object) -> object:
        # The name in profiles is the method's own: what interceptors do is outside.
        with profiled(module, name):
            return method(module, *args, **kwargs)

    called, told = _told(method, module, name)
    context = InterceptorContext(called, told, functools.partial(method, module))
    call: Function = run
    for interceptor in reversed(interceptors):
        call = functools.partial(_intercepted, interceptor, call, context)
    return call(*args, **kwargs)


def profiled(module: Variables, name: str) -> contextlib.AbstractContextManager[object]:
    """Gives what runs in a ``with`` block the name that a method has in profiles."""
    if not watch().named_call or module.scope is None:
        return contextlib.nullcontext()
    return jax.named_scope(_profile_name(module, name))


def _told(method: Function, module: Variables, name: str) -> tuple[Variables, str]:
    """Returns which module's method those who watch are told of; see name_scope.py."""
    told_as = getattr(method, "told_as", None)
    return (module, name) if told_as is None else (told_as(module), "__call__")


def _intercepted(
    interceptor: Interceptor,
    inner: Function,
    context: InterceptorContext,
    /,
    *args: object,
    **kwargs: object,
) -> object:
    return interceptor(inner, args, kwargs, context)


def _profile_name(module: Variables, name: str) -> str:
    own = module.name or type(module).__name__
    return own if name == "__call__" else f"{own}.{name}"


@dataclasses.dataclass(frozen=True)
class InterceptorContext:
    """What an interceptor is told.

    Attributes:
      module: the module whose method is called.
      method_name: the method's name.
      orig_method: the method, bound to the module.
    """

    module: Variables
    method_name: str
    orig_method: Function
