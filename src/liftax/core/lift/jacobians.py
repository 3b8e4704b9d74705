"""Lifted Jacobians: jacfwd, jacrev."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from ..filters import Filter
from ..roles import THROUGH, through_roles
from ..types import Function, Group, Tree
from . import derivative_checks
from .crossing import Opening

__all__ = ["jacfwd", "jacrev"]


def jacfwd(
    fn: Function,
    scope: Tree,
    *primals: Tree,
    has_aux: bool = False,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`liftax.jacfwd` over a function of a scope.

    Args:
      fn: ``(scope, *primals) -> y``, or ``(y, aux)`` with ``has_aux``.
      scope: a scope or a pytree of scopes.

    The other arguments are those of `liftax.jacfwd`.

    Returns:
      ``jacobians``, or ``(jacobians, aux)``.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def scaled(scope, x):
      ...     return x * scope.param('w', lambda key: 0.0)
      >>> run = apply(lambda scope, x: lift.jacfwd(scaled, scope, x))
      >>> run({'params': {'w': 2.0}}, jax.numpy.ones(2))[0].tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    return _jacobians("jacfwd", jax.jacfwd, fn, scope, primals, has_aux, variables, rngs)


def jacrev(
    fn: Function,
    scope: Tree,
    *primals: Tree,
    has_aux: bool = False,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`liftax.jacrev` over a function of a scope; as `jacfwd`, in the other direction.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def scaled(scope, x):
      ...     return x * scope.param('w', lambda key: 0.0)
      >>> run = apply(lambda scope, x: lift.jacrev(scaled, scope, x))
      >>> run({'params': {'w': 2.0}}, jax.numpy.ones(2))[0].tolist()
      [[2.0, 0.0], [0.0, 2.0]]
    """
    return _jacobians("jacrev", jax.jacrev, fn, scope, primals, has_aux, variables, rngs)


def _jacobians(
    lift: str,
    of_jax: Callable[..., Callable[..., Any]],
    fn: Function,
    scope: Tree,
    primals: tuple[Tree, ...],
    has_aux: bool,
    variables: Filter,
    rngs: Filter,
) -> Any:
    opening = Opening(through_roles(lift, variables, rngs), scope, fn)
    derivative_checks.check_real(opening, primals, "primals")
    run = opening.body(fn)
    values, keys = opening.values(THROUGH), opening.keys(False)

    def outputs(*primals: Tree) -> tuple[Any, tuple[list[Group], Any]]:
        y, written = run([values], [keys], primals)
        y, aux = derivative_checks.with_aux(opening, y) if has_aux else (y, None)
        derivative_checks.check_real(opening, y, "the output")
        return y, (written, aux)

    # What was written is no output of what is differentiated: it has no axis of directions.
    numbers = tuple(range(len(primals)))
    found, (written, aux) = of_jax(outputs, argnums=numbers, has_aux=True)(*primals)
    opening.write_back(*written)
    return (found, aux) if has_aux else found
