"""Boxed variables: what each axis of an array is called, kept up to date by the lifts.

Vocabulary. A *box* is an `AxisMetadata`: a pytree node around one variable that says something
about every axis of it. `Partitioned` is the box for shardings: it names, per axis, the mesh axis
(or axes) along which the array is split.

Operations. A module that reads a variable sees the array, not the box (`unbox`); writing puts the
new array into the old box (`replace_boxed`). A lift that stacks a variable along a new axis calls
`add_axis` on the stacked tree, and `remove_axis` on the tree that it hands to the body.

Invariants. `remove_axis(i, p)` undoes `add_axis(i, p)`, for negative `i` too: an index always
counts in the *longer* of the two lists of names. Trees without boxes pass through every function
here unchanged, at the price of one plain walk over their containers.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import (
    Any,
    ClassVar,
    Generic,
    Protocol,
    Self,
    TypeGuard,
    TypeVar,
    cast,
    dataclass_transform,
)

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from ..errors import PartitioningMismatchError, PartitioningUnspecifiedError
from .types import Metadata, Tree

T = TypeVar("T")
U = TypeVar("U")
Name = Hashable
"""What the names of a box call one axis: a mesh axis, a tuple of them, or None."""
LogicalNames = tuple[Name, ...]

PARTITION_NAME = "partition_name"
"""Key under which `metadata_params` of a lift gives the name of the axis that the lift adds."""


class AxisMetadata(abc.ABC, Generic[T]):
    """Base class of boxes: one variable and what is known about each of its axes.

    A subclass must be a pytree node (for example with `jax.tree_util.register_dataclass`) whose
    leaves are the leaves of `unbox()`. `params` in `add_axis` and `remove_axis` is the mapping
    given to the lift as `metadata_params`.
    """

    @abc.abstractmethod
    def unbox(self) -> T:
        """Returns the content, one level only (it may itself be a box)."""

    @abc.abstractmethod
    def replace_boxed(self, val: U) -> AxisMetadata[U]:
        """Returns a box of the same kind and metadata around ``val``."""

    @abc.abstractmethod
    def add_axis(self, index: int, params: Metadata) -> Self:
        """Returns the same content with metadata for a new axis at ``index`` of the result."""

    @abc.abstractmethod
    def remove_axis(self, index: int, params: Metadata) -> Self:
        """Undoes `add_axis(index, params)`."""


def _register(cls: type) -> None:
    # Names are no data: a program that was compiled for one set of them is none for another.
    fields = [f.name for f in dataclasses.fields(cls)]
    jax.tree_util.register_dataclass(
        cls, data_fields=["value"], meta_fields=[f for f in fields if f != "value"]
    )


@dataclass_transform(frozen_default=True)
@dataclasses.dataclass(frozen=True)
class Partitioned(AxisMetadata[T]):
    """A variable and the mesh axes along which each of its axes is split.

    Args:
      value: the array (or `jax.ShapeDtypeStruct`); the only part that JAX sees as data.
      names: per axis, a mesh axis, a tuple of mesh axes, or None for "not split".
      mesh: the mesh meant by `names`; None means the mesh of the context (`jax.set_mesh`).

    Subclasses become frozen dataclasses and pytree nodes by themselves; the fields they add are
    static.

    >>> import jax.numpy as jnp
    >>> from liftax.core import meta
    >>> box = meta.Partitioned(jnp.ones((4, 3)), ("in", "out"))
    >>> stacked = box.add_axis(0, {meta.PARTITION_NAME: "layers"})
    >>> stacked.names
    ('layers', 'in', 'out')
    >>> stacked.get_partition_spec()
    P('layers', 'in', 'out')
    """

    value: T
    names: LogicalNames
    mesh: Mesh | AbstractMesh | None = None

    def __post_init__(self) -> None:
        if isinstance(self.names, str):
            raise TypeError(
                f"{type(self).__name__}: names must hold one entry for each axis, "
                f"but it is the string {self.names!r}; write names=({self.names!r},)."
            )
        object.__setattr__(self, "names", tuple(self.names))

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        _register(cls)

    def unbox(self, apply_constraint: bool = True) -> T:
        """Returns the value, constrained to the named sharding where a mesh is known.

        With `apply_constraint=False` the value is returned as it is stored.
        """
        if not apply_constraint:
            return self.value
        return constrain(self.value, self.get_partition_spec(), self.mesh)

    def replace_boxed(self, val: U) -> Partitioned[U]:
        return self.replace(value=val)  # type: ignore[return-value]

    def replace(self, **updates: Any) -> Self:
        """Returns a copy with some fields replaced."""
        return dataclasses.replace(self, **updates)

    def _axis_name(self, params: Metadata) -> Name:
        if PARTITION_NAME not in params:
            raise PartitioningUnspecifiedError(
                f"a lift adds or removes an axis of a variable whose axes are called {self.names}, "
                f"but does not say what that axis is called; give the lift metadata_params="
                f"{{{PARTITION_NAME!r}: 'name'}} (None for an axis that is not split)"
            )
        return params[PARTITION_NAME]

    def add_axis(self, index: int, params: Metadata) -> Self:
        """Inserts the name `params["partition_name"]` at ``index`` of the resulting names.

        An index past the end fills the axes in between with None, since names may stop before the
        last axes.

        Raises:
          PartitioningUnspecifiedError: ``params`` does not say the name of the axis.
          PartitioningMismatchError: a negative index that points before the first axis.
        """
        name = self._axis_name(params)
        names = list(self.names)
        # Counted in the longer list, so that `remove_axis` of the same index undoes it.
        at = index + len(names) + 1 if index < 0 else index
        if at < 0:
            raise PartitioningMismatchError(
                f"cannot add the axis {name!r} at {index}: a box with the names {self.names} has "
                f"room for an axis at {-len(names) - 1} or later"
            )
        names += [None] * (at - len(names))
        names.insert(at, name)
        return self.replace(names=tuple(names))

    def remove_axis(self, index: int, params: Metadata) -> Self:
        """Takes out the name at ``index``, which must be `params["partition_name"]`.

        Raises:
          PartitioningUnspecifiedError: ``params`` does not say the name of the axis.
          PartitioningMismatchError: the axis at ``index`` carries another name.
        """
        name = self._axis_name(params)
        names = list(self.names)
        at = index + len(names) if index < 0 else index
        found = names[at] if 0 <= at < len(names) else None
        if found != name or at < 0:
            raise PartitioningMismatchError(
                f"the axis at {index} should be called {name!r} (metadata_params"
                f"[{PARTITION_NAME!r}]), but the names of the variable are {self.names}; give the "
                f"lift the name and the axis with which the variable was made"
            )
        del names[at : at + 1]
        return self.replace(names=tuple(names))

    def get_partition_spec(self) -> PartitionSpec:
        """Returns the names as a `PartitionSpec`."""
        return PartitionSpec(*self.names)

    def get_sharding(self, mesh: Mesh | AbstractMesh) -> Sharding:
        """Returns the `NamedSharding` of the names on ``mesh``."""
        return NamedSharding(mesh, self.get_partition_spec())

    _in_nnx: ClassVar[dict[str, str]] = {"names": "out_sharding", "rules": "sharding_rules"}

    def to_nnx_metadata(self) -> dict[str, Any]:
        """Returns the fields under the names that a variable of `flax.nnx` gives them."""
        return {self._in_nnx.get(name, name): value for name, value in vars(self).items()}

    @classmethod
    def from_nnx_metadata(cls, metadata: Metadata) -> Self:
        """Returns the box of which `to_nnx_metadata` told, perhaps among other things."""
        fields = [f.name for f in dataclasses.fields(cls)]
        return cls(**{name: metadata[cls._in_nnx.get(name, name)] for name in fields})


_register(Partitioned)


def with_partitioning(
    fn: Callable[..., T],
    names: Iterable[Name],
    mesh: Mesh | AbstractMesh | None = None,
) -> Callable[..., Partitioned[T]]:
    """Makes ``fn`` (usually an initializer) return its result in a `Partitioned` box.

    >>> import jax
    >>> from liftax.core.boxes import with_partitioning
    >>> init = with_partitioning(jax.nn.initializers.lecun_normal(), (None, "model"))
    >>> init(jax.random.key(0), (4, 8)).names
    (None, 'model')
    """
    # A string would become a tuple of its letters: the box itself refuses it, and says so.
    fixed = names if isinstance(names, str) else tuple(names)

    @functools.wraps(fn)
    def boxed(*args: object, **kwargs: object) -> Partitioned[T]:
        return Partitioned(fn(*args, **kwargs), fixed, mesh)  # type: ignore[arg-type]

    return boxed


def is_axis_metadata(val: object) -> TypeGuard[AxisMetadata[Any]]:
    """Tells whether ``val`` is a box."""
    # Much cheaper than isinstance on an abstract base class, and asked at every leaf.
    return not _KINDS.isdisjoint(type(val).__mro__)


_KINDS: set[type] = {AxisMetadata}


def count_as_boxes(cls: type) -> None:
    """Lets subclasses of ``cls``, which have the four methods of an `AxisMetadata`, be boxes."""
    _KINDS.add(cls)


def holds_boxes(tree: object) -> bool:
    """Tells whether any value in ``tree`` is in a box."""
    if type(tree) in (dict, tuple, list):
        values = list(tree.values() if isinstance(tree, dict) else cast(Iterable[object], tree))
        return not _are_bare(values) and any(map(holds_boxes, values))
    if is_axis_metadata(tree):
        return True
    return any(map(is_axis_metadata, jax.tree.leaves(tree, is_leaf=is_axis_metadata)))


def _are_bare(values: Sequence[object]) -> bool:
    """Tells whether no value is a box or a container; none is asked in Python."""
    for kind in set(map(type, values)):
        if not _KINDS.isdisjoint(kind.__mro__):
            return False
    return jax.tree_util.all_leaves(values)


def map_axis_meta(fn: Callable[[AxisMetadata[Any]], object], tree: Any) -> Any:
    """Replaces every outermost box in ``tree`` by `fn(box)`; all else stays as it is.

    >>> import jax
    >>> from liftax.core.boxes import Partitioned, map_axis_meta
    >>> map_axis_meta(lambda box: box.names, {"a": Partitioned(1.0, ("x",)), "b": 2.0})
    {'a': ('x',), 'b': 2.0}
    """
    # The containers that variables are made of are walked in plain Python, without asking JAX about
    # each node: this runs at every read of every variable.
    kind = type(tree)
    if kind is dict:
        return {k: map_axis_meta(fn, v) for k, v in tree.items()}
    if kind is list or kind is tuple:
        return kind(tree if _are_bare(tree) else [map_axis_meta(fn, v) for v in tree])
    if is_axis_metadata(tree):
        return fn(tree)
    if jax.tree_util.all_leaves((tree,)):
        return tree
    return jax.tree.map(
        lambda x: fn(x) if is_axis_metadata(x) else x, tree, is_leaf=is_axis_metadata
    )


def unbox(tree: Tree) -> Any:
    """Takes every variable out of its box (and out of a box within the box).

    >>> from liftax.core.boxes import Partitioned, unbox
    >>> unbox({"kernel": Partitioned(1.0, ("x",)), "bias": 2.0})
    {'kernel': 1.0, 'bias': 2.0}
    """
    return map_axis_meta(_open, tree)


def _open(box: AxisMetadata[object]) -> object:
    return unbox(box.unbox())


class Change(Protocol):
    """A change of the boxes in a tree: `add_axis` or `remove_axis`."""

    def __call__(self, tree: T, index: int, params: Metadata, /) -> T: ...


def add_axis(tree: T, index: int, params: Metadata) -> T:
    """Calls `add_axis(index, params)` on every box in ``tree``."""
    return map_axis_meta(lambda box: box.add_axis(index, params), tree)


def remove_axis(tree: T, index: int, params: Metadata) -> T:
    """Calls `remove_axis(index, params)` on every box in ``tree``."""
    return map_axis_meta(lambda box: box.remove_axis(index, params), tree)


def replace_boxed(tree: Any, updates: Any) -> Any:
    """Puts the values of ``updates`` into the boxes of ``tree``; without a box it is the update.

    ``updates`` has the structure of `unbox(tree)`, and may go deeper.

    Raises:
      ValueError: the containers of the two trees differ.

    >>> import jax
    >>> from liftax.core.boxes import Partitioned, replace_boxed
    >>> replace_boxed({"kernel": Partitioned(1.0, ("x",))}, {"kernel": 5.0})
    {'kernel': Partitioned(value=5.0, names=('x',), mesh=None)}
    """
    kind = type(tree)
    if kind is dict and type(updates) is dict and tree.keys() == updates.keys():
        return {k: replace_boxed(tree[k], v) for k, v in updates.items()}
    if is_axis_metadata(tree):
        return tree.replace_boxed(replace_boxed(_content(tree), updates))
    if kind is not dict and jax.tree_util.all_leaves((tree,)):
        return updates

    def put(old: object, new: Tree) -> Tree:
        return replace_boxed(old, new) if is_axis_metadata(old) else new

    return jax.tree.map(put, tree, updates, is_leaf=is_axis_metadata)


def _content(box: AxisMetadata[T]) -> T:
    """What is in the box as stored: `unbox` may constrain the sharding of the old value."""
    return box.value if isinstance(box, Partitioned) else box.unbox()


def get_partition_spec(tree: Tree) -> Any:
    """Replaces each box by its `PartitionSpec`, each array by an empty one, all else by None.

    Works on the result of `jax.eval_shape` too, so that shardings are known before any array is.

    >>> import jax, jax.numpy as jnp
    >>> from liftax.core.boxes import Partitioned, get_partition_spec
    >>> get_partition_spec({"a": Partitioned(jnp.ones((2, 4)), ("x", None)), "b": jnp.ones(4)})
    {'a': P('x', None), 'b': P()}
    """

    def spec(x: Any) -> PartitionSpec | None:
        if hasattr(x, "get_partition_spec"):
            return x.get_partition_spec()
        return PartitionSpec() if hasattr(x, "shape") else None

    return jax.tree.map(spec, tree, is_leaf=is_axis_metadata)


def get_sharding(tree: Tree, mesh: Mesh | AbstractMesh) -> Any:
    """Replaces each box by its `NamedSharding` on ``mesh``, each array by "on every device".

    What is neither becomes None, as in `get_partition_spec`.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> mesh = jax.make_mesh((1,), ('model',))
      >>> layer = nn.Dense(8, kernel_init=nn.with_partitioning(
      ...     nn.initializers.lecun_normal(), (None, 'model')))
      >>> shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones((2, 4)))
      >>> shardings = nn.get_sharding(shapes, mesh)
      >>> shardings['params']['kernel'].spec, shardings['params']['bias'].spec
      (P(None, 'model'), P())
    """

    def sharding(x: Any) -> Sharding | None:
        if hasattr(x, "get_sharding"):
            return x.get_sharding(mesh)
        return NamedSharding(mesh, PartitionSpec()) if hasattr(x, "shape") else None

    return jax.tree.map(sharding, tree, is_leaf=is_axis_metadata)


def get_global_mesh() -> AbstractMesh | None:
    """Returns the mesh of the context (`jax.set_mesh`), or None where there is none."""
    mesh = jax.sharding.get_abstract_mesh()
    return None if mesh.empty else mesh


def global_mesh_defined() -> bool:
    """Tells whether the context has a mesh."""
    return get_global_mesh() is not None


def constrain(value: T, spec: PartitionSpec, mesh: Mesh | AbstractMesh | None = None) -> T:
    """Asks for ``value`` to be laid out as ``spec`` says, on ``mesh`` or else the context's mesh.

    Without any mesh, and for what is not an array, the value is returned as it is. Each kind of
    mesh axis is asked in its own way: automatic axes by a sharding constraint, explicit axes by
    `jax.sharding.reshard`; manual axes (inside `jax.shard_map`) are split already and drop out.

    Raises:
      PartitioningMismatchError: ``spec`` has more entries than the array has axes, or names an axis
        that the mesh lacks.
    """
    # A mesh that stands in the box is meant even where the context has another.
    target = get_global_mesh() if mesh is None else mesh
    if target is None:
        return value
    lay_out = _lay_out_in_jit if AxisType.Auto in target.axis_types else _lay_out

    def one(x: Any) -> object:
        if not (isinstance(x, jax.Array) or hasattr(x, "__array__")):
            return x
        _check_spec(spec, target, x.ndim)
        return lay_out(x, spec, target)

    laid_out: T = jax.tree.map(one, value)
    return laid_out


def part_of(spec: PartitionSpec, mesh: Mesh | AbstractMesh, kind: AxisType) -> NamedSharding:
    """Returns what ``spec`` says of the axes of one kind."""
    keep = {n for n, t in zip(mesh.axis_names, mesh.axis_types, strict=True) if t == kind}
    return NamedSharding(mesh, PartitionSpec(*(_keep(entry, keep) for entry in spec)))


def _lay_out(x: jax.Array, spec: PartitionSpec, mesh: Mesh | AbstractMesh) -> jax.Array:
    if AxisType.Explicit in mesh.axis_types:
        x = jax.sharding.reshard(x, part_of(spec, mesh, AxisType.Explicit))
    if AxisType.Auto in mesh.axis_types:
        x = jax.lax.with_sharding_constraint(x, part_of(spec, mesh, AxisType.Auto))
    return x


# A constraint on automatic axes cannot move an array that lies on one device, outside of jit, to a
# mesh known only abstractly; inside of jit it can, and `inline` leaves nothing of this jit in an
# outer one.
_lay_out_in_jit = jax.jit(_lay_out, static_argnums=(1, 2), inline=True)


def _keep(entry: Name, names: set[Name]) -> Name:
    if isinstance(entry, tuple):
        return tuple(name for name in entry if name in names) or None
    if entry is None or entry is PartitionSpec.UNCONSTRAINED:
        return entry
    return entry if entry in names else None


def _check_spec(spec: PartitionSpec, mesh: Mesh | AbstractMesh, ndim: int) -> None:
    if len(spec) > ndim:
        raise PartitioningMismatchError(
            f"the names {tuple(spec)} describe {len(spec)} axes, but the array has {ndim}; give "
            f"one name (or None) for each axis"
        )
    types = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for entry in spec:
        names = entry if isinstance(entry, tuple) else (entry,)
        kinds = {types.get(name) for name in names}
        if {AxisType.Auto, AxisType.Explicit} <= kinds:
            raise PartitioningMismatchError(
                f"{entry} splits one axis of the array along automatic and explicit axes of the "
                f"mesh; give them one kind (axis_types of jax.make_mesh)"
            )
        for name in names:
            if name is None or name is PartitionSpec.UNCONSTRAINED or name in mesh.axis_names:
                continue
            raise PartitioningMismatchError(
                f"the axis name {name!r} in {tuple(spec)} is not an axis of the mesh, whose axes "
                f"are {tuple(mesh.axis_names)}; name one of those, or give a logical name a rule "
                f"(liftax.logical_axis_rules)"
            )
