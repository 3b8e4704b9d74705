"""The lifts over module classes and functions of modules.

Lifting a class is lifting its methods; a function of modules is one method. The
module and its arguments are detached (see detach.py), the core lift runs over
their scopes, and the modules are rebuilt on the scopes inside.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..core.cache_keys import typed
from ..core.scope import Variable
from ..errors import (
    LiftMethodError,
    StaticArgumentError,
    TransformedMethodReturnValueError,
    TransformTargetError,
)
from ..module.attach import is_module, own_methods
from ..module.detach import Detached, without_modules
from ..module.methods import intercepted, wrapped
from ..module.state import LIFTED, NEW, state_of, watch
from ..words import kind_of

Target = TypeVar("Target", bound=Callable[..., Any])
F = TypeVar("F", bound=Callable[..., Any])
CoreLift = Callable[[Callable[..., Any]], Callable[..., Any]]
"""Maps a function of scopes, ``(scopes, *args, **kwargs)``, to its lifted twin."""


def remembered(lift: F) -> F:
    """Lets a lift return the class that it made before of the same class and arguments.

    Models lift their blocks each time they are called. What was made is kept with
    the lifted class, so it goes with it, and no more than a few at a time. A
    ``functools.partial`` of a class becomes one of the lifted class.
    """

    @functools.wraps(lift)
    def again(target: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(target, functools.partial) and _is_module_class(target.func):
            lifted = remembered(lift)(target.func, *args, **kwargs)
            return functools.partial(lifted, *target.args, **target.keywords)
        if not _is_module_class(target):
            return lift(target, *args, **kwargs)
        try:
            key = lift.__name__, typed(args) if args else (), typed(kwargs)
        except StaticArgumentError:
            return lift(target, *args, **kwargs)
        known = target.__dict__.get("_lifted_classes")
        if known is None:
            known = _Memory()
            type.__setattr__(target, "_lifted_classes", known)
        made = known.get(key)
        if made is None:
            made = lift(target, *args, **kwargs)
            while len(known) >= _REMEMBERED:
                known.pop(next(iter(known)), None)
            known[key] = made
        return made

    return again  # type: ignore[return-value]


def _is_module_class(target: Any) -> bool:
    return isinstance(target, type) and hasattr(target, "_liftax_module")


_REMEMBERED = 16


class _Memory(dict[Any, Any]):
    """What was lifted of a class; it stays behind where the class is pickled."""

    def __reduce__(self) -> Any:
        return _Memory, ()


def lift_target(
    name: str,
    target: Any,
    core_lift: CoreLift,
    methods: Any = None,
    per_method: Callable[[Mapping[str, Any]], CoreLift] | None = None,
) -> Any:
    """Lifts a module class or a function of modules.

    Args:
      name: the lift's name, as it prefixes the class's: ``Scan``, ``Vmap``.
      target: the class or function.
      core_lift: the lift over functions of scopes.
      methods: for a class: the names of the methods to lift (``__call__``), or a
        mapping of name to the lift's arguments for that method.
      per_method: makes the core lift from such arguments.

    Raises:
      TransformTargetError: the target is neither.
      LiftMethodError: the class has no such method.
    """
    if _is_module_class(target):
        lifts: dict[str, CoreLift] = {}
        if isinstance(methods, Mapping):
            if per_method is None:
                raise no_arguments(name)
            lifts = {method: per_method(arguments) for method, arguments in methods.items()}
        else:
            names = ["__call__"] if methods is None else methods
            names = [names] if isinstance(names, str) else names
            if not isinstance(names, Iterable):
                raise LiftMethodError(
                    f"{spoken(name)}: methods expected names of methods; found {kind_of(names)}"
                )
            lifts = dict.fromkeys(names, core_lift)
        return _lift_class(name, target, lifts)
    if is_module(target) or not callable(target):
        raise TransformTargetError(
            f"{spoken(name)}: expected a module class or a function whose first argument is a "
            f"module; found "
            + (
                f"an instance of {type(target).__name__}. Lift the class and then make the "
                f"instance: nn.{spoken(name)}({type(target).__name__}, ...)(...)"
                if is_module(target)
                else kind_of(target)
            )
        )
    if methods is not None:
        raise TransformTargetError(
            f"{spoken(name)}: methods= goes with a module class; the target is a function"
        )
    return lift_function(spoken(name), target, core_lift)


def spoken(name: str) -> str:
    """The name by which users call a lift; the lifted classes of remat have others, as in Linen."""
    return "remat" if name in ("Checkpoint", "Core_remat_static") else name.lower()


def no_arguments(name: str) -> TransformTargetError:
    """Arguments for each method, where the lift takes the same for all."""
    return TransformTargetError(
        f"{spoken(name)}: methods expected a list of names; this lift takes no arguments per method"
    )


def _lift_class(name: str, target: type, lifts: Mapping[str, CoreLift]) -> type:
    nests: dict[str, _Nest] = {}
    members: dict[str, Any] = {
        "__doc__": target.__doc__,
        "__module__": target.__module__,
        "_nests": nests,
    }
    for method, core_lift in lifts.items():
        defined = any(method in cls.__dict__ for cls in target.__mro__)
        fn = getattr(target, method, None) if defined else None
        if not callable(fn) or method in target._field_names:  # type: ignore[attr-defined]
            raise _no_method(spoken(name), target, method)
        known = target.__dict__.get("_nests", {}).get(method)
        if known is None or known.lifted is not fn:
            known = _Nest(wrapped(fn), target, ())
        nest = known._replace(lifts=(*known.lifts, (core_lift, target)))
        members[method] = _lifted(spoken(name), fn, nest)
        nests[method] = nest._replace(lifted=members[method])
    meta = type(target)
    return meta(name.capitalize() + target.__name__, (target,), members, _as_base=True)


def _no_method(lift: str, target: type, method: Any) -> LiftMethodError:
    """An entry of ``methods`` that is none."""
    own = own_methods(target)
    near = difflib.get_close_matches(str(method), own, n=1)
    what = "is no method of" if isinstance(method, str) and hasattr(target, method) else "is not in"
    return LiftMethodError(
        f"{lift}: methods names {method!r}, which {what} {target.__name__}"
        + (f"; did you mean {near[0]!r}?" if near else "")
        + f"\nexpected: methods= of {', '.join(map(repr, own)) or 'a class with some of its own'}"
    )


def lift_function(name: str, fn: Callable[..., Any], core_lift: CoreLift) -> Callable[..., Any]:
    """Lifts a function whose first argument is a module (or a container of them)."""
    return _lifted(name, fn, _Nest(wrapped(fn), None, ((core_lift, fn),)))


class _Nest(NamedTuple):
    """A method or function under one lift or several.

    Lifts over lifts are one nest: the module is taken off its scope before the outermost and
    rebuilt inside the innermost, and between them there are scopes alone.

    Attributes:
      method: the user's.
      cls: for a method: what the module is an instance of inside.
      lifts: from the inside out, each with the class or function that it was made of.
      lifted: what a class has for the method.
    """

    method: Callable[..., Any]
    cls: type | None
    lifts: tuple[tuple[CoreLift, Any], ...]
    lifted: Any = None


def _lifted(name: str, fn: Callable[..., Any], nest: _Nest) -> Callable[..., Any]:
    method, cls, ((innermost, inside), *others), _ = nest
    outside = nest.lifts[-1][1]

    @functools.wraps(fn)
    def lifted(module: Any, /, *args: Any, **kwargs: Any) -> Any:
        if is_module(module) and module.scope is None:
            # Only to raise the error of an unbound call.
            return method(module, *args, **kwargs)
        (args, kwargs), fill, taken = without_modules(args, kwargs)
        detached = Detached([module, *taken], cls)
        if not detached.scopes:
            raise _unbound(name, outside, module)
        if watch().interceptors:
            _announce(detached, [target for _, target in reversed(others)])
        body = Body(method, inside, detached, fill)
        run = innermost(body)
        for core_lift, target in others:
            body = _LiftedBody(run, body, target)
            run = core_lift(body)
        return run(detached.scopes, *args, **kwargs)

    lifted.wrapped_method = True  # type: ignore[attr-defined]
    return lifted


def _announce(detached: Detached, classes: Sequence[Any] = ()) -> None:
    """Tells interceptors of the modules that a lift takes before any method of theirs has run.

    Linen tries their ``setup`` then, by calling a method that returns its argument, on a copy
    that nobody uses: what interceptors make of it is lost there, and here.

    Args:
      classes: those between the first module's and the one that it is inside all lifts.
    """
    for module in detached.found.values():
        if not is_module(module):
            continue
        state = state_of(module)
        if state.setup != NEW or state.again or state.announced:
            continue
        state.announced = True
        for cls in [type(module), *(classes if module is detached.values[0] else ())]:
            told = module
            if cls is not type(module):
                told = object.__new__(cls)
                told.__dict__.update(module.__dict__)
            intercepted(_returned, LIFTED, told, (np.zeros((), np.int32),), {})


def _returned(module: Any, x: Any) -> Any:
    return x


def call_functions(
    lift: str, functions: Sequence[Callable[..., Any]], module: Any, args: tuple[Any, ...]
) -> tuple[list[Body], list[Any], tuple[Any, ...]]:
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
        if not callable(fn):
            raise TransformTargetError(
                f"{lift}: function {i} expected a function whose first argument is a module; "
                f"found {kind_of(fn)}. Pass the function itself, not what it returns"
            )
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


def _unbound(lift: str, target: Any, module: Any) -> TransformTargetError:
    """A lifted function of no bound module."""
    name = getattr(target, "__name__", kind_of(target))
    found = f"an unbound {type(module).__name__}" if is_module(module) else kind_of(module)
    return TransformTargetError(
        f"{lift} of {name}: the first argument of a lifted function must be a bound module, "
        f"or a container of them.\n"
        f"found: {found}\n"
        f"expected: a module made in setup or in a compact method, or the module itself (self)"
    )


class Body:
    """A method as a function of scopes.

    Args:
      method: called with the rebuilt module.
      target: what the user lifted, for messages and the layout.
      detached: the module and those in the arguments.
      fill: puts the rebuilt modules back into the arguments.

    Attributes:
      own: how many of the scopes, from the first, are those of the lifted module (of a container
        of modules: all in it), and not of modules that it holds or that are arguments.
    """

    def __init__(
        self,
        method: Callable[..., Any],
        target: Any,
        detached: Detached,
        fill: Callable[..., Any],
    ):
        self.method = method
        self.detached = detached
        self.fill = fill
        self.func = target
        self.own = detached.own

    @property
    def __name__(self) -> str:
        return str(getattr(self.func, "__name__", type(self.func).__name__))

    def __call__(self, scopes: Any, *args: Any, **kwargs: Any) -> Any:
        built: dict[int, Any] = {}
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

    def identity(self) -> Any:
        """Returns a key: equal for bodies that make one program of equal inputs."""
        return self.func, self.detached.cls, self.detached.fingerprint()

    def side(self) -> Any:
        """Returns what the modules remember after the body."""
        return self.detached.memory()

    def restore(self, side: Any) -> None:
        """Lets the modules remember what `side` returned."""
        self.detached.remember(side)


class _LiftedBody(Body):
    """A body under a lift, as the body of the next lift around it."""

    def __init__(self, run: Callable[..., Any], body: Body, target: Any):
        super().__init__(body.method, target, body.detached, body.fill)
        self.run = run
        self.body = body

    def __call__(self, scopes: Any, *args: Any, **kwargs: Any) -> Any:
        return self.run(scopes, *args, **kwargs)

    def identity(self) -> Any:
        """Returns a key, as that of the body inside."""
        return self.func, self.body.identity()


def _check_return(y: Any, target: Any) -> None:
    parts = y if isinstance(y, (tuple, list)) else y.values() if type(y) is dict else (y,)
    for found in parts:
        if is_module(found) or isinstance(found, Variable):
            raise TransformedMethodReturnValueError(
                f"{getattr(target, '__name__', target)}: a lifted method returned a "
                f"{type(found).__name__}, which cannot leave the lift; return arrays, or a "
                f"variable's value"
            )


def with_arguments(
    lift: str, core: Callable[..., Any], arguments: Mapping[str, Any], methods: Any
) -> tuple[CoreLift, Any, Callable[[Mapping[str, Any]], CoreLift]]:
    """Fixes a core lift's arguments, for all methods and for each."""

    def with_changes(changes: Mapping[str, Any]) -> CoreLift:
        unknown = [name for name in changes if name not in arguments]
        if unknown:
            near = difflib.get_close_matches(str(unknown[0]), list(arguments), n=1)
            raise LiftMethodError(
                f"{lift}: methods has the unknown argument {unknown[0]!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
                + f" Known: {', '.join(n for n in arguments if not n.startswith('_'))}"
            )
        return core(**{**arguments, **changes})

    return with_changes({}), methods, with_changes
