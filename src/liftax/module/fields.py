"""Module classes as dataclasses: fields, frozen containers, hashing, display."""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import all_leaves

from ..errors import ReservedModuleAttributeError
from ..tracebacks import shorten
from ..words import array_text
from .bound import M, Variables
from .state import state_of

T = TypeVar("T")
Leaf = TypeVar("Leaf")


class _Unset:
    """The default of ``parent``: the module whose method runs when the new one is made."""

    def __repr__(self) -> str:
        return "<the module that runs>"

    def __reduce__(self) -> str:
        return "UNSET"  # there is one: a class that travels by value must find it again


UNSET = _Unset()

ATOMS = frozenset(
    (str, int, float, bool, type(None), type, type(inspect.isfunction), type(jnp.float32))
)
"""The classes of most values by far: neither a container nor a module, and quickly told."""
ARRAYS = (jax.core.Tracer, jax.Array)  # a tracer is told quickly by its class
RESERVED = ("parent", "name")


def declare(cls: type[Variables], kw_only: bool) -> None:
    """Makes a dataclass of a module class, with ``parent`` and ``name`` as keywords.

    A class may say once more that ``name`` is a text, or None.

    Raises:
      ReservedModuleAttributeError: the class declares one of the two as something else.
    """
    annotations = inspect.get_annotations(cls)
    if not annotations and not kw_only and "__eq__" not in cls.__dict__ and _inherits(cls):
        return  # no field of its own: what the base class has will do
    clash = [name for name in RESERVED if name in annotations and not _repeats_name(cls, name)]
    if clash:
        raise ReservedModuleAttributeError(
            f"{cls.__name__}: the fields {RESERVED} are reserved, found {clash}; rename the field"
        )

    # Every class declares the two anew, so that they are keywords and have their defaults,
    # whatever the classes above it did. A subclass may then add fields without a default.
    cls.__annotations__ = {**annotations, "parent": Any, "name": "str | None"}
    cls.parent = dataclasses.field(default=UNSET, repr=False, compare=False, kw_only=True)
    cls.name = dataclasses.field(default=None, kw_only=True)
    for name in annotations:
        field = cls.__dict__.get(name)
        if isinstance(field, dataclasses.Field) and not field.init:
            field.compare = False  # made of the other fields, perhaps by a setup that never ran

    # `dataclass` replaces what a class wrote itself: looked at before, put back afterwards.
    own = dict(cls.__dict__)
    dataclasses.dataclass(cls, kw_only=kw_only, repr=False)
    made: dict[str, object] = cls.__dataclass_fields__  # type: ignore[attr-defined]
    kw_only |= any(name not in made for name in annotations)  # `_: KW_ONLY` is no field
    if not ("__match_args__" in own or kw_only):
        cls.__match_args__ += RESERVED  # type: ignore[attr-defined, misc]
    if own.get("__hash__") is not None:
        cls.__hash__ = own["__hash__"]  # type: ignore[method-assign]
    elif "__eq__" not in own:
        cls.__hash__ = _hash  # type: ignore[method-assign, assignment]

    # The two keywords come last wherever fields are listed.
    for name in RESERVED:
        made[name] = made.pop(name)
    listed = dataclasses.fields(cls)  # type: ignore[arg-type]
    if "__init__" not in own and any(f.kw_only and f.name not in RESERVED for f in listed):
        cls.__init__.__signature__ = _in_order(cls.__init__)  # type: ignore[attr-defined]
    cls._field_names = tuple(f.name for f in listed if f.name not in RESERVED)
    cls._compared = operator.attrgetter(*(f.name for f in listed if f.compare))
    cls._clone_names = tuple(f.name for f in listed if f.init and f.name != "parent")
    # Whether __init__ does no more than to store the fields: `remake` may then leave it out.
    stored = all(getattr(f, "_field_type", None) is not _INITVAR for f in made.values())
    cls._plain_init = "__init__" not in own and stored and all(f.init for f in listed)


def _in_order(init: Callable[..., None]) -> inspect.Signature:
    """The signature of an ``__init__``, its own keywords before ``parent`` and ``name``."""
    found = inspect.signature(init)
    parameters = sorted(found.parameters.values(), key=lambda p: p.name in RESERVED)
    return found.replace(parameters=parameters)


_INITVAR = getattr(dataclasses, "_FIELD_INITVAR", None)


_TEXT_OR_NONE = (str, str | None, "str", "str | None", "Optional[str]", "typing.Optional[str]")


def _repeats_name(cls: type, name: str) -> bool:
    default = cls.__dict__.get(name)
    return name == "name" and default is None and cls.__annotations__[name] in _TEXT_OR_NONE


def field_names(module: Variables | type[Variables]) -> tuple[str, ...]:
    """Returns the names of a module's own fields, without ``parent`` and ``name``."""
    return module._field_names


def own_init_of(cls: type) -> type | None:
    """Returns the class whose own ``__init__`` stands in place of the one made of its fields."""
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if init is not None:
            made = getattr(getattr(init, "__code__", None), "co_filename", "<string>")
            return None if made == "<string>" else base
    return None


def remake(cls: type[M], values: dict[str, object]) -> M:
    """Makes an instance of a module class from the values of all its fields."""
    if not cls._plain_init:
        return cls(**values)
    # A clone is made for each call of each module: the generated __init__ would send every
    # field through the check of __setattr__, which a module in the making cannot fail.
    made = object.__new__(cls)
    made.__dict__.update(values)
    made.__post_init__()
    return made


def _inherits(cls: type) -> bool:
    return len(cls.__bases__) == 1 and hasattr(cls.__bases__[0], "_field_names")


def _hash(self: Variables) -> int:
    # A module that is a static argument of `jax.jit` is hashed in every call: all that it holds
    # at once, and part by part only where that fails.
    if self.scope is None and self.parent is None:
        try:
            return hash((type(self), self._compared(self)))
        except TypeError:
            pass
    # A boundary, spelled out: the call of one would take longer than the hash.
    __tracebackhide__ = True
    try:
        return _hash_of_parts(self)
    except Exception as error:
        shorten(error)
        raise


def _hash_of_parts(self: Variables) -> int:
    if self.scope is not None or getattr(self.parent, "scope", None) is not None:
        raise TypeError(
            f"{type(self).__name__}: a module that stands in a model is not hashable, since it "
            f"holds variables; take its path as the key, or id(module)"
        )
    return hash((type(self), _hashable(self._compared(self))))


def _hashable(value: object) -> Hashable:
    try:
        hash(value)
    except TypeError:
        if isinstance(value, (list, tuple)):
            return tuple(map(_hashable, value))
        if isinstance(value, Mapping):
            return _Items(value)
    return value


class _Items:
    """Has the hash of a mapping's items, which is that of the `FrozenDict` that it equals."""

    def __init__(self, mapping: Mapping[Hashable, object]):
        parts = (hash((key, _hashable(value))) for key, value in mapping.items())
        self.found = functools.reduce(operator.xor, parts, 0)

    def __hash__(self) -> int:
        return self.found


def freeze(value: object) -> object:
    """Returns the value as a field holds it: tuples for lists, fresh plain dicts for dicts."""
    if isinstance(value, (list, tuple)):
        parts = tuple(map(freeze, value))
        return type(value)(*parts) if hasattr(value, "_fields") else parts  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {k: freeze(v) for k, v in value.items()}
    return value


def opened(
    value: object,
) -> tuple[Sequence[object], Sequence[object], Callable[[Sequence[object]], object]]:
    """Opens a container by one level; what is none is empty.

    Every walk over fields and arguments goes by this one function, so that all of them see the
    same containers: those of Python, and any class that JAX knows as a pytree. They are opened by
    one level at a time and not flattened, since what is looked for may be a container itself.

    Returns:
      the keys of its parts (of a NamedTuple the names of its fields), the parts, and a function
      that makes a container like it of other parts.
    """
    if isinstance(value, Mapping):
        keys = list(value)
        return keys, list(value.values()), lambda parts: _mapping_like(value, keys, parts)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return value._fields, value, lambda parts: type(value)(*parts)
    if isinstance(value, (list, tuple)):
        return range(len(value)), value, type(value)
    if all_leaves((value,)):
        return (), (), lambda parts: value
    found, tree = jax.tree_util.tree_flatten_with_path(value, is_leaf=lambda x: x is not value)
    keys = [_key(path[0]) for path, _ in found]
    if isinstance(value, jax.tree_util.Partial):
        keys = ["args", "keywords"]
    return keys, [part for _, part in found], lambda parts: jax.tree.unflatten(tree, parts)


def _mapping_like(
    value: Mapping[Any, object], keys: Iterable[object], parts: Iterable[object]
) -> object:
    items = dict(zip(keys, parts, strict=True))
    if type(value) is dict:
        return items
    if not isinstance(value, dict):
        return type(value)(items)  # type: ignore[call-arg]
    made = copy.copy(value)  # a defaultdict keeps its factory
    for key, part in items.items():
        made[key] = part
    return made


def _key(entry: object) -> object:
    return getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))


def leaves(value: object, is_leaf: Callable[[object], TypeGuard[Leaf]]) -> Iterator[Leaf]:
    """Yields the leaves that ``is_leaf`` has, in containers."""
    if type(value) in ATOMS:
        return
    if is_leaf(value):
        yield value
    elif not isinstance(value, ARRAYS):
        for part in opened(value)[1]:
            yield from leaves(part, is_leaf)


def named_leaves(
    value: object, is_leaf: Callable[[object], TypeGuard[Leaf]], name: str
) -> Iterator[tuple[str, Leaf]]:
    """Yields ``(name, leaf)``, where the name spells out the place: ``layers_0``, ``heads_left``.

    They come in the order of the keys as text (``10`` before ``9``): Linen names a module that
    stands in two places by the first of them in this order.
    """
    if type(value) in ATOMS:
        return
    if is_leaf(value):
        yield name, value
    elif not isinstance(value, ARRAYS):
        keys, parts, _ = opened(value)
        for key, part in sorted(zip(map(str, keys), parts, strict=True), key=lambda item: item[0]):
            yield from named_leaves(part, is_leaf, f"{name}_{key}")


def replaced(
    value: T, is_leaf: Callable[[object], TypeGuard[Leaf]], new: Callable[[Leaf], object]
) -> T:
    """Returns the value with ``new(leaf)`` for the leaves that ``is_leaf`` has.

    A container in which nothing changes is returned as it is.
    """
    if type(value) in ATOMS:
        return value
    if is_leaf(value):
        return new(value)  # type: ignore[return-value]
    if isinstance(value, ARRAYS):
        return value
    _, parts, like = opened(value)
    found = [replaced(part, is_leaf, new) for part in parts]
    return value if all(map(operator.is_, found, parts)) else like(found)  # type: ignore[return-value]


def descriptor_of(cls: type, name: str) -> str | None:
    """Returns the kind of descriptor that a module class has under a name, if it has one."""
    for base in cls.__mro__:
        if name in base.__dict__:
            kind = type(base.__dict__[name])
            own = hasattr(base, "_liftax_module") and hasattr(kind, "__get__")
            return kind.__name__ if own else None
    return None


def show(module: Variables, indent: int = 4) -> str:
    """Shows a module: its class, its fields, and the submodules it has so far."""
    pad = " " * indent
    lines = []
    values = said(module)
    if values:
        lines.append("# attributes")
        for name, value in values.items():
            text = getattr(value, "__name__", None) if callable(value) else None
            lines.append(f"{name} = {text or _text(value)}")
    children = [(n, child) for n, child in state_of(module).children.items() if child is not None]
    if children:
        lines.append("# children")
        lines += [f"{name} = {_text(child)}" for name, child in children]
    if not lines:
        return f"{type(module).__name__}()"
    body = "\n".join(lines).replace("\n", "\n" + pad)
    return f"{type(module).__name__}(\n{pad}{body}\n)"


def said(module: Variables) -> dict[str, object]:
    """The fields that say more than their default, without a ``setup`` to make more."""
    listed = dataclasses.fields(module)  # type: ignore[arg-type]
    known = {}
    for field in listed:
        if field.repr and field.init and field.name not in RESERVED:
            value = module.__dict__.get(field.name, getattr(type(module), field.name, UNSET))
            if value is not UNSET and not _is_default(field, value):
                known[field.name] = value
    return known


def _is_default(field: dataclasses.Field[object], value: object) -> bool:
    """Whether a field has the value that it has where nothing is said."""
    default = field.default
    if default is dataclasses.MISSING and field.default_factory in (dict, list, tuple):
        default = () if field.default_factory is not dict else {}  # as a field holds them
    if value is default:
        return True
    plain = (bool, int, float, str, bytes, tuple, dict)
    if type(value) is not type(default) or not isinstance(value, plain):
        return False
    try:
        return bool(value == default)
    except Exception:  # arrays among them have no one answer
        return False


def _text(value: object) -> str:
    # Of a module no attribute may be asked, which would run its setup.
    plain = isinstance(value, (Variables, type))
    return repr(value) if plain else array_text(value) or repr(value)
