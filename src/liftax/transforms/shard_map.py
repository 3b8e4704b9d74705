"""A module run by each device of a mesh on its part."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from ..core.lift.shard_map import ShardMap
from ..core.types import Fn, Tree
from .target import lift_target, remembered

__all__ = ["shard_map"]


@remembered
def shard_map(
    target: Fn,
    in_specs: Tree,
    out_specs: Tree,
    mesh: Mesh | AbstractMesh | None = None,
    variable_specs: Mapping[str, PartitionSpec] = {},
    split_rngs: Mapping[str, bool] = {},
    check_vma: bool = True,
    methods: Iterable[str] | None = None,
) -> Fn:
    """Lifts `jax.shard_map` to modules: each device runs the module on its part.

    Inside, arrays have the shapes of the parts, and collectives (`jax.lax.psum` and the like) know
    the mesh axes by name. Equals, with one part of everything for each device::

        outputs = [module(*part) for part in split(args, in_specs)]
        y = joined(outputs, out_specs)

    Args:
      target: a module class, or a function whose first argument is a module.
      in_specs: how the positional arguments are split, a tuple of one `PartitionSpec` (or a tree of
        them) for each. On explicit axes they must lie so already. Keyword
        arguments go whole to every device.
      out_specs: how what is returned is joined.
      mesh: the mesh; None takes that of `jax.set_mesh`.
      variable_specs: collection -> how its variables are split, as they go in and as they come
        out: ``{'params': jax.P('model')}`` splits the first axis of each parameter. All others are
        whole on every device, and must come out equal there.
      split_rngs: stream -> True for keys of each device's own; otherwise all have the same.
      check_vma: as in `jax.shard_map`.
      methods: for a class, the methods to lift instead of ``__call__``.

    Returns:
      the lifted class or function.

    Raises:
      LiftOptionError: options of the wrong kind; when it is called: no mesh, or another number of
        arguments than of specs.

    Example:
      >>> import jax, liftax as nn
      >>> class Centred(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         y = nn.Dense(2)(x)
      ...         return y - jax.lax.pmean(y.mean(0), 'data')
      >>> mesh = jax.make_mesh((1,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
      >>> rows = jax.P('data')
      >>> layer = nn.shard_map(Centred, in_specs=(rows,), out_specs=rows, mesh=mesh)()
      >>> y, variables = layer.init_with_output(jax.random.key(0), jax.numpy.ones((4, 3)))
      >>> y.shape, variables['params']['Dense_0']['kernel'].shape
      ((4, 2), (3, 2))
    """
    options = ShardMap(mesh, in_specs, out_specs, variable_specs, split_rngs, check_vma)
    return lift_target("shard_map", target, options, methods)
