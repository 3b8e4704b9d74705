"""A module scanned over depth or time."""

from __future__ import annotations

from collections.abc import Mapping

from ..core.filters import Filter
from ..core.lift.scan import Scan, Transform
from ..core.roles import VariableAxes
from ..core.types import Fn, Metadata, Tree
from .target import Methods, lift_target, remembered

__all__ = ["scan"]


@remembered
def scan(
    target: Fn,
    variable_axes: VariableAxes = {},  # noqa: B006
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    split_rngs: Mapping[Filter, bool] = {},
    in_axes: Tree = 0,
    out_axes: Tree = 0,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    data_transform: Transform | None = None,
    metadata_params: Metadata = {},  # noqa: B006
    methods: Methods = None,
    _split_transpose: bool = False,
    check_constancy_invariants: bool = True,
) -> Fn:
    """Lifts `jax.lax.scan` to modules: runs one module as a loop.

    The body is called as ``body(module, carry, *xs, **kwargs) -> (carry, ys)``.
    The loop is the Python loop

    .. code-block:: python

      ys = []
      for i in range(length):
          carry, y = body(layer[i], carry, *(x[i] for x in xs), **kwargs)
          ys.append(y)
      return carry, stack(ys)

    in which ``layer[i]`` sees three kinds of variables: one slice per iteration
    (``variable_axes``), the same in each (``variable_broadcast``), or what the
    iteration before left (``variable_carry``). A collection in none of them does
    not enter the loop; writing one is an error.

    Args:
      target: a module class, or a function whose first argument is a module.
      variable_axes: collection -> the axis along which its variables are
        stacked; ``In(axis)`` and ``Out(axis)`` for one direction only, ``InPlace(axis)``
        for a cache, which each iteration writes where it stands.
      variable_broadcast: collections that all iterations share. A variable made
        in the loop must not depend on the carry or on a scanned value.
      variable_carry: collections handed from one iteration to the next.
      split_rngs: stream -> True for another key in each iteration, False for the
        same. A stream that is not named does not enter the loop.
      in_axes: the axis of ``xs`` to scan over, a prefix tree of them;
        ``broadcast`` hands a whole value to each iteration.
      out_axes: where the axis goes in ``ys``, a prefix tree of them;
        ``broadcast`` for a value that is the same in each iteration.
      length: the number of iterations, where ``xs`` and the variables don't tell.
      reverse: whether to go from the last slice to the first.
      unroll: how many iterations to put into one step of the compiled loop; True or 0
        for all of them.
      data_transform: ``(variable_groups, rng_groups) -> (variable_groups,
        rng_groups)``, applied inside the loop, for sharding annotations. The
        groups are those of ``variable_broadcast``, ``variable_carry`` and each
        axis; and of the shared and the split streams.
      metadata_params: handed to boxed variables, which add and remove the name
        of the axis: ``{nn.PARTITION_NAME: 'layers'}``.
      methods: for a class, the methods to lift instead of ``__call__``; or method
        name -> the arguments of its lift.

    Returns:
      the lifted class or function.

    Raises:
      CarryError: the carry changes its structure, shape or dtype.
      BodyReturnError: the body does not return a pair.
      LengthError: the length is unknown, contradictory or negative.
      AxisError, AxesTreeError: an axis or a tree of axes doesn't fit.
      LoopDependentError: something broadcast depends on the loop.
      UnnamedCollectionError: a write would be lost.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     features: int
      ...     @nn.compact
      ...     def __call__(self, x, _):
      ...         return nn.relu(nn.Dense(self.features)(x)), None
      >>> Layers = nn.scan(
      ...     Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
      >>> x = jax.numpy.ones(4)
      >>> variables = Layers(features=4).init(jax.random.key(0), x, None)
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'Dense_0': {'bias': (3, 4), 'kernel': (3, 4, 4)}}}
      >>> y, _ = Layers(features=4).apply(variables, x, None)
      >>> y.shape
      (4,)
    """
    # In the class's order, which is that of flax's core and not that of flax.linen above.
    options = Scan(
        variable_axes, variable_broadcast, variable_carry, split_rngs, in_axes, out_axes, length,
        reverse, unroll, _split_transpose, data_transform, metadata_params,
        check_constancy_invariants,
    )  # fmt: skip
    return lift_target("scan", target, options, methods)
