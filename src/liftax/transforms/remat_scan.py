"""A deep stack that keeps little for its backward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..core.filters import Filter
from ..core.lift.remat_scan import remat_scan as lift_remat_scan
from ..core.roles import VariableAxes
from ..core.types import Fn
from .target import lift_target, remembered

__all__ = ["remat_scan"]


@remembered
def remat_scan(
    target: Fn,
    lengths: Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    variable_axes: VariableAxes = {True: 0},  # noqa: B006
    split_rngs: Mapping[Filter, bool] = {True: True},
) -> Fn:
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
    # One lift of many: its scans and remats are inside the core's, over scopes, so that the module
    # is detached and rebuilt once and not at each level.
    options = (lengths, policy, variable_broadcast, variable_carry, variable_axes, split_rngs)
    return lift_target("remat_scan", target, lambda fn: lift_remat_scan(fn, *options))
