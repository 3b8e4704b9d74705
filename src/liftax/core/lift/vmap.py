"""The lifted map over an axis of examples: vmap."""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ... import jax_private
from ...errors import AxesTreeError, AxisNameError, LiftError, LoopDependentError
from ...pytrees import Rest, split_by
from ...words import shown
from .. import boxes
from ..call import Call, LiftedCall
from ..filters import Filter
from ..refusals import unbound_axis
from ..roles import BROADCAST, Axis, Roles, VariableAxes, axis_rows, broadcast, split_pairs
from ..scope import Scope
from ..streams import Keyed
from ..types import Function, Group, Metadata, Path, Tree
from .axes import Sizes, axes_of, named, unnamed
from .checks import (
    check_arguments,
    check_out_axes,
    check_variable_axes,
    split_shared,
)
from .crossing import Opening
from .options import Options, lift_of
from .split import split_alike

__all__ = ["vmap"]


@dataclasses.dataclass(frozen=True, eq=False)
class Vmap(Options):
    """`liftax.vmap` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``; ``scope`` may be a pytree of
        scopes.

    The other arguments are those of `liftax.vmap`.

    Returns:
      the same function over a batch.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from liftax.core import init, lift
      >>> def layer(scope, x):
      ...     return x @ scope.param('w', jax.random.normal, (3, 2))
      >>> batched = lift.vmap(
      ...     layer, variable_axes={'params': None}, split_rngs={'params': False})
      >>> y, variables = init(batched)(jax.random.key(0), jnp.ones((5, 3)))
      >>> y.shape, variables['params']['w'].shape
      ((5, 2), (3, 2))
    """

    lift = "vmap"

    variable_axes: VariableAxes
    split_rngs: Mapping[Filter, bool]
    in_axes: Tree = 0
    out_axes: Tree = 0
    axis_size: int | None = None
    axis_name: str | None = None
    spmd_axis_name: str | None = None
    metadata_params: Metadata = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        for axis in jax.tree.leaves(self.out_axes):
            if not isinstance(axis, int):
                raise AxesTreeError(
                    f"vmap: out_axes expected ints, or None for a value that is the same for each "
                    f"example; found {axis if axis is broadcast else shown(axis)}"
                )

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        rows = axis_rows(self.variable_axes, "vmap", shared=True)
        return Roles("vmap", rows, split_pairs(self.split_rngs, "vmap"))

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a map: takes the scopes apart, maps the pure body, writes back what came out."""
        opening = Opening(self.roles, scopes, fn)
        check_arguments(opening)
        in_axes = axes_of(self.in_axes, args, opening, "in_axes", skip=1)
        if any(axis is broadcast for axis in in_axes):
            raise AxesTreeError(f"{opening.place}: in_axes has broadcast; vmap uses None for it")

        # Who has the axis: variables and arguments must agree on its size. A box may change its
        # value as its axis is named, so the names go first.
        axes, params = self.roles.axes, self.metadata_params
        variables = opening.sorted_values([*axes, BROADCAST])
        taken = [unnamed(opening, variables[axis], axis, params) for axis in axes]
        stacked = list(zip(axes, taken, strict=True))
        sizes = Sizes(opening, self.axis_size, "axis_size")
        sizes.see_arguments(args, in_axes, self.in_axes, skip=1)
        for axis, group in stacked:
            sizes.see_variables(group, axis)
        size = sizes.known("nothing is mapped over; pass axis_size=")

        # JAX maps over what is split along the axis, where all of it is, the keys too.
        keys = opening.split_keys(size)
        over = split_alike(opening, args, in_axes, self.in_axes, stacked)
        if over is not None:
            keys = jax.sharding.reshard(keys, PartitionSpec(over))
        # What has no axis stays outside: a Python number that goes through JAX comes in as an
        # array.
        moving, whole = split_by(args, [axis is not None for axis in in_axes])
        call = _Call(self, fn, opening, variables[BROADCAST], whole, kwargs, size)
        along = [axis for axis in in_axes if axis is not None]
        y, same, written = call.mapped(along, moving, taken, keys)

        both = zip(written, axes, strict=True)
        groups = [same, *[named(opening, group, axis, params) for group, axis in both]]
        opening.write_back(opening.merged(groups), heard=True)
        return y


vmap = lift_of("vmap", Vmap)


@dataclasses.dataclass
class _Call:
    """One call of a lifted map, past the checks of its arguments."""

    options: Vmap
    fn: Function
    opening: Opening
    shared: Group
    args: Rest  # without the leaves along an axis
    kwargs: dict[str, object]
    size: int
    # What is to have no axis and has one; None until the body has returned.
    differing: list[tuple[int, str]] | None = None

    def __post_init__(self) -> None:
        self.shared_keys = self.opening.keys(False)

    def mapped(
        self, along: Sequence[Axis], moving: list[object], taken: list[Group], keys: Keyed
    ) -> tuple[Any, Group, list[Group]]:
        """Runs the body over all examples; returns as it does.

        Args:
          along: the axis of each of ``moving``.
          moving, taken, keys: as of the body, of all examples.
        """
        options, axes = self.options, self.options.roles.axes
        run = jax.vmap(
            self.body,
            in_axes=(along, list(axes), 0),
            # None for what is shared: JAX refuses a value that has the axis after all.
            out_axes=(options.out_axes, None, list(axes)),
            axis_size=self.size,
            axis_name=options.axis_name,
            spmd_axis_name=options.spmd_axis_name,
        )
        try:
            found: tuple[Any, Group, list[Group]] = run(moving, taken, keys)
        except (ValueError, NameError) as cause:
            refusal = self.refusal(cause)
            if refusal is None:
                raise
            raise refusal from cause
        return found

    def body(
        self, moving: list[object], taken: list[Group], keys: Keyed
    ) -> tuple[object, Group, list[Group]]:
        """Runs the user's body on one example.

        Args:
          moving: the leaves of the arguments that have an axis.
          taken: the variables, by axis.
          keys: those that are split.

        Returns:
          what it returned, what it wrote of shared variables, and along each axis.
        """
        opening, options, axes = self.opening, self.options, self.options.roles.axes
        run = opening.body(
            self.fn,
            [BROADCAST, *axes],
            see=self.pass_on,
            size=self.size,
            axis_name=options.metadata_params.get(boxes.PARTITION_NAME, options.axis_name),
            batch=bool(moving),
        )
        variables, both_keys = [self.shared, *taken], [self.shared_keys, keys]
        y, (same, *written) = run(variables, both_keys, self.args.filled(moving), self.kwargs)
        if options.out_axes != 0:
            y_axes = axes_of(options.out_axes, y, opening, "out_axes")
            check_out_axes(opening, y, y_axes, shared=None)
        check_variable_axes(opening, written, axes)
        self.differing = _differing(opening, y, same, options.out_axes)
        return y, same, written

    def pass_on(self, inner: Sequence[Scope]) -> None:
        """Tells a loop outside what is made in a body, as it is made.

        All iterations of Linen's loop take what they share from outside, so each example has its
        part of it, even where it is the same for all. Their operations must be the same ones here.
        """
        if not self.opening.initializing:
            return
        here = jax_private.current_map()
        for top, scope in zip(self.opening.tops, inner, strict=True):
            if top.call.on_birth is not None and top.call.wants_first:
                root = scope.call
                assert isinstance(root, LiftedCall)
                root.on_birth = functools.partial(self.born, top.call, root, here)
                root.wants_first, root.hears = True, top.call.hears

    def born(
        self, outside: Call, root: LiftedCall, here: jax_private.Map,
        col: str, path: Path, value: object, late: bool,
    ) -> object:  # fmt: skip
        """Hears of what is made in the body of a map, and tells the loop outside of it."""
        opening, params = self.opening, self.options.metadata_params
        axis: Any = root.roles.role(col)
        if root.hears is not None and not root.hears(col):
            return value  # what nobody outside has is made here, as it is
        if axis == BROADCAST:
            return outside.hear(root, col, path, value, late)
        assert root.outside is not None
        names = (col, *path[len(root.outside.path) :])
        leaves, treedef = jax.tree.flatten(value)
        creating = root.creating

        def change(all_examples: list[jax.Array]) -> list[jax.Array]:
            nonlocal treedef
            whole: Any = jax.tree.unflatten(treedef, all_examples)
            for name in reversed(names):  # for the messages
                whole = {name: whole}
            (whole,) = named(opening, (whole,), axis, params)
            for name in names:
                whole = whole[name]
            # Where the body is traced to a program first, it is heard when that is run.
            before, root.creating = root.creating, creating
            whole = outside.hear(root, col, path, whole, late)
            root.creating = before
            (whole,) = unnamed(opening, (whole,), axis, params)
            changed, treedef = jax.tree.flatten(whole)
            return changed

        changed = jax_private.whole(change, leaves, axis, here)
        return jax.tree.unflatten(treedef, changed)

    def refusal(self, cause: ValueError | NameError) -> LiftError | None:
        """What is said in place of an error of JAX's, None where it is another's."""
        opening, roles, place = self.opening, self.options.roles, self.opening.place
        if isinstance(cause, NameError):
            unbound = unbound_axis(cause)
            return None if unbound is None else _no_axis(place, unbound, self.options.axis_name)
        # Once the body has returned, nothing but a value without an axis can be wrong.
        found = None if self.differing is None else _unshared(cause, self.differing)
        if found is None:
            return None
        # Nearly always it is this, and the remedy is known.
        if opening.initializing and roles.split("params") and roles.role("params") == BROADCAST:
            return split_shared(place, "a parameter")
        return _differs(place, *found)


# How JAX says that a value without an axis has one after all; not which, where axis_name= is given.
_UNSHARED = re.compile(r"out_axes\[(\d)\]((?:\[[^\]]*\])*), got axis spec None")
_MAPPED = "vmap has mapped output"


def _unshared(cause: ValueError, differing: list[tuple[int, str]]) -> tuple[int, str] | None:
    """Finds what has an axis and should have none: 0 for outputs or 1 for variables, and where."""
    found = _UNSHARED.search(str(cause))
    if found is not None:
        return int(found[1]), found[2]
    return differing[0] if differing and _MAPPED in str(cause) else None


def _differing(opening: Opening, y: Tree, same: Group, out_axes: Tree) -> list[tuple[int, str]]:
    """Lists what is to have no axis and has one, as `_unshared` returns it.

    While the body is traced, of which nothing may stay when it has ended.
    """
    trace = opening.tops[0].call.trace if opening.tops else jax_private.EAGER
    checked = [(1, path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(same)]
    if out_axes != 0:
        leaves = jax.tree_util.tree_leaves_with_path(y)
        axes = axes_of(out_axes, y, opening, "out_axes")
        both = zip(leaves, axes, strict=True)
        checked += [(0, path, leaf) for (path, leaf), axis in both if axis is None]
    return [
        (part, jax.tree_util.keystr(path))
        for part, path, leaf in checked
        if jax_private.leaks(leaf, trace)
    ]


def _differs(place: str, part: int, path: str) -> LoopDependentError:
    """What is shared along the axis, and isn't the same for each example."""
    if part == 0:
        return LoopDependentError(
            f"{place}: output{path} has no axis in out_axes (None), but differs from example to "
            f"example.\n"
            f"expected: out_axes=0 for it, or the same value for each example"
        )
    names = re.findall(r"\['([^']*)'\]", path)
    return LoopDependentError(
        f"{place}: variable {'/'.join(names)} is shared along the axis, but what is written to it "
        f"differs from example to example.\n"
        f"expected: variable_axes={{{names[0]!r}: 0}} for one of its own for each example, or the "
        f"same value for each by jax.lax.pmean over axis_name, as BatchNorm(axis_name=...) has it"
    )


def _no_axis(place: str, name: str, axis_name: object) -> AxisNameError:
    """A collective over a name that no vmap around it gives."""
    return AxisNameError(
        f"{place}: a collective inside uses the axis name {name!r}, which no lift around it "
        f"gives.\n"
        f"found: axis_name={axis_name!r} in this vmap\n"
        f"expected: axis_name={name!r} in the vmap whose examples it goes over, or the name that "
        f"is given in the collective"
    )
