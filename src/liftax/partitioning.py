"""Logical axis names in collections of their own, as flax.linen.partitioning keeps them.

Here the names of a parameter's axes do not stand in a box around it (`with_logical_partitioning`
does that, and is the newer way) but beside it: what `param_with_axes` declares in ``params`` has
its names in ``params_axes``. The `..._with_axes` lifts keep the two in step. Code bases written so
(t5x, MaxText of old, praxis) run as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, TypeGuard, TypeVar

import jax
from jax.sharding import PartitionSpec

from .absent import refusal
from .core.filters import union
from .core.lift.scan import Transform
from .core.linen_names import CollectionFilter as CollectionFilter
from .core.linen_names import InOutAxis as InOutAxis
from .core.linen_names import InOutScanAxis as InOutScanAxis
from .core.linen_names import PRNGSequenceFilter as PRNGSequenceFilter
from .core.roles import In as ScanIn
from .core.roles import Out as ScanOut
from .core.scope import Scope, Variable
from .core.types import Function, Tree
from .errors import PartitioningMismatchError, UnboundModuleError
from .module.module import Module
from .module.state import local
from .spmd import LogicalPartitionSpec as LogicalPartitionSpec
from .spmd import LogicalRules as LogicalRules
from .spmd import RulesFallback as RulesFallback
from .spmd import get_logical_axis_rules as get_axis_rules
from .spmd import logical_axis_rules as axis_rules
from .spmd import logical_to_mesh as logical_to_mesh
from .spmd import logical_to_mesh_axes as logical_to_mesh_axes
from .spmd import set_logical_axis_rules as set_axis_rules
from .spmd import with_logical_constraint as with_sharding_constraint
from .transforms.remat import remat_after_module as remat
from .transforms.scan import scan
from .transforms.views import map_variables
from .transforms.vmap import vmap

__all__ = [
    "AxisMetadata",
    "PartitionedVariable",
    "RulesFallback",
    "ScanIn",
    "ScanOut",
    "axis_rules",
    "get_axis_names",
    "get_axis_rules",
    "logical_to_mesh",
    "logical_to_mesh_axes",
    "param_with_axes",
    "remat",
    "scan_with_axes",
    "set_axis_rules",
    "variable_with_axes",
    "vmap_with_axes",
    "with_sharding_constraint",
]

Target = TypeVar("Target", bound=Function)
_SUFFIX = "_axes"


@dataclasses.dataclass(frozen=True)
class AxisMetadata:
    """The logical names of one array's axes; a pytree node without leaves.

    Args:
      names: one name or None per axis, or None for an array without names.
    """

    names: tuple[str | None, ...] | None

    def replace(self, **updates: Any) -> AxisMetadata:
        """Returns the same with other names."""
        return dataclasses.replace(self, **updates)


jax.tree_util.register_dataclass(AxisMetadata, data_fields=[], meta_fields=["names"])


def _is_metadata(x: object) -> TypeGuard[AxisMetadata]:
    return isinstance(x, AxisMetadata)


def _the_module(module: Module | None, what: str) -> Module:
    # As in Linen the module is that whose method runs, unless one is given.
    found = local.stack[-1] if module is None else module
    if found is None:
        raise UnboundModuleError(
            f"{what}: no module's method runs here; call it in a compact method or in setup, or "
            f"give it module="
        )
    return found


def _note_names(module: Module, col: str, name: str, axes: tuple[str, ...]) -> None:
    """Stores the names of a variable's axes beside it."""

    def keep(known: object, new: AxisMetadata) -> AxisMetadata:
        if _is_metadata(known) and known != new:
            raise PartitioningMismatchError(
                f"module /{'/'.join(module.path)}: the axes of {name!r} in collection {col!r} are "
                f"called {known.names} already.\nfound: {new.names}\nexpected: the same names "
                f"each time it is declared"
            )
        return new

    # Sown, so that in `apply`, where the collection may not be written, it is no error.
    module.sow(col + _SUFFIX, name + _SUFFIX, AxisMetadata(axes), reduce_fn=keep)


def param_with_axes(
    name: str,
    init_fn: Function,
    *init_args: object,
    axes: tuple[str, ...] | None = None,
    module: Module | None = None,
    **init_kwargs: Any,
) -> Any:
    """Declares a parameter, and the names of its axes in ``params_axes``.

    Args:
      name, init_fn, *init_args, **init_kwargs: as in `Module.param`.
      axes: a logical name for each axis; None declares a parameter without names.
      module: the module; the one whose method runs where None.

    Returns:
      the parameter's value, laid out as the axis rules of the context say.

    Raises:
      UnboundModuleError: no module is given, and none runs.
      PartitioningMismatchError: its axes have other names already.

    Example:
      >>> import jax, liftax as nn
      >>> from liftax.partitioning import get_axis_names, param_with_axes
      >>> class Scale(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         ones = nn.initializers.ones
      ...         return x * param_with_axes('scale', ones, (x.shape[-1],), axes=('embed',))
      >>> variables = Scale().init(jax.random.key(0), jax.numpy.ones(3))
      >>> get_axis_names(variables['params_axes'])
      {'scale': P('embed',)}
    """
    owner = _the_module(module, "param_with_axes")
    value = owner.param(name, init_fn, *init_args, **init_kwargs)
    if axes is None:
        return value
    _note_names(owner, "params", name, axes)
    return with_sharding_constraint(value, PartitionSpec(*axes))


class PartitionedVariable(Variable):
    """A variable whose value is laid out as the axis rules say, when it is read and written.

    Args:
      scope, collection, name: where it is.
      axes: a logical name for each axis, or None.
      fallback: what is done with a name to which no rule applies.
    """

    __slots__ = ("axes", "fallback")

    def __init__(
        self,
        scope: Scope,
        collection: str,
        name: str,
        axes: tuple[str, ...] | None = None,
        fallback: RulesFallback = RulesFallback.AXIS_IS_UNSHARDED,
    ):
        super().__init__(scope, collection, name)
        self.axes = axes
        self.fallback = fallback

    def _laid_out(self, value: object) -> Any:
        if self.axes is None:
            return value
        return with_sharding_constraint(value, PartitionSpec(*self.axes), fallback=self.fallback)

    @property
    def value(self) -> Any:
        """The value."""
        return self._laid_out(Variable.value.fget(self))  # type: ignore[attr-defined]

    @value.setter
    def value(self, value: object) -> None:
        Variable.value.fset(self, self._laid_out(value))  # type: ignore[attr-defined]


def variable_with_axes(
    collection: str,
    name: str,
    init_fn: Function,
    *init_args: object,
    axes: tuple[str, ...] | None = None,
    module: Module | None = None,
    fallback: RulesFallback = RulesFallback.AXIS_IS_UNSHARDED,
    **init_kwargs: Any,
) -> PartitionedVariable:
    """Declares a variable, and the names of its axes in the collection's ``..._axes``.

    Args:
      collection, name, init_fn, *init_args, **init_kwargs: as in `Module.variable`.
      axes: a logical name for each axis; None declares a variable without names.
      module: the module; the one whose method runs where None.
      fallback: what is done with a name to which no rule applies.

    Raises:
      UnboundModuleError: no module is given, and none runs.
      PartitioningMismatchError: its axes have other names already.
    """
    owner = _the_module(module, "variable_with_axes")
    made = owner.variable(collection, name, init_fn, *init_args, **init_kwargs)
    if axes is not None:
        _note_names(owner, collection, name, axes)
    # The variable is made by now: this one only reads and writes it in another way.
    return PartitionedVariable(made.scope, collection, name, axes, fallback)


def get_axis_names(axes_metadata: Mapping[str, Any]) -> dict[str, object]:
    """Returns the names in an ``..._axes`` collection, under the names of the variables.

    Args:
      axes_metadata: nested mapping ``{name}_axes`` -> AxisMetadata.

    Returns:
      nested dict ``{name}`` -> PartitionSpec, or None where there are no names; it fits the
      variables where each has names.
    """

    def spec(names: Iterable[str | None] | None) -> PartitionSpec | None:
        return None if names is None else PartitionSpec(*names)

    found: dict[str, object] = {}
    for key, value in axes_metadata.items():
        if isinstance(value, Mapping):
            found[key] = get_axis_names(value)
        else:
            found[key.removesuffix(_SUFFIX)] = spec(value.names)
    return found


@dataclasses.dataclass(frozen=True)
class _Renamed:
    """Adds the name of a lift's axis to all AxisMetadata of a tree, or takes it out.

    A value and not a closure, so that a lift of one class is found again.
    """

    axis: int
    name: str | None
    added: bool

    def __call__(self, tree: Tree) -> Any:
        def one(x: object) -> object:
            if not _is_metadata(x) or x.names is None:
                return x
            return x.replace(names=self._names(tuple(x.names)))

        return jax.tree.map(one, tree, is_leaf=_is_metadata)

    def _names(self, names: tuple[str | None, ...]) -> tuple[str | None, ...]:
        # Counted in the longer of the two tuples, where negative numbers mean the array's axes.
        at = self.axis + (len(names) + self.added if self.axis < 0 else 0)
        if self.added:
            return (*names[:at], self.name, *names[at:])
        # Another lift's name, or another axis: the two would be out of step from here on.
        if not 0 <= at < len(names) or names[at] != self.name:
            raise PartitioningMismatchError(
                f"the axis at {self.axis} should be called {self.name!r}, but the names are "
                f"{names}; give the lift the name and the axis with which the variable was made"
            )
        return (*names[:at], *names[at + 1 :])


def _with_axis_name(lifted: Target, axis: InOutAxis, name: str | None, col: str) -> Target:
    """Lets the names in a collection have one more where a lift adds an axis."""
    number: int | None = axis.axis if isinstance(axis, (ScanIn, ScanOut)) else axis
    if number is None:
        return lifted
    running = local.stack[-1]
    return map_variables(
        lifted,
        col,
        trans_in_fn=_Renamed(number, name, added=False),
        trans_out_fn=_Renamed(number, name, added=True),
        # In `apply` they are read at most.
        mutable=running is None or running.is_mutable_collection(col),
    )


def scan_with_axes(
    target: Target,
    variable_axes: Mapping[CollectionFilter, InOutScanAxis] = {},
    variable_broadcast: CollectionFilter = False,
    variable_carry: CollectionFilter = False,
    split_rngs: Mapping[PRNGSequenceFilter, bool] = {},
    in_axes: Tree = 0,
    out_axes: Tree = 0,
    length: int | None = None,
    reverse: bool = False,
    unroll: int = 1,
    axis_name: str = "layers",
    axes_collections: tuple[str, ...] = ("params",),
    data_transform: Transform | None = None,
    methods: Iterable[str] | None = None,
) -> Target:
    """`liftax.scan` whose new axis has a name in the ``..._axes`` collections.

    Args:
      axis_name: the logical name of the axis.
      axes_collections: the collections whose variables have names.

    The other arguments are those of `liftax.scan`.
    """
    lifted = scan(
        target,
        variable_axes=variable_axes,
        # Names have no axis: all iterations share them. What they say gets one, below.
        variable_broadcast=union(variable_broadcast, {col + _SUFFIX for col in axes_collections}),
        variable_carry=variable_carry,
        split_rngs=split_rngs,
        in_axes=in_axes,
        out_axes=out_axes,
        length=length,
        reverse=reverse,
        unroll=unroll,
        data_transform=data_transform,
        methods=methods,
    )
    for col in axes_collections:
        # What all iterations share has no axis that could have a name.
        if col in variable_axes:
            lifted = _with_axis_name(lifted, variable_axes[col], axis_name, col + _SUFFIX)
    return lifted


def vmap_with_axes(
    target: Target,
    variable_axes: Mapping[CollectionFilter, InOutAxis],
    split_rngs: Mapping[PRNGSequenceFilter, bool] = {},
    in_axes: Tree = 0,
    out_axes: Tree = 0,
    axis_size: int | None = None,
    axis_name: str | None = None,
    partitioning_axis_names: Mapping[str, str] = {},
    spmd_axis_name: str | None = None,
    methods: Iterable[str] | None = None,
) -> Target:
    """`liftax.vmap` whose new axis has a name in the ``..._axes`` collections.

    Args:
      partitioning_axis_names: collection -> the logical name of the axis.

    The other arguments are those of `liftax.vmap`.
    """
    # Names have no axis, whatever their variables have.
    shared: dict[CollectionFilter, None] = {
        name + _SUFFIX: None for name in partitioning_axis_names
    }
    lifted = vmap(
        target,
        variable_axes={**variable_axes, **shared},
        split_rngs=split_rngs,
        in_axes=in_axes,
        out_axes=out_axes,
        axis_size=axis_size,
        axis_name=axis_name,
        spmd_axis_name=spmd_axis_name,
        methods=methods,
    )
    for col, axis in variable_axes.items():
        if isinstance(col, str) and col in partitioning_axis_names:
            lifted = _with_axis_name(lifted, axis, partitioning_axis_names[col], col + _SUFFIX)
    return lifted


def __getattr__(name: str) -> Any:
    raise refusal(__name__, name, __all__)
