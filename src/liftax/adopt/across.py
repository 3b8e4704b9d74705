"""Modules across: a Linen module as one of liftax, and one of liftax as a Linen module.

Each library knows its own scopes alone. So a call that goes across makes a scope of the other
library over the same variables and keys, runs the method there, and writes what came of it back.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, TypeGuard, TypeVar

from ..core.boxes import AxisMetadata, Partitioned, count_as_boxes
from ..core.call import Call, LiftedCall
from ..core.filters import DenyList, Filter
from ..core.scope import Scope
from ..core.streams import Stream
from ..core.types import Function, Path
from ..errors import TransformTargetError
from ..module.attach import is_module, own_methods
from ..module.fields import UNSET, field_names
from ..module.foreign import is_linen_class
from ..module.methods import compact
from ..module.module import Module
from ..module.run import function_of, on_scope
from ..spmd import LogicallyPartitioned
from ..words import kind_of
from .places import flax_module, real_of

T = TypeVar("T")


class _LinenModule(Protocol):
    """What is used of a module of flax's."""

    scope: object

    def clone(self, *, parent: object) -> _LinenModule:
        """The same module, bound to a scope."""


class _LinenScope(Protocol):
    """What is used of a scope of flax's."""

    name: str | None
    path: Path
    rngs: Mapping[str, object]
    rng_counters: _Counters
    mutable: object
    flags: Mapping[str, object]

    def variables(self) -> Mapping[str, object]:
        """What there is at its place, by collection."""

    def put_variable(self, col: str, name: str, value: object) -> None:
        """Writes one."""


_Counters = dict[Any, Any]
"""How many keys were drawn, as Linen keeps it: by stream, and by a token and a name below."""


class _Twin:
    """The class that was made of a class, kept with it so that both go together.

    It stays behind where the class is pickled.
    """

    def __init__(self, cls: type | None = None):
        self.cls = cls

    def __reduce__(self) -> tuple[type[_Twin], tuple[()]]:
        return _Twin, ()


def _twin(cls: type, make: Callable[[Any], type]) -> Any:
    """Returns the class that ``make`` makes of a class, made once."""
    # In the class's own dict: a subclass is another module, and has a twin of its own.
    known = cls.__dict__.get("_twin")
    if known is None or known.cls is None:
        known = _Twin(make(cls))
        type.__setattr__(cls, "_twin", known)
    return known.cls


def from_linen(module: Any) -> Any:
    """A Linen module as a module of liftax.

    Its variables stand where they would stand if it were one: under its name, in its collections,
    with its boxes, under every lift; its keys are those that it would draw there.

    Args:
      module: an instance of a Linen module, bound to nothing, or a class of them. What is
        liftax's already comes back as it is.

    Returns:
      a module with the same methods; of a class, a class whose instances are made with the same
      arguments, to be lifted for example.

    Raises:
      TransformTargetError: it is neither, or is bound.

    Example:
      >>> import flax.linen, jax, liftax as nn
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.from_linen(flax.linen.Dense(2))(x)
      >>> variables = Model().init(jax.random.key(0), jax.numpy.ones(3))
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    if is_module(module) or _is_ours(module):
        return module
    cls = module if isinstance(module, type) else type(module)
    if not is_linen_class(cls) or (cls is module and cls.__name__ == "Module"):
        raise TransformTargetError(
            f"from_linen: expected a module of flax.linen, or a class of them; found "
            f"{kind_of(module)}"
        )
    made = _twin(cls, _class_of_ours)
    if cls is module:
        return made
    _check_unbound("from_linen", module)
    return made(linen=module, name=module.name)


class FromLinen(Module):
    """What `from_linen` makes.

    Attributes:
      linen: the Linen module, bound to nothing.
    """

    linen: Any = None
    _linen_class = None

    def __init__(
        self,
        *args: object,
        parent: object = UNSET,
        name: str | None = None,
        linen: object = None,
        **kwargs: object,
    ):
        if linen is None:
            assert self._linen_class is not None
            linen = self._linen_class(*args, parent=None, **kwargs)
        self.__dict__.update(linen=linen, parent=parent, name=name)
        self.__post_init__()

    def __getattr__(self, name: str) -> Any:
        linen = self.__dict__.get("linen")
        if linen is not None and not name.startswith("__"):
            known = name in linen.__dataclass_fields__ or hasattr(type(linen), name)
            if known:
                return getattr(linen, name)
        return super().__getattr__(name)


def _class_of_ours(cls: type) -> type:
    """A class of ours whose instances hold a Linen module."""
    # Its variables hold flax's boxes, which a lift around must unbox and name as its own.
    count_as_boxes(_flax("flax.core.meta").AxisMetadata)
    # Of the same name, which automatic names of submodules are made of.
    members: dict[str, object] = {
        "__module__": cls.__module__,
        "__doc__": cls.__doc__,
        "__init__": FromLinen.__init__,
        "_linen_class": cls,
    }
    for name in _methods(cls, _flax("flax.linen").Module):
        members[name] = compact(_forward(name, lambda self: self.linen, _in_linen))
    return type(cls.__name__, (FromLinen,), members)


def to_linen(module: Any) -> Any:
    """A module of liftax as a Linen module; the reverse of `from_linen`.

    For what takes Linen modules alone: a model of Linen's, a library that trains them,
    `flax.nnx.bridge.ToNNX`. Its variables and keys are those of the same module in Linen, and its
    boxes are flax's.

    Args:
      module: an instance of a module, bound to nothing, or a class of them. What is Linen's
        already comes back as it is.

    Raises:
      TransformTargetError: it is neither, or is bound.
      MissingExtraError: flax is not installed.

    Example:
      >>> import flax.linen, jax, liftax as nn
      >>> class Model(flax.linen.Module):
      ...     @flax.linen.compact
      ...     def __call__(self, x):
      ...         return nn.to_linen(nn.Dense(2))(x)
      >>> variables = Model().init(jax.random.key(0), jax.numpy.ones(3))
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    cls = module if isinstance(module, type) else type(module)
    if is_linen_class(cls):
        return module
    if not _is_ours(cls) or cls is Module:
        raise TransformTargetError(
            f"to_linen: expected a module of liftax, or a class of them; found {kind_of(module)}"
        )
    if cls.__mro__[1] is FromLinen:
        return cls._linen_class if cls is module else module.linen
    made = _twin(cls, _linen_class_of)
    if cls is module:
        return made
    _check_unbound("to_linen", module)
    fields = {"liftax": module}
    if cls._plain_init:
        fields = {name: getattr(module, name) for name in field_names(cls)}
    return made(**fields, name=module.name)


def _linen_class_of(cls: type[Module]) -> type:
    """A Linen class with the fields of one of ours, of which each call makes one of ours."""
    base = _flax("flax.linen").Module
    _flax("flax.core.meta").AxisMetadata.register(AxisMetadata)
    own = [f for f in dataclasses.fields(cls) if f.name in field_names(cls)]

    members: dict[str, object] = {f.name: _default(f) for f in own if _default(f) is not None}
    members |= {"__module__": cls.__module__, "__doc__": cls.__doc__}
    members["__annotations__"] = {f.name: f.type for f in own}
    if not cls._plain_init:
        # One field has the module itself. The class has the arguments of ours; the classes that
        # Linen's lifts make of it have not, as of any class with an `__init__` of its own.
        def __init__(self: Any, *args: object, liftax: object = None, **kwargs: Any) -> None:
            place: dict[str, object] = {"parent": made.__dataclass_fields__["parent"].default}
            place |= {key: kwargs.pop(key) for key in ("parent", "name") if key in kwargs}
            own = cls(*args, **kwargs, parent=None) if liftax is None else liftax
            self.__dict__.update({"name": None, **place, "liftax": own})
            self.__post_init__()

        for f in own:
            members.pop(f.name, None)
        members |= {"liftax": None, "__init__": __init__, "__annotations__": {"liftax": Any}}

    def held(self: Any) -> Module:
        if not cls._plain_init:
            return self.liftax
        return cls(**{f.name: getattr(self, f.name) for f in own}, parent=None)

    for name in set(own_methods(cls)).difference(field_names(cls)):
        members[name] = _forward(name, held, _in_liftax)
    made: Any = type(base)(cls.__name__, (base,), members)

    def __getattr__(self: object, name: str) -> Any:
        if not name.startswith("__") and hasattr(cls, name):
            return getattr(held(self), name)
        return base.__getattr__(self, name)

    # Afterwards: Linen would take it for a method, and run setup before it.
    made.__getattr__ = __getattr__
    return made


def _default(field: dataclasses.Field[Any]) -> object:
    """What a class body says of a field that has a default, None of one that has none."""
    if field.default is field.default_factory is dataclasses.MISSING:
        return None
    return dataclasses.field(default=field.default, default_factory=field.default_factory)


def _check_unbound(place: str, module: Module | _LinenModule) -> None:
    if module.scope is not None:
        raise TransformTargetError(
            f"{place}: {type(module).__name__} is bound already; expected one that was made "
            f"outside of its own init, apply and bind"
        )


def _is_ours(value: object) -> TypeGuard[type[Module]]:
    return isinstance(value, type) and issubclass(value, Module)


def _flax(name: str) -> Any:
    """A module of flax's, itself where liftax stands in its place."""
    return real_of(flax_module(name, "from_linen and to_linen need flax, which is not installed"))


def _methods(cls: Any, base: type) -> Iterator[str]:
    """The names of the methods that a Linen class has beyond what every module has."""
    for name in dir(cls):
        # A function may be the default of a field, too.
        if inspect.isfunction(inspect.getattr_static(cls, name)):
            own = not (hasattr(base, name) or name in cls.__dataclass_fields__)
            if name == "__call__" or own and not name.startswith("__"):
                yield name


def _forward(name: str, held: Callable[[Any], object], call: Function) -> Function:
    """A method that is called on the module held, in its own library."""

    def method(self: Any, *args: object, **kwargs: object) -> object:
        return call(held(self), self.scope, name, args, kwargs)

    method.__name__ = method.__qualname__ = name
    return method


# --- there: a method of Linen's on a scope of ours ----------------------------


def _in_linen(
    linen: _LinenModule,
    scope: Scope,
    method: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> object:
    """Calls a method of a Linen module on a scope of flax's with the same variables and keys."""
    theirs = _flax("flax.core.scope")
    before = scope.variables()
    # With the path that is not folded in yet: both libraries fold it in when a key is drawn, and
    # come to the same key.
    rngs = {
        name: theirs.LazyRng.create(stream.key, *stream.path) for name, stream in scope.rngs.items()
    }
    root = _counting(theirs)(
        # Boxes by class: each library asks its own class for what it does with an axis.
        _boxed(before, _to_flax),
        rngs,
        name=scope.name,
        mutable=_mutable(scope, theirs),
        path=scope.path,
        flags=scope.call.flags,
    )
    root.ours = scope
    with root.temporary():
        y = getattr(linen.clone(parent=root), method)(*args, **kwargs)
        after = _boxed(root.mutable_variables(), _from_flax)
    # Only what was made or changed: to write the rest again would be a write that the caller may
    # not have allowed.
    for col, tree in after.items():
        _write(scope, col, tree, before.get(col, {}))
    return y


@functools.cache
def _counting(theirs: Any) -> Any:
    """flax's Scope, with keys that are drawn and counted here.

    A loop around counts the draws of its body as Linen's double trace does, so it must hear of
    them. In a lift of Linen's own there are flax's scopes again.
    """

    class Counting(theirs.Scope):  # type: ignore[misc]
        ours: Scope

        def push(self, *args: object, **kwargs: object) -> Counting:
            child: Counting = super().push(*args, **kwargs)
            child.__class__ = Counting
            child.ours = self.ours.push(child.name, reuse=True)
            return child

        def make_rng(self, name: str = "params") -> object:
            self._check_valid()
            return self.ours.make_rng(name)

    return Counting


def _mutable(scope: Scope, theirs: Any) -> object:
    """The collections that the caller lets be written, as a filter of flax's.

    Those that a lift leaves outside are among them: the Linen module would be silent about what it
    cannot keep, and writing it here says so.
    """
    call: Call = scope.call
    while isinstance(call, LiftedCall):
        call = call.outer
    filter_like = call.mutable
    return theirs.DenyList(filter_like.deny) if isinstance(filter_like, DenyList) else filter_like


def _write(scope: Scope, col: str, tree: Mapping[str, object], before: object) -> None:
    """Writes what the Linen module made or changed."""
    for name, value in tree.items():
        old = before.get(name) if isinstance(before, Mapping) else None
        if isinstance(value, Mapping):
            _write(scope.push(name, reuse=True), col, value, old or {})
        elif value is old:
            continue
        elif old is None and scope.get_flag("initializing", False):
            scope.make_variable(col, name, functools.partial(_same, value), value)
        else:
            scope.put_variable(col, name, value)


def _same(value: T) -> T:
    return value


# --- and back: a method of ours on a scope of Linen's -------------------------


def _in_liftax(
    module: Module,
    scope: _LinenScope | None,
    method: str,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
) -> object:
    """Calls a method of ours on a scope of ours with the same variables and keys."""
    if scope is None:  # to raise the error of an unbound call
        return getattr(module, method)(*args, **kwargs)
    rngs = {name: _stream(key) for name, key in scope.rngs.items()}
    root = Scope(
        _boxed(scope.variables(), _from_flax),
        rngs,
        name=scope.name,
        mutable=_filter(scope.mutable),
        path=scope.path,
        flags=scope.flags,
    )
    # Counts go there and back as the keys do, so that a module on either side draws the next key
    # and not the same one.
    counted = root.call.counters
    counted.update(_counted(scope.rng_counters, scope.path))
    with root.temporary():
        bound = module.clone(name=scope.name)
        y = on_scope(function_of(bound, method), bound)(root, *args, **kwargs)
        written = _boxed(root.mutable_variables(), _to_flax)
        _count(scope.rng_counters, counted, scope.path)
    for col, tree in written.items():
        for name, value in tree.items():
            scope.put_variable(col, name, value)
    return y


def _stream(key: Any) -> Stream:
    """A key of Linen's, which remembers the path that is not yet folded in."""
    return Stream(key.rng, key.suffix) if hasattr(key, "suffix") else Stream(key)


def _filter(filter_like: Any) -> Filter:
    """A filter of flax's as one of ours."""
    # By what it has: flax's class is not imported where only liftax is.
    if hasattr(filter_like, "deny"):
        return DenyList(_filter(filter_like.deny))
    return filter_like


def _counted(counters: _Counters, path: Path) -> Iterator[tuple[Path, dict[str, int]]]:
    """How many keys were drawn at a path and below, which Linen keeps as a tree."""
    yield path, {name: n for name, n in counters.items() if isinstance(name, str)}
    for name, below in counters.items():
        if not isinstance(name, str):
            yield from _counted(below, (*path, name[1]))


def _count(counters: _Counters, counted: Mapping[Path, dict[str, int]], top: Path) -> None:
    """Lets Linen go on counting from here."""
    token = _flax("flax.core.scope").child_rng_token
    for path, counts in counted.items():
        here = counters
        for name in path[len(top) :]:
            here = here.setdefault((token, name), {})
        here.update(counts)


# --- boxes --------------------------------------------------------------------


def _boxed(tree: object, change: Callable[[object], object]) -> Any:
    """A nested mapping as dicts, with its boxes changed."""
    if isinstance(tree, Mapping):
        return {name: _boxed(part, change) for name, part in tree.items()}
    return change(tree)


# A box of somebody's own goes across as it is: each library's class of boxes counts those of the
# other among its own, and both call the same four methods.


def _to_flax(value: object) -> object:
    if type(value) is Partitioned:
        return _flax("flax.core.meta").Partitioned(value.value, value.names, value.mesh)
    if type(value) is LogicallyPartitioned:
        made = _flax("flax.linen.spmd").LogicallyPartitioned
        return made(value.value, value.names, value.mesh, value.rules)
    return value


def _from_flax(value: Any) -> object:
    kind = type(value).__module__, type(value).__name__
    if kind == ("flax.core.meta", "Partitioned"):
        return Partitioned(value.value, value.names, value.mesh)
    if kind == ("flax.linen.spmd", "LogicallyPartitioned"):
        return LogicallyPartitioned(value.value, value.names, value.mesh, value.rules)
    return value
