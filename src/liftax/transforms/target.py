"""The lifts over module classes and functions of modules.

Lifting a class is lifting its methods; a function of modules is one method. The
module and its arguments are detached (see detach.py), the core lift runs over
their scopes, and the modules are rebuilt on the scopes inside.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

import numpy as np

from ..core.cache_keys import typed
from ..core.events import Made, quiet, users_line
from ..core.scope import Scope, Variable
from ..core.types import Fn, Function
from ..errors import (
    ForeignModuleError,
    LiftMethodError,
    StaticArgumentError,
    TransformedMethodReturnValueError,
    TransformTargetError,
)
from ..module.attach import Held, is_module, own_methods
from ..module.bound import Variables
from ..module.detach import Detached, Inputs, Memory, without_modules
from ..module.fields import field_names
from ..module.foreign import is_linen_class, refusal
from ..module.methods import intercepted, wrapped
from ..module.state import LIFTED, NEW, state_of, watch
from ..words import did_you_mean, kind_of

CoreLift = Callable[["Body"], Function]
"""Maps a function of scopes, ``(scopes, *args, **kwargs)``, to its lifted twin."""

Methods = Iterable[str] | Mapping[str, Mapping[str, object]] | None
"""The methods to lift of a class, or for each the options in which its lift differs."""

_REMEMBERED = 16


def remembered(lift: Fn) -> Fn:
    """Lets a lift return the class that it made before of the same class and arguments.

    Models lift their blocks each time they are called. What was made is kept with
    the lifted class, so it goes with it, and no more than a few at a time. A
    ``functools.partial`` of a class becomes one of the lifted class.
    """

    @functools.wraps(lift)
    def again(target: object, *args: object, **kwargs: object) -> object:
        if isinstance(target, functools.partial) and _is_module_class(target.func):
            # What is fixed are fields of instances: the class is lifted, and the partial put around
            # it.
            lifted: Any = remembered(lift)(target.func, *args, **kwargs)
            return functools.partial(lifted, *target.args, **target.keywords)
        if not _is_module_class(target):
            return lift(target, *args, **kwargs)
        try:
            key = lift.__name__, typed(args) if args else (), typed(kwargs), quiet.get()
        except StaticArgumentError:
            return lift(target, *args, **kwargs)  # with an option that nothing else can equal

        # In the class's own dict: a subclass would find what was lifted of its base.
        known = target.__dict__.get("_lifted_classes")
        if known is None:
            known = _Memory()
            type.__setattr__(target, "_lifted_classes", known)
        made = known.get(key)
        if made is None:
            made = lift(target, *args, **kwargs)
            # The oldest goes: a model that sweeps an option would keep a class for each value.
            while len(known) >= _REMEMBERED:
                known.pop(next(iter(known)), None)
            known[key] = made
        return made

    return again  # type: ignore[return-value]


class _Memory(dict[Hashable, object]):
    """What was lifted of a class; it stays behind where the class is pickled."""

    def __reduce__(self) -> tuple[type[_Memory], tuple[()]]:
        return _Memory, ()


def _is_module_class(target: object) -> TypeGuard[type[Variables]]:
    return isinstance(target, type) and hasattr(target, "_liftax_module")


def lift_target(
    lift: str, target: Fn, core_lift: CoreLift, methods: Methods = None, prefix: str | None = None
) -> Fn:
    """Lifts a module class or a function of modules.

    Args:
      lift: the lift's name.
      target: the class or function.
      core_lift: the lift over functions of scopes. Where it is a dataclass, its fields are what
        each method may have otherwise.
      methods: for a class: the names of the methods to lift (``__call__``), or a
        mapping of name to the lift's arguments for that method.
      prefix: what stands before the class's name, where it is not the lift's; empty for a class
        that keeps its name.

    Raises:
      TransformTargetError: the target is neither.
      LiftMethodError: the class has no such method, or the lift no such argument.
    """
    if _is_module_class(target):
        lifts = _lifts_of_methods(lift, core_lift, methods)
        return lift_class(lift, lift.capitalize() if prefix is None else prefix, target, lifts)
    foreign = target if isinstance(target, type) else type(target)
    if is_linen_class(foreign):
        raise ForeignModuleError(refusal(lift, foreign.__name__))
    # A module is callable, but what is lifted is code, and the instance is data of its calls.
    if is_module(target) or not callable(target):
        name, found = type(target).__name__, kind_of(target)
        if is_module(target):
            found = (
                f"an instance of {name}. Lift the class and then make the instance: "
                f"nn.{lift}({name}, ...)(...)"
            )
        raise TransformTargetError(
            f"{lift}: expected a module class or a function whose first argument is a module; "
            f"found {found}"
        )
    if methods is not None:
        raise TransformTargetError(
            f"{lift}: methods= goes with a module class; the target is a function"
        )
    made = Made(users_line(), quiet.get())
    return _lifted(lift, target, _Nest(wrapped(target), None, ((core_lift, target, made),)))


def _lifts_of_methods(lift: str, core_lift: CoreLift, methods: Methods) -> dict[str, CoreLift]:
    """Returns the lift of each method, by the method's name."""
    if methods is None:
        return {"__call__": core_lift}
    if isinstance(methods, str):
        return {methods: core_lift}
    if not isinstance(methods, Iterable):
        raise LiftMethodError(
            f"{lift}: methods expected names of methods; found {kind_of(methods)}"
        )
    if not isinstance(methods, Mapping):
        return dict.fromkeys(methods, core_lift)
    if not dataclasses.is_dataclass(core_lift):
        raise TransformTargetError(
            f"{lift}: methods expected a list of names; this lift takes no arguments per method"
        )
    # What the user gave for all methods holds where a method says nothing else.
    known = [field.name for field in dataclasses.fields(core_lift)]
    for changes in methods.values():
        for name in changes:
            if name not in known:
                raise LiftMethodError(
                    f"{lift}: methods has the unknown argument {name!r}{did_you_mean(name, known)}"
                    f" Known: {', '.join(n for n in known if not n.startswith('_'))}"
                )
    return {
        method: dataclasses.replace(core_lift, **changes) for method, changes in methods.items()
    }


def lift_class(
    lift: str, prefix: str, target: type[Variables], lifts: Mapping[str, CoreLift]
) -> Any:
    """Makes a subclass of a module class, with its methods lifted and nothing else changed."""
    # `_as_base`: no new dataclass is made, so the subclass has the fields, their order and the
    # generated methods of the target, and an instance of it is one of the target.
    nests: dict[str, _Nest] = {}
    made = Made(users_line(), quiet.get())
    members: dict[str, object] = {
        "__doc__": target.__doc__,
        "__module__": target.__module__,
        "_nests": nests,
    }
    for method, core_lift in lifts.items():
        defined = any(method in cls.__dict__ for cls in target.__mro__)
        fn = getattr(target, method, None) if defined else None
        if not callable(fn) or method in field_names(target):
            raise _no_method(lift, target, method)
        # A lifted method is lifted once more by adding to its nest. If a subclass has written the
        # method anew since, its nest is that of another function.
        known = target.__dict__.get("_nests", {}).get(method)
        if known is None or known.lifted is not fn:
            known = _Nest(wrapped(fn), target, ())
        nest = known._replace(lifts=(*known.lifts, (core_lift, target, made)))
        members[method] = _lifted(lift, fn, nest)
        nests[method] = nest._replace(lifted=members[method])
    meta: Any = type(target)
    return meta(prefix + target.__name__, (target,), members, _as_base=True)


def _no_method(lift: str, target: type, method: object) -> LiftMethodError:
    """An entry of ``methods`` that is none."""
    own = own_methods(target)
    what = "is no method of" if isinstance(method, str) and hasattr(target, method) else "is not in"
    return LiftMethodError(
        f"{lift}: methods names {method!r}, which {what} {target.__name__}"
        f"{did_you_mean(method, own)}\n"
        f"expected: methods= of {', '.join(map(repr, own)) or 'a class with some of its own'}"
    )


class _Nest(NamedTuple):
    """A method or function under one lift or several.

    Lifts over lifts are one nest: the module is taken off its scope before the outermost and
    rebuilt inside the innermost, and between them there are scopes alone.

    Attributes:
      method: the user's.
      cls: for a method: what the module is an instance of inside.
      lifts: from the inside out, each with the class or function that it was made of, and where.
      lifted: what a class has for the method.
    """

    method: Function
    cls: type | None
    lifts: tuple[tuple[CoreLift, Any, Made], ...]
    lifted: object = None


def _lifted(name: str, fn: Fn, nest: _Nest) -> Fn:
    """Returns the function that stands for ``fn``: from modules to scopes and back."""
    method, cls, ((innermost, inside, made), *others), _ = nest
    outside = nest.lifts[-1][1]

    @functools.wraps(fn)
    def lifted(module: object, /, *args: object, **kwargs: object) -> object:
        if is_module(module) and module.scope is None:
            # Only to raise the error of an unbound call.
            return method(module, *args, **kwargs)

        (args, kwargs), fill, taken = without_modules(args, kwargs)
        detached = Detached([module, *taken], cls)
        if not detached.scopes:
            raise _unbound(name, outside, module)
        if watch().interceptors:
            _announce(detached, [target for _, target, _ in reversed(others)])

        # From the inside out: the user's method over scopes, under the innermost lift; and what
        # comes of that is the body of the next.
        body = Body(method, inside, detached, fill, made=made)
        run = innermost(body)
        for core_lift, target, at in others:
            body = _LiftedBody(method, target, detached, fill, run, body, made=at)
            run = core_lift(body)
        return run(detached.scopes, *args, **kwargs)

    # Around the user's method everything happens inside already.
    lifted.wrapped_method = True  # type: ignore[attr-defined]
    return lifted  # type: ignore[return-value]


def _announce(detached: Detached, classes: Sequence[type | None] = ()) -> None:
    """Tells interceptors of the modules that a lift takes before any method of theirs has run.

    Linen tries their ``setup`` then, by calling a method that returns its argument, on a copy
    that nobody uses: what interceptors make of it is lost there, and here.

    Args:
      classes: those between the first module's and the one that it is inside all lifts.
    """
    for module in detached.found.values():
        if not isinstance(module, Variables):
            continue
        state = state_of(module)
        if state.setup != NEW or state.again or state.announced:
            continue
        state.announced = True
        for cls in [type(module), *(classes if module is detached.values[0] else ())]:
            told: Any = module
            if cls is not type(module):
                told = object.__new__(cls or object)
                told.__dict__.update(module.__dict__)
            intercepted(_returned, LIFTED, told, (np.zeros((), np.int32),), {})


def _returned(module: object, x: object) -> object:
    return x


def call_functions(
    lift: str, functions: Sequence[Function], module: object, args: tuple[object, ...]
) -> tuple[list[Body], list[Scope], tuple[Any, ...]]:
    """Detaches a module for a lift that calls functions of it at once.

    A bound method stands for the function of its class: the module inside is not the one it is
    bound to.

    Returns:
      the functions as bodies over scopes, the scopes, and the arguments without
      the modules among them.

    Raises:
      TransformTargetError: a function is none, or there is no bound module.
    """
    for i, fn in enumerate(functions):
        found = None
        if is_module(fn):
            found = (
                f"an instance of {type(fn).__name__}. Hand the module in, and call it in the "
                f"function: nn.{lift}(..., lambda mdl, x: mdl(x), ..., module, x)"
            )
        elif not callable(fn):
            found = f"{kind_of(fn)}. Pass the function itself, not what it returns"
        if found is not None:
            raise TransformTargetError(
                f"{lift}: function {i} expected a function whose first argument is a module; "
                f"found {found}"
            )
    # Branches are bodies over one detached module, so that each starts from where it stands now.
    functions = [
        fn.__func__ if inspect.ismethod(fn) and is_module(fn.__self__) else fn for fn in functions
    ]
    plain, fill, taken = without_modules(args, {})
    detached = Detached([module, *taken], branches=len(functions) > 1)
    if not detached.scopes:
        raise _unbound(lift, functions[0], module)
    if watch().interceptors:
        _announce(detached)
    bodies = [Body(wrapped(fn), fn, detached, fill) for fn in functions]
    return bodies, detached.scopes, plain[0]


def _unbound(lift: str, target: object, module: object) -> TransformTargetError:
    """A lifted function of no bound module."""
    name = getattr(target, "__name__", kind_of(target))
    found = f"an unbound {type(module).__name__}" if is_module(module) else kind_of(module)
    return TransformTargetError(
        f"{lift} of {name}: the first argument of a lifted function must be a bound module, "
        f"or a container of them.\n"
        f"found: {found}\n"
        f"expected: a module made in setup or in a compact method, or the module itself (self)"
    )


@dataclasses.dataclass(eq=False)
class Body:
    """A method as a function of scopes.

    Attributes:
      method: called with the rebuilt module.
      func: what the user lifted, for messages and the layout.
      detached: the module and those in the arguments.
      fill: puts the rebuilt modules back into the arguments.
      made: where the user lifted it, for the layout.
    """

    method: Function
    func: Function
    detached: Detached
    fill: Callable[[Inputs, Sequence[object]], Inputs]
    made: Made | None = dataclasses.field(default=None, kw_only=True)

    @property
    def own(self) -> int:
        """How many of the scopes, from the first, are the lifted module's.

        Of a container of modules: those of all in it. The others are of modules that it holds or
        that are arguments.
        """
        return self.detached.own

    @property
    def __name__(self) -> str:
        return str(getattr(self.func, "__name__", type(self.func).__name__))

    def __call__(self, scopes: Sequence[Scope], *args: object, **kwargs: object) -> object:
        # New modules for each run of the body: JAX may trace it long after the call, and more than
        # once. What they named is handed on at the end, and nothing else of them.
        built: dict[int, Held] = {}
        module, *taken = self.detached.rebuild(scopes, built)
        args, kwargs = self.fill((args, kwargs), taken)
        y = self.method(module, *args, **kwargs)
        self.detached.take_back(built)
        _check_return(y, self.func)
        return y

    @property
    def heard(self) -> bool:
        """Whether somebody wants to hear of each call of a method."""
        return bool(watch().interceptors)

    def identity(self) -> Hashable:
        """Returns a key: equal for bodies that make one program of equal inputs."""
        # The method too: a class's methods share the caches of one lift.
        return self.func, self.method, self.detached.cls, self.detached.fingerprint()

    def side(self) -> Memory:
        """Returns what the modules remember after the body."""
        return self.detached.memory()

    def restore(self, side: Memory) -> None:
        """Lets the modules remember what ``side`` returned."""
        self.detached.remember(side)


@dataclasses.dataclass(eq=False)
class _LiftedBody(Body):
    """A body under a lift, as the body of the next lift around it."""

    run: Function
    inner: Body

    def __call__(self, scopes: Sequence[Scope], *args: object, **kwargs: object) -> object:
        return self.run(scopes, *args, **kwargs)

    def identity(self) -> Hashable:
        """Returns a key, as that of the body inside."""
        return self.func, self.inner.identity()


def _check_return(y: object, target: object) -> None:
    # One level deep: what lies deeper is found as a tracer that is no array, by JAX.
    parts = y if isinstance(y, (tuple, list)) else y.values() if type(y) is dict else (y,)
    for found in parts:
        if isinstance(found, (Variables, Variable)):
            raise TransformedMethodReturnValueError(
                f"{getattr(target, '__name__', target)}: a lifted method returned a "
                f"{type(found).__name__}, which cannot leave the lift; return arrays, or a "
                f"variable's value"
            )
