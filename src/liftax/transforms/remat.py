"""A module whose intermediates are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..core.filters import Filter
from ..core.lift.remat import Remat
from ..core.types import Fn
from .static_arguments import counted, positions
from .target import lift_target, remembered

__all__ = ["checkpoint", "remat"]


@remembered
def remat(
    target: Fn,
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    methods: Iterable[str] | None = None,
    static_argnames: str | Sequence[str] = (),
) -> Fn:
    """Lifts `jax.checkpoint` to modules: recomputes activations in the backward pass.

    Args:
      target: a module class, or a function whose first argument is a module.
      variables: the collections that go in; writing another is an error.
      rngs: the streams that go in. Recomputation draws the same keys.
      concrete: as in `jax.checkpoint`.
      prevent_cse: False lets the compiler share work between the two passes; safe
        inside a scan.
      static_argnums: the positions of arguments that are not traced, counted as in Linen: ``0``
        is the module, ``1`` the first argument after it. Negative ones count from the end of
        the signature.
      policy: what may be stored, from ``jax.checkpoint_policies``.
      methods: for a class, the methods to lift instead of ``__call__``.
      static_argnames: the names of arguments that are not traced. A number or a
        name covers an argument whether it is passed by position or by keyword.

    Returns:
      the lifted class or function.

    Raises:
      StaticArgumentError: a position is out of range.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
      >>> block = nn.remat(Block, static_argnums=2)()
      >>> x = jax.numpy.ones(3)
      >>> variables = block.init(jax.random.key(0), x, False)
      >>> block.apply(variables, x, True, rngs={'dropout': jax.random.key(1)}).shape
      (4,)
    """
    options = Remat(
        variables, rngs, concrete, prevent_cse, policy=policy, static_argnames=static_argnames
    )
    lift = counted(options, static_argnums=static_argnums)
    # As Linen names the class: what is pickled or printed by its name is found again.
    return lift_target("remat", target, lift, methods, prefix="Checkpoint")


checkpoint = remat


def remat_after_module(
    target: Fn,
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    methods: Iterable[str] | None = None,
) -> Fn:
    """`remat` whose ``static_argnums`` count the arguments after the module, from 0.

    Args:
      static_argnums: 0 is the first argument of a module's call, and of a function the first
        after the module.

    The other arguments are those of `remat`.
    """
    numbers = positions("remat", "static_argnums", static_argnums)
    options = Remat(variables, rngs, concrete, prevent_cse, numbers, policy)
    return lift_target("remat", target, lambda fn: options(fn), methods, prefix="Core_remat_static")
