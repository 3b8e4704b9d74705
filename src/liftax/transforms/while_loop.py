"""A loop of a module that runs until a condition ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ..core.filters import Filter
from ..core.lift.while_loop import while_loop as lift_while_loop
from ..core.types import Tree
from .target import call_functions

__all__ = ["while_loop"]

Carry = TypeVar("Carry")


def while_loop(
    cond_fn: Callable[[Any, Carry], object],
    body_fn: Callable[[Any, Carry], Carry],
    mdl: Tree,
    init: Carry,
    carry_variables: Filter = False,
    broadcast_variables: Filter = True,
    split_rngs: Mapping[Filter, bool] = {},
    max_steps: int | None = None,
) -> Carry:
    """Lifts `jax.lax.while_loop` to functions of a module.

    It equals ``while cond_fn(mdl, carry): carry = body_fn(mdl, carry)``.

    Args:
      cond_fn: ``(mdl, carry) -> bool``.
      body_fn: ``(mdl, carry) -> carry``.
      mdl: a bound module, or a container of them.
      init: the first carry.
      carry_variables: collections that the body may write; their variables must
        exist before the loop.
      broadcast_variables: collections that it may read.
      split_rngs: stream -> True for another key in each iteration.
      max_steps: the most iterations that there may be, or None. With it the loop is differentiable
        in reverse; iterations are computed again in the backward pass, so that memory grows with
        the root of ``max_steps``. It ends there, whatever ``cond_fn`` says.

    Returns:
      the last carry.

    Raises:
      ConditionError: ``cond_fn`` returns something else than one bool.
      LiftOptionError: ``max_steps`` is no int, or none that is 1 or more.

    Example:
      >>> import jax, liftax as nn
      >>> class Count(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, n):
      ...         steps = self.variable('state', 'steps', lambda: 0)
      ...         def below(mdl, i):
      ...             return i < n
      ...         def step(mdl, i):
      ...             mdl.put_variable('state', 'steps', mdl.get_variable('state', 'steps') + 1)
      ...             return i * 2
      ...         return nn.while_loop(below, step, self, 1, carry_variables='state')
      >>> i, variables = Count().apply({'state': {'steps': 0}}, 9, mutable='state')
      >>> int(i), int(variables['state']['steps'])
      (16, 4)

      A loop that can be trained through:

      >>> class Root(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         a = self.param('a', nn.initializers.constant(9.0), ())
      ...         return nn.while_loop(
      ...             lambda mdl, y: abs(y * y - a) > 1e-6, lambda mdl, y: (y + a / y) / 2,
      ...             self, x, max_steps=16)
      >>> root = Root()
      >>> variables = root.init(jax.random.key(0), 1.0)
      >>> grads = jax.grad(root.apply)(variables, 1.0)
      >>> round(float(grads['params']['a']), 4)  # of the root, 1 / (2 * 3)
      0.1667
    """
    # The carry is detached as well: it may hold Variables.
    bodies, scopes, (start,) = call_functions("while_loop", [cond_fn, body_fn], mdl, (init,))
    return lift_while_loop(
        bodies[0],
        bodies[1],
        scopes,
        start,
        carry_variables,
        broadcast_variables,
        split_rngs,
        max_steps,
    )
