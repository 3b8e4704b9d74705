"""Making a model's variables where they will lie: no device ever holds a whole array."""

from __future__ import annotations

from typing import Any, Protocol

import jax
from jax.sharding import Mesh

from .core.boxes import get_partition_spec
from .core.streams import Rngs
from .core.types import Collections
from .spmd import LogicalRules, logical_to_mesh_sharding


class Initialised(Protocol):
    """What has an ``init``: a module."""

    def init(self, rngs: Rngs, *args: object, **kwargs: object) -> Any:
        """Makes the variables."""


def init_sharded(
    module: Initialised,
    mesh: Mesh,
    rngs: Rngs,
    *args: object,
    rules: LogicalRules | None = None,
    **kwargs: object,
) -> Collections:
    """Initialises a module, each device making its own parts of the variables.

    Where an array lies is said by its box: `with_partitioning` names axes of the mesh,
    `with_logical_partitioning` axes that the rules give axes of the mesh. What has no box is
    whole on every device. The values are those of ``jax.jit(module.init)``.

    Args:
      module: a module, a `Stack` say.
      mesh: the devices, with named axes.
      rngs: as in `Module.init`.
      *args: as in `Module.init`.
      rules: pairs of logical name and mesh axis; None takes those that are set.
      **kwargs: as in `Module.init`.

    Returns:
      the variables, boxed as `Module.init` returns them.

    Raises:
      ValueError: from JAX, where an axis does not divide among its devices.

    Example:
      >>> import jax, liftax as nn
      >>> mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
      >>> kernel = nn.with_logical_partitioning(nn.initializers.lecun_normal(), ("in", "hidden"))
      >>> layer = nn.Dense(8, kernel_init=kernel)
      >>> x = jax.numpy.ones((2, 4))
      >>> made = nn.init_sharded(
      ...     layer, mesh, jax.random.key(0), x, rules=[("in", None), ("hidden", "model")])
      >>> made["params"]["kernel"].value.sharding.spec
      P(None, 'model')
    """

    def init(rngs: Rngs, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
        return module.init(rngs, *args, **kwargs)

    # Which boxes there are is known of the shapes alone.
    shapes = jax.eval_shape(init, rngs, args, kwargs)
    places = logical_to_mesh_sharding(get_partition_spec(shapes), mesh, rules)
    made: Collections = jax.jit(init, out_shardings=places)(rngs, args, kwargs)
    return made
