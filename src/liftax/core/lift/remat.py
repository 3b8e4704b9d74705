"""Rematerialising a function of scopes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..filters import Filter
from ..roles import THROUGH, through_roles
from .checks import check_options
from .crossing import Opening
from .static_arguments import Static, _Body


def remat(
    fn: Callable[..., Any],
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    static_argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
    """`liftax.remat` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``; ``static_argnums`` counts
        ``args``.

    The other arguments are those of `liftax.remat`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from liftax.core import apply, lift
      >>> def layer(scope, x):
      ...     return jnp.sin(x * scope.param('w', lambda key: 1.0))
      >>> run = apply(lift.remat(layer))
      >>> float(jax.grad(lambda v: run(v, 0.0))({'params': {'w': 2.0}})['params']['w'])
      0.0
    """
    lift = rematter(variables, rngs, concrete, prevent_cse, policy, static_argnames)
    return lift(fn, static_argnums)


checkpoint = remat


def rematter(
    variables: Filter,
    rngs: Filter,
    concrete: bool,
    prevent_cse: bool,
    policy: Callable[..., bool] | None,
    static_argnames: str | Sequence[str],
) -> Callable[..., Callable[..., Any]]:
    """Returns `remat` with its arguments read, ``(fn, static_argnums) -> lifted``."""
    roles = through_roles("remat", variables, rngs)
    check_options("remat", policy=policy, prevent_cse=prevent_cse, concrete=concrete)
    # JAX says itself that it no longer supports concrete=True.
    unsupported: Any = {"concrete": True} if concrete else {}
    options = {"policy": policy, "prevent_cse": prevent_cse, **unsupported}

    def lift(
        fn: Callable[..., Any], static_argnums: int | Sequence[int] = ()
    ) -> Callable[..., Any]:
        def rematted(scope: Any, *args: Any, **kwargs: Any) -> Any:
            opening = Opening(roles, scope, fn)
            static = Static(opening, args, kwargs, static_argnums, static_argnames)
            if opening.watched and variables is True and rngs is True:
                # Nothing is differentiated while variables are made.
                return opening.call_without(fn, scope, args, kwargs)
            body = _Body(opening.body(fn), static)
            values, keys = opening.values(THROUGH), opening.keys(False)
            try:
                y, written = jax.checkpoint(body.__call__, **options)(values, keys, static.dynamic)
            except TypeError as cause:
                static.check_needed(opening, cause)
                raise
            y = body.outputs(y)
            opening.write_back(*written)
            return y

        return rematted

    return lift
