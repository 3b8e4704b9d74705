"""A module run as the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.filters import Filter
from ..core.lift.pipeline import Piped
from ..core.lift.scan import Scan
from ..core.lift.schedule import Pipeline
from ..core.roles import VariableAxes
from ..core.types import Fn, Tree
from .target import Methods, lift_target, remembered

__all__ = ["pipeline"]


@remembered
def pipeline(
    target: Fn,
    stages: int,
    microbatches: int,
    repeats: int = 1,
    axis: str = "stage",
    variable_axes: VariableAxes = {},  # noqa: B006
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    split_rngs: Mapping[Filter, bool] = {},
    in_axes: Tree = 0,
    length: int | None = None,
    bubbles: str = "stop",
    microbatched: Mapping[str, int | None] = {},
    delay: int = 1,
    rows: str | tuple[str, ...] = (),
    metadata_params: Mapping[object, object] = {},
    methods: Methods = None,
) -> Fn:
    """Runs one module as a loop over layers, in stages that work on different microbatches.

    It is `liftax.scan` with another loop: the same body, the same variables and initial values,
    and as result the Python loop

    .. code-block:: python

      parts = [scan(layers)(part, *xs) for part in split(carry, microbatches)]
      return concatenate(parts), stack_along_axis_1(ys of the parts)

    See `Pipeline` for the stages, and for what has a batch and what has none.

    Args:
      target: a module class, or a function whose first argument is a module; called as
        ``body(module, carry, *xs, **kwargs) -> (carry, ys)``. The batch is the first axis of
        each array of the carry.
      stages, microbatches, repeats, axis, bubbles, microbatched, delay, rows: as for `Pipeline`.
      variable_axes, variable_broadcast, split_rngs, in_axes, length, metadata_params, methods: as
        for `liftax.scan`. Keys are others in each microbatch, whatever is said of their stream.
      variable_carry: collections handed from one layer to the next; they must have a batch.

    Returns:
      the lifted class or function.

    Raises:
      PipelineError: an option means nothing, or doesn't fit the layers or the batch.
      MicrobatchError: of a collection nobody knows whether it has a batch.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, _):
      ...         return nn.relu(nn.Dense(4)(x)), None
      >>> Layers = nn.pipeline(
      ...     Block, stages=3, microbatches=2, variable_axes={'params': 0},
      ...     split_rngs={'params': True}, length=3)
      >>> x = jax.numpy.ones((8, 4))
      >>> variables = Layers().init(jax.random.key(0), x, None)
      >>> y, _ = Layers().apply(variables, x, None)
      >>> y.shape
      (8, 4)
    """
    # The layers are said as for a scan, with its table and its errors; how they run, beside.
    scan = Scan(
        variable_axes,
        variable_broadcast,
        variable_carry,
        split_rngs,
        in_axes,
        length=length,
        metadata_params=metadata_params,
    )
    run = Pipeline(stages, microbatches, repeats, axis, bubbles, microbatched, delay, rows)
    return lift_target("pipeline", target, Piped(scan, run), methods)
