"""A Linen module as one of liftax, side by side with others."""

from __future__ import annotations

import functools
import importlib
import weakref
from collections.abc import Mapping
from typing import Any

from ..core.boxes import AxisMetadata, Partitioned
from ..core.call import Call, LiftedCall
from ..core.filters import DenyList
from ..core.scope import Scope
from ..errors import TransformTargetError
from ..module.fields import UNSET
from ..module.foreign import is_linen_class
from ..module.methods import compact
from ..module.module import Module
from ..spmd import LogicallyPartitioned
from ..words import kind_of

_classes: weakref.WeakKeyDictionary[type, type[FromLinen]] = weakref.WeakKeyDictionary()


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
    if isinstance(module, Module) or (isinstance(module, type) and issubclass(module, Module)):
        return module
    cls = module if isinstance(module, type) else type(module)
    if not is_linen_class(cls) or (cls is module and cls.__name__ == "Module"):
        raise TransformTargetError(
            f"from_linen: expected a module of flax.linen, or a class of them; found "
            f"{kind_of(module)}"
        )
    made = _classes.get(cls)
    if made is None:
        # Of the same name, which automatic names of submodules are made of.
        own = {
            "__module__": cls.__module__,
            "__doc__": cls.__doc__,
            "__init__": FromLinen.__init__,
            "_linen_class": cls,
        }
        made = type(cls.__name__, (FromLinen,), own)
        _classes[cls] = made
    if cls is module:
        return made
    if module.scope is not None:
        raise TransformTargetError(
            f"from_linen: {cls.__name__} is bound already; expected one that was made outside of "
            f"its own init, apply and bind"
        )
    return made(linen=module, name=module.name)


class FromLinen(Module):
    """What `from_linen` makes.

    Attributes:
      linen: the Linen module, bound to nothing.
    """

    linen: Any = None
    _linen_class = None

    def __init__(
        self, *args: Any, parent: Any = UNSET, name: Any = None, linen: Any = None, **kwargs: Any
    ):
        if linen is None:
            assert self._linen_class is not None
            linen = self._linen_class(*args, parent=None, **kwargs)
        self.__dict__.update(linen=linen, parent=parent, name=name)
        self.__post_init__()

    @compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the Linen module."""
        return _call(self.linen, self._bound_scope("a call"), "__call__", args, kwargs)

    @compact
    def _method(self, name: str, *args: Any, **kwargs: Any) -> Any:
        return _call(self.linen, self._bound_scope(name), name, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        linen = self.__dict__.get("linen")
        if name.startswith("__") or linen is None or not hasattr(type(linen), name):
            if name in getattr(type(linen), "__dataclass_fields__", ()):
                return getattr(linen, name)
            return super().__getattr__(name)
        if callable(getattr(type(linen), name)):
            return functools.partial(self._method, name)
        return getattr(linen, name)


def _call(linen: Any, scope: Scope, method: str, args: Any, kwargs: Any) -> Any:
    """Calls a method of a Linen module on a scope of flax's with the same variables and keys."""
    place = importlib.import_module("flax.core.scope")
    theirs = getattr(place, "_real", place)
    before = scope.variables()
    rngs = {
        name: theirs.LazyRng.create(stream.key, *stream.path) for name, stream in scope.rngs.items()
    }
    root = _counting(theirs)(
        _boxed(before, _to_linen),
        rngs,
        name=scope.name,
        mutable=_mutable(scope, theirs),
        path=scope.path,
        flags=scope.call.flags,
    )
    root.ours = scope
    with root.temporary():
        y = getattr(linen.clone(parent=root), method)(*args, **kwargs)
        after = _boxed(root.mutable_variables(), _from_linen)
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

        def push(self, *args: Any, **kwargs: Any) -> Any:
            child = super().push(*args, **kwargs)
            child.__class__ = Counting
            child.ours = self.ours.push(child.name, reuse=True)
            return child

        def make_rng(self, name: str = "params") -> Any:
            self._check_valid()
            return self.ours.make_rng(name)

    return Counting


def _mutable(scope: Scope, theirs: Any) -> Any:
    """The collections that the caller lets be written, as a filter of flax's.

    Those that a lift leaves outside are among them: the Linen module would be silent about what it
    cannot keep, and writing it here says so.
    """
    call: Call = scope.call
    while isinstance(call, LiftedCall):
        call = call.outer
    filter_like = call.mutable
    return theirs.DenyList(filter_like.deny) if isinstance(filter_like, DenyList) else filter_like


def _write(scope: Scope, col: str, tree: Mapping[str, Any], before: Any) -> None:
    """Writes what the Linen module made or changed."""
    for name, value in tree.items():
        old = before.get(name) if isinstance(before, Mapping) else None
        if isinstance(value, Mapping):
            _write(scope.push(name, reuse=True), col, value, old or {})
        elif value is old:
            continue
        elif old is None and scope.get_flag("initializing", False):
            scope._create(col, name, functools.partial(_same, value), value)
        else:
            scope.put_variable(col, name, value)


def _same(value: Any) -> Any:
    return value


def _boxed(tree: Any, change: Any) -> Any:
    """A nested mapping as dicts, with its boxes changed."""
    if isinstance(tree, Mapping):
        return {name: _boxed(part, change) for name, part in tree.items()}
    return change(tree)


def _to_linen(value: Any) -> Any:
    if not isinstance(value, AxisMetadata) or not isinstance(value, Partitioned):
        return value
    linen = importlib.import_module("flax.linen")
    linen = getattr(linen, "_real", linen)
    if isinstance(value, LogicallyPartitioned):
        return linen.LogicallyPartitioned(value.value, value.names, value.mesh, value.rules)
    return linen.Partitioned(value.value, value.names, value.mesh)


def _from_linen(value: Any) -> Any:
    kind = type(value).__module__, type(value).__name__
    if kind == ("flax.core.meta", "Partitioned"):
        return Partitioned(value.value, value.names, value.mesh)
    if kind == ("flax.linen.spmd", "LogicallyPartitioned"):
        return LogicallyPartitioned(value.value, value.names, value.mesh, value.rules)
    return value
