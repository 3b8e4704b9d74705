"""Checks of a function of scopes as a value."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

from jax.experimental import checkify as jax_checkify

from ...errors import LiftOptionError
from ...words import shown
from ..filters import Filter
from ..roles import THROUGH, Roles, through_roles
from ..types import Function, Group, Tree
from .crossing import Opening
from .options import Options, lift_of

__all__ = ["checkify"]

Errors = frozenset[type[Exception]]
"""Categories of errors, as ``checkify.user_checks`` and the other sets of JAX have them."""

_KNOWN = jax_checkify.all_checks


@dataclasses.dataclass(frozen=True, eq=False)
class Checkify(Options):
    """`liftax.checkify` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.

    The other arguments are those of `liftax.checkify`.

    Example:
      >>> import jax.numpy as jnp
      >>> from jax.experimental import checkify
      >>> from liftax.core import apply, lift
      >>> def root(scope, x):
      ...     checkify.check(x >= 0, 'no root')
      ...     return jnp.sqrt(x)
      >>> error, y = apply(lift.checkify(root))({}, -1.0)
      >>> error.get() is None, apply(lift.checkify(root))({}, 4.0)[0].get()
      (False, None)
    """

    lift = "checkify"

    errors: Errors = jax_checkify.user_checks
    variables: Filter = True
    rngs: Filter = True

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.errors
        if not isinstance(given, frozenset) or not given <= _KNOWN:
            raise LiftOptionError(
                f"checkify: errors does not mean anything as it is.\n"
                f"found: errors={shown(given)}\n"
                f"expected: a set of jax.experimental.checkify, e.g. checkify.user_checks or "
                f"checkify.all_checks"
            )

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        return through_roles("checkify", self.variables, self.rngs)

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a function; returns the first of its checks that failed beside what it returned."""
        opening = Opening(self.roles, scopes, fn)
        body = opening.body(fn)
        values, keys = opening.values(THROUGH), opening.keys(False)

        # Closed over: JAX stages what a function closes over as it is, so that an argument which is
        # no array stays what it is.
        def alone() -> tuple[Any, list[Group]]:
            return body([values], [keys], args, kwargs)

        categories: Any = self.errors  # of a class that is not public
        error, (y, written) = jax_checkify.checkify(alone, errors=categories)()
        opening.write_back(*written)
        return error, y


checkify = lift_of("checkify", Checkify)
