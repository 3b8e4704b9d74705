"""Lifts that were written for Linen, over functions of scopes, made lifts of modules.

`liftax.lift` asks for less; here are the names that Linen has for it, with what they do there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from ..core.lift.pack import lifting
from ..core.scope import Scope
from ..core.types import Fn, Function, Tree
from ..errors import TransformTargetError
from ..module.bound import Variables
from ..module.detach import Detached, without_modules
from .target import Body, CoreLift, Methods, call_functions, lift_class, lift_target

__all__ = [
    "Target",
    "decorator_lift_transform",
    "decorator_lift_transform_cached",
    "get_module_scopes",
    "lift_direct_transform",
    "lift_transform",
    "lift_transform_cached",
    "module_class_lift_transform",
    "module_class_lift_transform_cached",
    "set_module_scopes",
]

Target = TypeVar("Target", bound=Callable[..., object] | type[Variables])
"""What is lifted: a module class, or a function whose first argument is a module."""


def lift_transform(
    transform: Callable[..., Any],
    target: Fn,
    *trafo_args: object,
    methods: Methods = None,
    **trafo_kwargs: Any,
) -> Any:
    """Lifts a class or a function of modules by a lift over functions of scopes.

    Args:
      transform: a lift of `liftax.core.lift`, or one of your own that is made with
        `liftax.core.lift.pack`: called as ``transform(fn, *trafo_args, **trafo_kwargs)``, it
        returns a function of scopes and arguments. Its name is the lift's.
      target: a module class, or a function whose first argument is a module.
      methods: for a class: the methods to lift instead of ``__call__``, or a mapping of name to
        the keyword arguments of ``transform`` for that method.

    Example:
      >>> import jax, liftax as nn
      >>> from liftax.core import lift
      >>> def named(fn, label):
      ...     def inner(scope_fn, repack, variables, keys, *args):
      ...         with jax.named_scope(label):
      ...             scopes = scope_fn(variables, keys)
      ...             return fn(scopes, *args), repack(scopes)
      ...     return lift.pack(inner, (True,), (True,), (True,), name='named')
      >>> Named = nn.transforms.lift_transform(named, nn.Dense, 'mine')
      >>> Named.__name__
      'NamedDense'
    """
    if isinstance(target, functools.partial) or isinstance(target, type):
        return module_class_lift_transform(
            transform, target, *trafo_args, methods=methods, **trafo_kwargs
        )
    return decorator_lift_transform(transform, target, *trafo_args, **trafo_kwargs)


def module_class_lift_transform(
    transform: Callable[..., Any],
    module_class: Any,
    *trafo_args: object,
    methods: Methods = None,
    **trafo_kwargs: object,
) -> Any:
    """`lift_transform` for a module class, or a `functools.partial` of one."""
    if isinstance(module_class, functools.partial):
        whole = module_class_lift_transform(
            transform, module_class.func, *trafo_args, methods=methods, **trafo_kwargs
        )
        return functools.partial(whole, *module_class.args, **module_class.keywords)
    name = _name(transform)
    if not isinstance(methods, Mapping):
        core_lift = _core_lift(transform, *trafo_args, **trafo_kwargs)
        return lift_target(name, module_class, core_lift, methods)
    lifts = {method: _core_lift(transform, **kwargs) for method, kwargs in methods.items()}
    return lift_class(name, name.capitalize(), module_class, lifts)


def decorator_lift_transform(
    transform: Callable[..., Any],
    class_fn: Any,
    *trafo_args: object,
    multi_scope: bool = True,
    **trafo_kwargs: object,
) -> Any:
    """`lift_transform` for a function of a module.

    Args:
      class_fn: the function; of a tuple of them ``transform`` gets all, one after the other.
      multi_scope: whether ``transform`` gets a list of scopes, or the only one.
    """
    name = _name(transform)
    if not isinstance(class_fn, tuple) and multi_scope:
        return lift_target(name, class_fn, _core_lift(transform, *trafo_args, **trafo_kwargs))
    functions = class_fn if isinstance(class_fn, tuple) else (class_fn,)

    @functools.wraps(functions[0])
    def lifted(module: Tree, /, *args: Tree, **kwargs: object) -> Any:
        bodies, scopes, plain = call_functions(name, functions, module, args)
        # Code that was written for one scope would find a list where it looks for that.
        if not multi_scope:
            bodies, scopes = _of_one_scope(name, bodies, scopes)
        run = transform(*bodies, *trafo_args, **trafo_kwargs)
        return run(scopes, *plain, **kwargs)

    return lifted


def lift_direct_transform(
    transform: Callable[..., Any],
    targets: Sequence[Function],
    mdl: Tree,
    *args: Tree,
    multi_scope: bool = True,
    **kwargs: object,
) -> Any:
    """Calls a lift that takes scopes and arguments at once, as `liftax.core.lift.vjp` does.

    Args:
      transform: called as ``transform(*functions, scopes, *args, **kwargs)``.
      targets: functions whose first argument is a module.
      mdl: a bound module.
      multi_scope: whether ``transform`` gets a list of scopes, or the only one.

    Example:
      >>> import jax, liftax as nn
      >>> from liftax.core import lift
      >>> class Slope(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         def f(mdl, x):
      ...             return mdl(x).sum()
      ...         y, pull = nn.transforms.lift_direct_transform(
      ...             lift.vjp, (f,), nn.Dense(2), x, multi_scope=False)
      ...         return pull(jax.numpy.ones_like(y))[1]
      >>> Slope().init_with_output(jax.random.key(0), jax.numpy.ones(3))[0].shape
      (3,)
    """
    name = _name(transform)
    bodies, scopes, plain = call_functions(name, tuple(targets), mdl, args)
    if not multi_scope:
        bodies, scopes = _of_one_scope(name, bodies, scopes)
    return transform(*bodies, scopes, *plain, **kwargs)


def _name(transform: object) -> str:
    return str(getattr(transform, "__name__", type(transform).__name__))


def _core_lift(transform: Callable[..., Any], *args: object, **kwargs: object) -> CoreLift:
    """A lift of the user's that knows, while it runs, what it is made of."""

    def core_lift(body: Body) -> Function:
        run = transform(body, *args, **kwargs)

        def call(scopes: Tree, /, *args: object, **kwargs: object) -> object:
            # `pack` is called within the user's code, which hands it nothing of the body.
            token = lifting.set(body)
            try:
                return run(scopes, *args, **kwargs)
            finally:
                lifting.reset(token)

        return call

    return core_lift


def _of_one_scope(name: str, bodies: list[Body], scopes: list[Scope]) -> tuple[list[Any], Any]:
    """Bodies over the only scope, in place of those over a list of scopes."""
    if len(scopes) != 1:
        raise TransformTargetError(
            f"{name}: the module holds {len(scopes) - 1} other modules, at places of their own, or "
            f"they are among the arguments; multi_scope=False goes with one module alone"
        )

    def alone(body: Body) -> Function:
        return lambda scope, *args, **kwargs: body([scope], *args, **kwargs)

    return [alone(body) for body in bodies], scopes[0]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class _Taken:
    """Where a module or a Variable was among arguments: nothing to a transformation.

    Attributes:
      held: what was there.
    """

    held: object


def get_module_scopes(
    module: object, args: Any = None, kwargs: Mapping[str, object] | None = None
) -> tuple[list[Scope], Any, Any]:
    """The scopes of a bound module, of the modules in its fields, and of those in arguments.

    Args:
      module: a bound module.
      args: positional arguments, which may have modules and Variables in them.
      kwargs: keyword arguments, likewise.

    Returns:
      the scopes, and both kinds of arguments without modules and Variables, for
      `set_module_scopes`.

    Example:
      >>> import jax, liftax as nn
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         dense = nn.Dense(2)
      ...         scopes, (x,), _ = nn.transforms.get_module_scopes(dense, (x,), {})
      ...         again, (x,), _ = nn.transforms.set_module_scopes(dense, (x,), {}, scopes)
      ...         return again(x)
      >>> Model().init_with_output(jax.random.key(0), jax.numpy.ones(3))[0].shape
      (2,)
    """
    # None is not an empty tuple to who calls this: it comes back as None.
    inputs, fill, taken = without_modules(tuple(args or ()), dict(kwargs or {}))
    holes = [_Taken(held) for held in taken]
    (plain_args, plain_kwargs) = fill(inputs, holes) if taken else inputs
    scopes = Detached([module, *taken]).scopes
    return (
        scopes,
        None if args is None else type(args)(plain_args),
        None if kwargs is None else plain_kwargs,
    )


def set_module_scopes(
    module: object, args: Tree, kwargs: Tree, scopes: Sequence[Scope]
) -> tuple[Any, Any, Any]:
    """The module and the arguments rebuilt on other scopes; undoes `get_module_scopes`."""

    def is_hole(value: object) -> bool:
        return isinstance(value, _Taken)

    found = [x for x in jax.tree.leaves((args, kwargs), is_leaf=is_hole) if is_hole(x)]
    new, *others = Detached([module, *(hole.held for hole in found)]).rebuild(scopes)
    left = iter(others)
    new_args, new_kwargs = jax.tree.map(
        lambda x: next(left) if is_hole(x) else x, (args, kwargs), is_leaf=is_hole
    )
    return new, new_args, new_kwargs


# Each lift of ours keeps its programs by what they are made of, whoever made the class.
lift_transform_cached = lift_transform
module_class_lift_transform_cached = module_class_lift_transform
decorator_lift_transform_cached = decorator_lift_transform
