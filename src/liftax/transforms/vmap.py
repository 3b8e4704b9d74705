"""A module mapped over a batch."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.filters import Filter
from ..core.lift.vmap import Vmap
from ..core.roles import VariableAxes
from ..core.types import Fn, Metadata, Tree
from .target import Methods, lift_target, remembered

__all__ = ["vmap"]


@remembered
def vmap(
    target: Fn,
    variable_axes: VariableAxes = {},  # noqa: B006
    split_rngs: Mapping[Filter, bool] = {},
    in_axes: Tree = 0,
    out_axes: Tree = 0,
    axis_size: int | None = None,
    axis_name: str | None = None,
    spmd_axis_name: str | None = None,
    metadata_params: Metadata = {},  # noqa: B006
    methods: Methods = None,
) -> Fn:
    """Lifts `jax.vmap` to modules: writes a module for one example, runs it for a batch.

    The result equals the Python loop

    .. code-block:: python

      return stack([body(copy[i], *(a[i] for a in args), **kwargs) for i in range(axis_size)])

    in which ``copy[i]`` has its own slice of the collections with an axis and
    shares those whose axis is None.

    Args:
      target: a module class, or a function whose first argument is a module.
      variable_axes: collection -> the axis along which its variables are
        stacked, None to share them; ``In``/``Out`` for one direction only.
      split_rngs: stream -> True for another key for each example, False for the
        same. A stream that is not named does not go in.
      in_axes: the axis of the arguments to map over, a prefix tree of them; None
        hands the whole value to each example.
      out_axes: where the axis goes in the result, a prefix tree of it; None for
        a value that is the same for each example.
      axis_size: the size of the axis, where the arguments and variables don't
        tell.
      axis_name: a name for collectives such as ``jax.lax.pmean``.
      spmd_axis_name: as in `jax.vmap`.
      metadata_params: handed to boxed variables, which add and remove the name
        of the axis.
      methods: as in `scan`.

    Keyword arguments of the call go to each example as they are.

    Returns:
      the lifted class or function.

    Raises:
      LengthError: the size is unknown, contradictory or negative.
      AxisError, AxesTreeError: an axis or a tree of axes doesn't fit.
      LoopDependentError: something shared differs from example to example.
      UnnamedCollectionError: a write would be lost.

    Example:
      >>> import jax, liftax as nn
      >>> Ensemble = nn.vmap(
      ...     nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True},
      ...     in_axes=None, axis_size=5)
      >>> variables = Ensemble(2).init(jax.random.key(0), jax.numpy.ones(3))
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'bias': (5, 2), 'kernel': (5, 3, 2)}}
    """
    options = Vmap(
        variable_axes, split_rngs, in_axes, out_axes, axis_size, axis_name, spmd_axis_name,
        metadata_params,
    )  # fmt: skip
    return lift_target("vmap", target, options, methods)
