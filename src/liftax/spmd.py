"""Logical axis names: say what an axis *is* in the model, and elsewhere where it lives on the mesh.

A logical name ("batch", "heads") is given to the axes of variables (`LogicallyPartitioned`) and of
activations (`with_logical_constraint`). *Rules* translate logical names to mesh axes:

    rules = (("batch", "data"), ("heads", "model"), ("heads", None))

They are read from top to bottom. A rule applies to the array axis that bears its logical name,
unless that axis has its place already, or one of the rule's mesh axes is taken by another axis of
the same array. A rule may give a tuple of mesh axes, or None for "leave this axis whole".

Rules come from an argument, from the box, or from the context (`logical_axis_rules`), which each
thread has for itself. Without rules and without a mesh nothing is constrained, so the same model
runs on one device.
"""

from __future__ import annotations

import contextlib
import enum
import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec, Sharding

from .core import boxes
from .core.types import Function, Tree
from .errors import PartitioningMismatchError

__all__ = [
    "LogicallyPartitioned",
    "RulesFallback",
    "get_logical_axis_rules",
    "logical_axis_rules",
    "logical_to_mesh",
    "logical_to_mesh_axes",
    "logical_to_mesh_sharding",
    "set_logical_axis_rules",
    "with_logical_constraint",
    "with_logical_partitioning",
]

LogicalRules = Sequence[tuple[str, str | tuple[str, ...] | None]]
LogicalPartitionSpec = PartitionSpec | tuple[Any, ...] | None
Names = tuple[object, ...]
"""For each axis of an array a logical name, None, or `PartitionSpec.UNCONSTRAINED`."""


class RulesFallback(enum.Enum):
    """What `with_logical_constraint` does with an axis name to which no rule applies.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> nn.with_logical_constraint(
      ...     jnp.ones((2, 3)), ('batch', 'unknown'), rules=(('batch', 'data'),),
      ...     fallback=nn.RulesFallback.NO_CONSTRAINT).shape
      (2, 3)
    """

    AXIS_IS_UNSHARDED = "axis_is_unsharded"
    """The axis stays whole."""
    RAISE_ERROR = "raise_error"
    """The name is an error."""
    NO_CONSTRAINT = "no_constraint"
    """The whole array is left alone."""


# One thread may trace a model under other rules than the next one.
class _Context(threading.local):
    rules: LogicalRules = ()


_context = _Context()


def get_logical_axis_rules() -> LogicalRules:
    """Returns the rules of this thread's context.

    Example:
      >>> import liftax as nn
      >>> with nn.logical_axis_rules((('embed', None), ('mlp', 'model'))):
      ...     nn.get_logical_axis_rules()
      (('embed', None), ('mlp', 'model'))
    """
    return _context.rules


def set_logical_axis_rules(rules: LogicalRules) -> None:
    """Sets the rules of this thread's context until they are set again or a surrounding
    `logical_axis_rules` ends.

    Raises:
      PartitioningMismatchError: ``rules`` is not a sequence of rules.

    Example:
      >>> import liftax as nn
      >>> before = nn.get_logical_axis_rules()
      >>> nn.set_logical_axis_rules((('mlp', 'model'),))
      >>> nn.logical_to_mesh_axes(('embed', 'mlp'))
      P(None, 'model')
      >>> nn.set_logical_axis_rules(before)
    """
    _check_rules(rules)
    _context.rules = rules


@contextlib.contextmanager
def logical_axis_rules(rules: LogicalRules) -> Iterator[None]:
    """Uses ``rules`` in this thread for the length of a `with` block.

    Example:
      >>> from liftax import spmd
      >>> with spmd.logical_axis_rules((("batch", "data"), ("embed", None))):
      ...     spmd.logical_to_mesh_axes(("batch", "length", "embed"))
      P('data', None, None)
    """
    before = _context.rules
    set_logical_axis_rules(rules)
    try:
        yield
    finally:
        _context.rules = before


def logical_to_mesh_axes(
    array_dim_names: Sequence[object] | PartitionSpec | None, rules: LogicalRules | None = None
) -> PartitionSpec | None:
    """Translates the logical names of one array's axes to a `PartitionSpec` of mesh axes.

    Names to which no rule applies become None; entries that are None or
    `PartitionSpec.UNCONSTRAINED` stay. `array_dim_names=None` gives None.

    Raises:
      PartitioningMismatchError: a name occurs twice, or names or rules are malformed.

    Example:
      >>> from liftax.spmd import logical_to_mesh_axes
      >>> rules = (("batch", "x"), ("embed", "x"), ("heads", "y"), ("batch", "z"))
      >>> logical_to_mesh_axes(("batch", "length", "heads", "embed"), rules)
      P('x', None, 'y', None)
    """
    if array_dim_names is None:
        return None  # a value without names, among others that have some
    names = _check_names(array_dim_names)
    placed, _ = _place(names, _rules(rules))
    return PartitionSpec(*placed.values())


def _place(names: Names, rules: LogicalRules) -> tuple[dict[int, object], list[str]]:
    """Gives the mesh axes of every array axis, and the names to which no rule applies."""
    # By rule and not by axis: their order is what the user ranks them by.
    waiting = {name: i for i, name in enumerate(names) if isinstance(name, str)}
    found = {i: None if isinstance(name, str) else name for i, name in enumerate(names)}
    taken: set[str] = set()
    for logical, place in rules:
        if logical not in waiting:
            continue
        axes = {place} if isinstance(place, str) else set(place or ())
        # A mesh axis can split one axis of an array; a later rule for this name may still fit.
        if axes & taken:
            continue
        found[waiting.pop(logical)] = tuple(place) if isinstance(place, list) else place or None
        taken |= axes
    return found, list(waiting)


def _rules(rules: LogicalRules | None) -> LogicalRules:
    if rules is None:
        return get_logical_axis_rules()
    _check_rules(rules)
    return rules


def _check_rules(rules: object) -> None:
    if not isinstance(rules, (list, tuple)):
        raise PartitioningMismatchError(
            f"rules must be a sequence of pairs (logical_name, mesh_axis), but it is a "
            f"{type(rules).__name__}; the order of rules matters"
        )
    for rule in rules:
        if not _is_rule(rule):
            raise PartitioningMismatchError(
                f"rules: {rule!r} is not a rule; write (logical_name, mesh_axis), where mesh_axis "
                f"is a name, a tuple of names or None"
            )


def _is_rule(rule: object) -> bool:
    if not (isinstance(rule, (list, tuple)) and len(rule) == 2 and isinstance(rule[0], str)):
        return False
    if isinstance(rule[1], (list, tuple)):
        return all(isinstance(axis, str) for axis in rule[1])
    return rule[1] is None or isinstance(rule[1], str)


def _is_entry(entry: object) -> bool:
    return entry is None or isinstance(entry, str) or entry is PartitionSpec.UNCONSTRAINED


def _check_names(names: object) -> Names:
    if not isinstance(names, (list, tuple, PartitionSpec)):
        raise PartitioningMismatchError(
            f"axis names must be a tuple or PartitionSpec with one entry for each axis, but got "
            f"{names!r} of type {type(names).__name__}"
        )
    entries = tuple(names)
    for entry in entries:
        if not _is_entry(entry):
            raise PartitioningMismatchError(
                f"axis names {entries}: an entry is one logical name or None, but one is "
                f"{entry!r}; to split an axis along several mesh axes write the rule "
                f"('name', ('axis', 'axis'))"
            )
    logical = [entry for entry in entries if isinstance(entry, str)]
    twice = sorted({name for name in logical if logical.count(name) > 1})
    if twice:
        raise PartitioningMismatchError(
            f"axis names {entries}: {', '.join(map(repr, twice))} occurs more than once; give "
            f"each axis of an array its own logical name"
        )
    return entries


def _is_names(x: object) -> bool:
    return isinstance(x, PartitionSpec) or (isinstance(x, tuple) and all(map(_is_entry, x)))


def logical_to_mesh(tree: Tree, rules: LogicalRules | None = None) -> Any:
    """Translates every `PartitionSpec` of logical names in ``tree``; None stays None.

    Example:
      >>> import jax
      >>> from liftax.spmd import logical_to_mesh
      >>> logical_to_mesh({"kernel": jax.P("embed", "mlp")}, (("mlp", "model"),))
      {'kernel': P(None, 'model')}
    """
    chosen = _rules(rules)

    def translate(spec: object) -> PartitionSpec | None:
        if not isinstance(spec, PartitionSpec):
            raise PartitioningMismatchError(
                f"logical_to_mesh takes a tree of PartitionSpecs, but a leaf is a "
                f"{type(spec).__name__}; call get_partition_spec on the variables first"
            )
        return logical_to_mesh_axes(spec, chosen)

    return jax.tree.map(
        translate,
        tree,
        # A box is no leaf to JAX, which would go on into its array: the error is about the box.
        is_leaf=lambda x: isinstance(x, PartitionSpec) or boxes.is_axis_metadata(x),
    )


def logical_to_mesh_sharding(
    tree: Tree, mesh: Mesh | AbstractMesh, rules: LogicalRules | None = None
) -> Any:
    """Translates every `PartitionSpec` of logical names to a `NamedSharding` on ``mesh``.

    The usual way to the shardings of a model's variables, before any of them exists:

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from liftax import spmd
      >>> from liftax.core import meta
      >>> init = spmd.with_logical_partitioning(jax.nn.initializers.ones, ("embed", "mlp"))
      >>> boxes = jax.eval_shape(lambda key: {"kernel": init(key, (4, 8))}, jax.random.key(0))
      >>> mesh = jax.make_mesh((1,), ("model",))
      >>> spmd.logical_to_mesh_sharding(
      ...     meta.get_partition_spec(boxes), mesh, (("mlp", "model"),))["kernel"].spec
      P(None, 'model')
    """
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        logical_to_mesh(tree, rules),
        is_leaf=lambda x: isinstance(x, PartitionSpec),
    )


def with_logical_constraint(
    x: Tree,
    logical_axis_resources: Tree,
    rules: LogicalRules | None = None,
    mesh: Mesh | AbstractMesh | None = None,
    fallback: RulesFallback = RulesFallback.AXIS_IS_UNSHARDED,
) -> Any:
    """Asks for arrays to be laid out as their logical axis names and the rules say.

    Args:
      x: an array or a tree of arrays.
      logical_axis_resources: the names of the axes: a `PartitionSpec` or tuple for one array, or a
        tree of those that is a prefix of ``x``. None leaves the arrays alone.
      rules: the rules; None means those of the context. With no rules at all, ``x`` comes back
        as it is.
      mesh: the mesh; None means the one of the context (`jax.set_mesh`). Without a mesh, ``x``
        comes back as it is. Automatic and explicit mesh axes both work, inside and outside of jit.
      fallback: what to do with a name to which no rule applies.

    Returns:
      ``x``, with the same values.

    Raises:
      PartitioningMismatchError: malformed names or rules; a mesh axis that the mesh lacks; more
        names than the array has axes; no rule, with `RulesFallback.RAISE_ERROR`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from liftax.spmd import with_logical_constraint
      >>> mesh, rules = jax.make_mesh((1,), ("data",)), (("batch", "data"),)
      >>> with jax.set_mesh(mesh):
      ...     y = with_logical_constraint(jnp.ones((4, 2)), ("batch", None), rules=rules)
      >>> y.sharding.spec
      P('data', None)
    """
    chosen, fallback = _rules(rules), RulesFallback(fallback)
    # No rules: the program is to run as if no axis had a name, on one device or on many.
    if not chosen or logical_axis_resources is None:
        return x

    def constrain(names: object, part: object) -> object:
        if names is None:
            return part
        entries = _check_names(names)
        placed, missing = _place(entries, chosen)
        if missing and fallback is RulesFallback.RAISE_ERROR:
            raise PartitioningMismatchError(
                f"axis names {entries}: no rule applies to {', '.join(map(repr, missing))}; the "
                f"rules are {tuple(chosen)}; add one, or choose another fallback"
            )
        # Half of a layout would be a layout too, and not the one that was meant.
        if missing and fallback is RulesFallback.NO_CONSTRAINT:
            return part
        return boxes.constrain(part, PartitionSpec(*placed.values()), mesh)

    return jax.tree.map(
        # To JAX None is a container of nothing, and here it is what an array without names has.
        constrain,
        logical_axis_resources,
        x,
        is_leaf=lambda n: n is None or _is_names(n),
    )


class LogicallyPartitioned(boxes.Partitioned[Any]):
    """A `Partitioned` box whose names are logical, with the rules that translate them.

    Args:
      value: the array.
      names: per axis, a logical name or None.
      mesh: the mesh; None means the one of the context.
      rules: the rules; None means those of the context.

    `get_partition_spec` gives the logical names, to be translated by `logical_to_mesh`;
    `get_sharding` and `unbox` translate with the rules.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> box = nn.LogicallyPartitioned(jnp.ones((4, 8)), ('embed', 'mlp'))
      >>> nn.get_partition_spec(box)
      P('embed', 'mlp')
      >>> nn.logical_to_mesh_axes(box.names, (('mlp', 'model'),))
      P(None, 'model')
    """

    rules: LogicalRules | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        # Tuples: a box is part of the structure of a tree, which must be hashable.
        if self.rules is not None:
            _check_rules(self.rules)
            frozen = tuple((n, tuple(p) if isinstance(p, list) else p) for n, p in self.rules)
            object.__setattr__(self, "rules", frozen)

    def unbox(self, apply_constraint: bool = True) -> Any:
        """Returns the value, constrained where rules and a mesh are known."""
        if not apply_constraint:
            return self.value
        return with_logical_constraint(self.value, self.names, rules=self.rules, mesh=self.mesh)

    def get_sharding(self, mesh: Mesh | AbstractMesh) -> Sharding:
        """Returns the `NamedSharding` that the rules give; with no rules, names are mesh axes."""
        rules = _rules(self.rules)
        if not rules:
            return super().get_sharding(mesh)
        # The rules may have come long after the box: it was made by init, maybe of another program.
        spec = logical_to_mesh_axes(self.names, rules)
        return NamedSharding(mesh, PartitionSpec() if spec is None else spec)


def with_logical_partitioning(
    fn: Function,
    names: Iterable[object],
    mesh: Mesh | AbstractMesh | None = None,
    rules: LogicalRules | None = None,
) -> Callable[..., LogicallyPartitioned]:
    """Makes ``fn`` (usually an initializer) return its result in a `LogicallyPartitioned` box.

    Example:
      >>> import jax
      >>> from liftax.spmd import with_logical_partitioning
      >>> init = with_logical_partitioning(jax.nn.initializers.ones, ("embed", "mlp"))
      >>> init(jax.random.key(0), (4, 8)).names
      ('embed', 'mlp')
    """
    # A text is no tuple of names, though it can be made one: the box refuses it.
    fixed = names if isinstance(names, str) else tuple(names)

    @functools.wraps(fn)
    def boxed(*args: object, **kwargs: object) -> LogicallyPartitioned:
        return LogicallyPartitioned(fn(*args, **kwargs), fixed, mesh, rules)  # type: ignore[arg-type]

    return boxed
