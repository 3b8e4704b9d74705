"""A function of scopes run by each device on its part, with collectives of its own."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from ...errors import LiftOptionError
from ...pytrees import is_array, split
from ...words import shown
from ..filters import Filter
from ..streams import Keyed
from ..types import Fn, Tree
from .own import Lift

__all__ = ["shard_map"]


@dataclasses.dataclass(frozen=True, eq=False)
class ShardMap:
    """`liftax.shard_map` over functions of a scope.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from liftax.core import apply, lift
      >>> def mean(scope, x):
      ...     return jax.lax.pmean(x.sum() * scope.get_variable('params', 'w'), 'data')
      >>> mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
      >>> run = lift.shard_map(mesh=mesh, in_specs=(jax.P('data'),), out_specs=jax.P())(mean)
      >>> float(apply(run)({'params': {'w': jnp.float32(2.0)}}, jnp.ones(4)))
      8.0
    """

    mesh: Mesh | AbstractMesh | None = None
    in_specs: Tree = ()
    out_specs: Tree = ()
    variable_specs: Mapping[str, PartitionSpec] = dataclasses.field(default_factory=dict)
    split_rngs: Mapping[str, bool] = dataclasses.field(default_factory=dict)
    check_vma: bool = True

    def __post_init__(self) -> None:
        _check_named("variable_specs", self.variable_specs, PartitionSpec, "a spec")
        _check_named("split_rngs", self.split_rngs, bool, "a bool")

    @functools.cached_property
    def lift(self) -> Lift:
        """The lift: what has a spec of its own has a role of its own."""
        # The empty name is last and takes what is left, which every device has whole.
        variables: dict[str, Filter] = {**{name: name for name in self.variable_specs}, "": True}
        streams = tuple(name for name, value in self.split_rngs.items() if value)
        return Lift(self._run, variables, {"split": streams, "same": True}, name="shard_map")

    def __call__(self, fn: Fn) -> Fn:
        return self.lift(fn)

    def _run(self, body: Any, variables: Any, keys: Any, *args: Tree, **kwargs: Tree) -> Any:
        # At the call and not before: a model is made once, and used under several meshes.
        mesh = self.mesh if self.mesh is not None else jax.sharding.get_abstract_mesh()
        if mesh.empty:
            raise LiftOptionError(
                "shard_map: there is no mesh.\nfound: mesh=None, and no mesh of the context\n"
                "expected: mesh=, or a call within jax.set_mesh(...)"
            )
        specs = self.in_specs
        if isinstance(specs, (tuple, list)) and len(specs) != len(args):
            raise LiftOptionError(
                f"shard_map: in_specs has a spec for each argument of a call.\n"
                f"found: {len(specs)} in in_specs, {len(args)} arguments\n"
                f"expected: in_specs= of {len(args)} specs, in a tuple"
            )
        of_variables = {name: self.variable_specs.get(name, PartitionSpec()) for name in variables}

        # What is no array (a flag, a name) stays what it is to Python.
        arrays, rest = split(kwargs, is_array)

        def part(variables: Any, keys: dict[str, Keyed], args: Any, arrays: Any) -> Any:
            # One number over all axes of the mesh, so that no two devices draw the same.
            number = jax.lax.axis_index(mesh.axis_names)
            own = jax.tree.map(lambda key: jax.random.fold_in(key, number), keys["split"])
            kwargs = rest.filled(arrays)
            return body(variables, {**keys, "split": own}, *args, **kwargs)

        whole = PartitionSpec()
        run = jax.shard_map(
            part,
            mesh=mesh,
            in_specs=(of_variables, whole, specs, whole),
            out_specs=(self.out_specs, of_variables),
            check_vma=self.check_vma,
        )
        return run(variables, keys, args, arrays)


shard_map = ShardMap


def _check_named(argument: str, given: object, kind: type, what: str) -> None:
    """Raises LiftOptionError for an option that does not give values of one kind by name."""
    values = given.values() if isinstance(given, Mapping) else [None]
    if not all(isinstance(value, kind) for value in values):
        raise LiftOptionError(
            f"shard_map: {argument} does not give {what} by name.\n"
            f"found: {argument}={shown(given)}\n"
            f"expected: a mapping of names, each with {what}"
        )
