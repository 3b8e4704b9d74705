"""A lifted loop that runs until a condition ends it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax

from ..filters import Filter
from ..roles import BROADCAST, CARRY, Roles, Row, split_pairs
from ..streams import Keyed
from ..types import Group, Tree
from .bounded_loop import bounded_loop
from .checks import checked_carry, checked_variables
from .crossing import Opening
from .while_checks import Unborn, checked_condition, checked_steps

__all__ = ["while_loop"]

T = TypeVar("T")

State = tuple[Any, Group, Any]
"""How often the body has run, the carried variables, and the user's carry."""


def while_loop(
    cond_fn: Callable[[Any, T], object],
    body_fn: Callable[[Any, T], T],
    scope: Tree,
    init: T,
    carry_variables: Filter = False,
    broadcast_variables: Filter = True,
    split_rngs: Mapping[Filter, bool] = {},
    max_steps: int | None = None,
) -> T:
    """`liftax.while_loop` over functions of a scope.

    Args:
      cond_fn: ``(scope, carry) -> bool``.
      body_fn: ``(scope, carry) -> carry``.
      scope: a scope or a pytree of scopes.
      init: the first carry.

    The other arguments are those of `liftax.while_loop`.

    Example:
      >>> from liftax.core import apply, lift
      >>> def below(scope, x): return x < scope.get_variable('params', 'limit')
      >>> def double(scope, x): return x * 2
      >>> run = apply(lambda scope, x: lift.while_loop(below, double, scope, x))
      >>> int(run({'params': {'limit': 50}}, 3))
      96
    """
    carries = Row(carry_variables, CARRY, "carry_variables")
    reads = Row(broadcast_variables, BROADCAST, "broadcast_variables", leaves=False)
    roles = Roles("while_loop", [carries, reads], split_pairs(split_rngs, "while_loop"))
    opening = Opening(roles, scope, body_fn)
    shared, carried = opening.values(BROADCAST), opening.values(CARRY)
    same, split = opening.keys(False), opening.keys(True)
    unborn = Unborn(opening)

    condition = opening.body(cond_fn, [CARRY], see=unborn.listen)
    body = opening.body(body_fn, [CARRY], see=unborn.listen, carry=True)

    def inputs(state: State) -> tuple[list[Group], list[Keyed], tuple[Any]]:
        step, variables, carry = state
        # Linen's keys too: a split would have to know how often the body runs.
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, step), split)
        return [shared, variables], [same, keys], (carry,)

    def test(state: State) -> bool | jax.Array:
        return checked_condition(opening, condition(*inputs(state))[0])

    def advance(state: State) -> State:
        step, variables, before = state
        carry, (written,) = body(*inputs(state))
        checked_carry(opening, *jax.tree.flatten(before), carry)
        unborn.check()
        return step + 1, checked_variables(opening, variables, written), carry

    most = checked_steps(opening, max_steps)
    # JAX's own loop, as in Linen: where nothing bounds the steps, there is no gradient in reverse.
    loop = jax.lax.while_loop if most is None else functools.partial(bounded_loop, most=most)
    _, carried, carry = loop(test, advance, (0, carried, init))
    opening.write_back(carried)
    return carry
