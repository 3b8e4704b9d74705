"""Module classes as dataclasses: fields, frozen containers, hashing, display."""

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import all_leaves

from ..errors import ReservedModuleAttributeError

UNSET = object()
"""The default of ``parent``: the module whose method runs when the new one is made."""

_ATOMS = frozenset(
    (str, int, float, bool, type(None), type, type(inspect.isfunction), type(jnp.float32))
)
ARRAYS = (jax.core.Tracer, jax.Array)  # a tracer is told quickly by its class
RESERVED = ("parent", "name")


def declare(cls: type, kw_only: bool) -> None:
    """Makes a dataclass of a module class, with ``parent`` and ``name`` as keywords.

    Raises:
      ReservedModuleAttributeError: the class declares one of the two itself.
    """
    annotations = inspect.get_annotations(cls)
    if not annotations and not kw_only and "__eq__" not in cls.__dict__ and _inherits(cls):
        return  # no field of its own: what the base class has will do
    clash = [name for name in RESERVED if name in annotations]
    if clash:
        raise ReservedModuleAttributeError(
            f"{cls.__name__}: the fields {RESERVED} are reserved, found {clash}; rename the field"
        )
    cls.__annotations__ = {**annotations, "parent": Any, "name": "str | None"}
    cls.parent = dataclasses.field(  # type: ignore[attr-defined]
        default=UNSET, repr=False, compare=False, kw_only=True
    )
    cls.name = dataclasses.field(default=None, kw_only=True)  # type: ignore[attr-defined]
    own_hash = cls.__dict__.get("__hash__")
    own_init = "__init__" in cls.__dict__
    own_eq = "__eq__" in cls.__dict__
    dataclasses.dataclass(cls, kw_only=kw_only, repr=False)
    if own_hash is not None:
        cls.__hash__ = own_hash  # type: ignore[method-assign]
    elif not own_eq:
        cls.__hash__ = _hash  # type: ignore[method-assign, assignment]
    # The two keywords come last wherever fields are listed.
    for name in RESERVED:
        _fields_of(cls)[name] = _fields_of(cls).pop(name)
    names = [f.name for f in dataclasses.fields(cls) if f.name not in RESERVED]
    cls._field_names = tuple(names)  # type: ignore[attr-defined]
    # Whether __init__ does no more than to store the fields.
    cls._plain_init = (  # type: ignore[attr-defined]
        not own_init
        and all(f.init for f in dataclasses.fields(cls))
        and all(getattr(f, "_field_type", None) is not _INITVAR for f in _fields_of(cls).values())
    )
    cls._clone_names = tuple(  # type: ignore[attr-defined]
        f.name for f in dataclasses.fields(cls) if f.init and f.name != "parent"
    )


_INITVAR = getattr(dataclasses, "_FIELD_INITVAR", None)


def _fields_of(cls: Any) -> dict[str, Any]:
    return cls.__dataclass_fields__


def remake(cls: Any, values: dict[str, Any]) -> Any:
    """Makes an instance of a module class from the values of all its fields."""
    if not cls._plain_init:
        return cls(**values)
    made = object.__new__(cls)
    made.__dict__.update(values)
    made.__post_init__()
    return made


def _inherits(cls: type) -> bool:
    return len(cls.__bases__) == 1 and hasattr(cls.__bases__[0], "_field_names")


def _hash(self: Any) -> int:
    values = [getattr(self, name) for name in (*self._field_names, "name")]
    return hash((type(self), *map(_hashable, values)))


def _hashable(value: Any) -> Any:
    if isinstance(value, Mapping):
        return frozenset((k, _hashable(v)) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(map(_hashable, value))
    return value


def freeze(value: Any) -> Any:
    """Returns the value with tuples for lists and fresh dicts for mappings."""
    if isinstance(value, list) or type(value) is tuple:
        return tuple(map(freeze, value))
    if type(value) is dict:
        return {k: freeze(v) for k, v in value.items()}
    return value


def is_atom(value: Any) -> bool:
    """Tells quickly that a value is neither a container nor a module."""
    return type(value) in _ATOMS


def parts(value: Any, is_leaf: Callable[[Any], bool], suffix: str = "") -> Iterator[Any]:
    """Yields ``(suffix, leaf)`` for the leaves that ``is_leaf`` has, in containers.

    The suffix spells out the place: ``_0`` in a list, ``_key`` in a mapping.
    """
    if type(value) in _ATOMS:
        return
    if is_leaf(value):
        yield suffix, value
    elif isinstance(value, ARRAYS):
        return
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from parts(part, is_leaf, f"{suffix}_{key}")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            yield from parts(part, is_leaf, f"{suffix}_{i}")
    elif not all_leaves((value,)):
        for path, part in jax.tree_util.tree_leaves_with_path(value, is_leaf=is_leaf):
            if is_leaf(part):
                yield suffix + "".join(f"_{_key(k)}" for k in path), part


def replaced(value: Any, is_leaf: Callable[[Any], bool], new: Callable[[Any], Any]) -> Any:
    """Returns the value with ``new(leaf)`` for the leaves that ``is_leaf`` has.

    A container in which nothing changes is returned as it is.
    """
    kind = type(value)
    if kind in _ATOMS:
        return value
    if is_leaf(value):
        return new(value)
    if isinstance(value, ARRAYS):
        return value
    if kind is dict or isinstance(value, Mapping):
        items = {k: replaced(v, is_leaf, new) for k, v in value.items()}
        if all(map(operator.is_, items.values(), value.values())):
            return value
        return items if kind is dict else kind(items)
    if isinstance(value, (list, tuple)):
        found = [replaced(v, is_leaf, new) for v in value]
        if all(map(operator.is_, found, value)):
            return value
        return kind(*found) if hasattr(value, "_fields") else kind(found)
    if not all_leaves((value,)):
        return jax.tree.map(lambda x: new(x) if is_leaf(x) else x, value, is_leaf=is_leaf)
    return value


def _key(entry: Any) -> Any:
    return getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry)))


def show(module: Any, indent: int = 4) -> str:
    """Shows a module: its class, its fields, and the submodules it has so far."""
    pad = " " * indent
    lines = []
    fields = [f.name for f in dataclasses.fields(module) if f.repr and f.name not in RESERVED]
    if fields:
        lines.append("# attributes")
        for name in fields:
            value = getattr(module, name, None)
            text = getattr(value, "__name__", None) if callable(value) else None
            lines.append(f"{name} = {text or _text(value)}")
    children = {name: child for name, child in module._state.children.items() if child is not None}
    if children:
        lines.append("# children")
        lines += [f"{name} = {_text(child)}" for name, child in children.items()]
    if not lines:
        return f"{type(module).__name__}()"
    body = "\n".join(lines).replace("\n", "\n" + pad)
    return f"{type(module).__name__}(\n{pad}{body}\n)"


def _text(value: Any) -> str:
    if hasattr(value, "shape") and hasattr(value, "dtype") and not isinstance(value, type):
        return f"{value.dtype}[{','.join(map(str, value.shape))}]"
    return repr(value)
