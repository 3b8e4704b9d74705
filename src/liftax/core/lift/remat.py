"""Rematerialising a function of scopes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ..roles import THROUGH
from ..types import Function, Tree
from .crossing import Opening
from .options import Through, lift_of
from .static_arguments import Static, StaticBody

__all__ = ["checkpoint", "remat"]

Numbers = int | Sequence[int]
"""Positions of static arguments."""


@dataclasses.dataclass(frozen=True, eq=False)
class Remat(Through):
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

    lift = "remat"

    concrete: bool = False
    prevent_cse: bool = True
    static_argnums: Numbers = ()
    policy: Callable[..., bool] | None = None
    static_argnames: str | Sequence[str] = ()

    @functools.cached_property
    def of_jax(self) -> dict[str, Any]:
        """The options of `jax.checkpoint`."""
        # JAX says itself that it no longer supports concrete=True.
        unsupported = {"concrete": True} if self.concrete else {}
        return {"policy": self.policy, "prevent_cse": self.prevent_cse, **unsupported}

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a function whose intermediates are made again in the backward pass."""
        opening = Opening(self.roles, scopes, fn)
        static = Static(opening, args, kwargs, self.static_argnums, self.static_argnames)
        if opening.watched and self.variables is True and self.rngs is True:
            # Nothing is differentiated while variables are made, and a loop outside would find
            # what is made sealed in the equation of `jax.checkpoint`.
            return opening.call_without(fn, scopes, args, kwargs)
        body = StaticBody(opening.body(fn), static)
        # A method: JAX keeps what it traced for as long as the function that it was given, and
        # one of its own for each call is forgotten with the call.
        again = jax.checkpoint(body.__call__, **self.of_jax)
        values, keys = opening.values(THROUGH), opening.keys(False)
        y, written = static.call(again, values, keys, static.dynamic)
        opening.write_back(*written)
        return body.outputs(y)


remat = checkpoint = lift_of("remat", Remat)
