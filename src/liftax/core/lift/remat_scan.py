"""A deep loop whose backward pass keeps little: scans in scans, each rematerialised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ...errors import LengthError
from ..filters import Filter
from .remat import remat
from .scan import scan


def remat_scan(
    body_fn: Callable[..., Any],
    lengths: Sequence[int],
    policy: Callable[..., bool] | None = None,
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    variable_axes: Mapping[Filter, Any] = {True: 0},
    split_rngs: Mapping[Filter, bool] = {True: True},
) -> Callable[..., Any]:
    """`liftax.remat_scan` over a function of a scope.

    Args:
      body_fn: one layer, ``(scope, carry) -> carry``.

    The other arguments are those of `liftax.remat_scan`.

    Returns:
      ``(scope, carry) -> carry``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from liftax.core import init, lift
      >>> def layer(scope, x):
      ...     return jnp.sin(x @ scope.param('w', jax.random.normal, (3, 3)))
      >>> _, variables = init(lift.remat_scan(layer, (4, 5)))(jax.random.key(0), jnp.ones(3))
      >>> variables['params']['w'].shape
      (4, 5, 3, 3)
    """
    levels = _levels(lengths)

    def loop(fn: Callable[..., Any], length: int) -> Callable[..., Any]:
        return scan(
            fn,
            variable_axes=variable_axes,
            variable_broadcast=variable_broadcast,
            variable_carry=variable_carry,
            split_rngs=split_rngs,
            length=length,
        )

    def named(fn: Callable[..., Any]) -> Callable[..., Any]:
        """Gives a level the name of what the user lifted, for messages and the layout."""
        fn.__name__ = getattr(body_fn, "__name__", "body")
        fn.__wrapped__ = body_fn  # type: ignore[attr-defined]
        return fn

    @named
    def once(scope: Any, carry: Any) -> Any:
        return body_fn(scope, carry), None

    # The innermost layers are stored where a level outside recomputes them, and
    # recomputed where there is none.
    fn = named(remat(once, policy=policy, prevent_cse=False)) if len(levels) == 1 else once
    fn = named(loop(fn, levels[-1]))
    for length in reversed(levels[:-1]):
        fn = named(loop(named(remat(fn, policy=policy, prevent_cse=False)), length))

    def run(scope: Any, carry: Any) -> Any:
        return fn(scope, carry)[0]

    return run


def _levels(lengths: Any) -> tuple[int, ...]:
    """Returns ``lengths``, checked."""
    if isinstance(lengths, str) or not isinstance(lengths, Iterable):
        raise LengthError(
            f"remat_scan: lengths expected one length for each level, e.g. (4, 5), or (20,) for "
            f"one level; found {type(lengths).__name__}"
        )
    levels = tuple(lengths)
    if not levels:
        raise LengthError("remat_scan: lengths is empty; expected one length for each level")
    for level in levels:
        if isinstance(level, bool) or not hasattr(level, "__index__"):
            raise LengthError(
                f"remat_scan: lengths expected ints, one for each level; found "
                f"{type(level).__name__} among them"
            )
        if level.__index__() < 0:
            raise LengthError(f"remat_scan: lengths={levels}: {level} is negative")
    return levels
