"""A deep stack that keeps little for its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.filters import Filter
from ..core.lift.remat_scan import remat_scan as lift_remat_scan
from .target import lift_target, remembered
from .while_loop import Target


@remembered
def remat_scan(
    target: Target,
    lengths: Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    variable_axes: Mapping[Filter, Any] = {True: 0},
    split_rngs: Mapping[Filter, bool] = {True: True},
) -> Target:
    """Scans a layer over depth and recomputes its activations in the backward pass.

    With more than one length the loops are nested: what is stored grows with the
    sum of the lengths while the depth is their product (Chen et al. 2016,
    https://arxiv.org/abs/1604.06174). With one length each layer is recomputed.

    Args:
      target: a module class or a function of a module, ``(module, x) -> x``.
      lengths: the number of iterations of each level, outermost first.
      policy: what may be stored, from ``jax.checkpoint_policies``.
      variable_broadcast, variable_carry, variable_axes, split_rngs: as in `scan`.

    Returns:
      the lifted class or function; variables get one axis per level.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.relu(nn.Dense(x.shape[-1])(x))
      >>> Deep = nn.remat_scan(Block, lengths=(4, 5))
      >>> variables = Deep().init(jax.random.key(0), jax.numpy.ones(3))
      >>> variables['params']['Dense_0']['kernel'].shape
      (4, 5, 3, 3)
    """
    return lift_target(
        "Remat_scan",
        target,
        lambda fn: lift_remat_scan(
            fn,
            lengths=lengths,
            policy=policy,
            variable_broadcast=variable_broadcast,
            variable_carry=variable_carry,
            variable_axes=variable_axes,
            split_rngs=split_rngs,
        ),
    )
