"""Lifted loops built on others: remat_scan and while_loop."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, Unpack

import jax
import jax.numpy as jnp

from ...errors import ConditionError, LiftOptionError, ScopeVariableNotFoundError
from ...words import kind_of, shown
from ..call import Call
from ..events import Told
from ..filters import Filter
from ..roles import BROADCAST, CARRY, Roles, Row, split_pairs
from ..scope import Scope
from ..types import Function, Group, Path, Tree
from .checks import check_carried, checked_carry
from .crossing import Opening

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
    roles = Roles(
        "while_loop",
        [
            Row(carry_variables, CARRY, "carry_variables"),
            Row(broadcast_variables, BROADCAST, "broadcast_variables", leaves=False),
        ],
        split_pairs(split_rngs, "while_loop"),
    )
    opening = Opening(roles, scope, body_fn)
    shared, carried = opening.values(BROADCAST), opening.values(CARRY)
    same, split = opening.keys(False), opening.keys(True)

    # Told when the body has ended, so that one message can name all of them.
    made: list[str] = []

    def hear(top: Scope, call: Call, col: str, path: Path, value: object, late: bool) -> object:
        names = path[len(top.path) :]
        # What no initializer makes is part of a value that grows.
        if late or call.creating is not None or len(names) == 1:
            made.append("/".join((col, *names)))
        return value

    def see(inner: Sequence[Scope]) -> None:
        for top, scope in zip(opening.tops, inner, strict=True):
            # A variable that is made in there has no value for a loop that never runs.
            scope.call.on_birth = functools.partial(hear, top, scope.call)

    def run(fn: Function, state: State, **event: Unpack[Told]) -> tuple[Any, Group]:
        step, variables, carry = state
        # Linen's keys too: a split would have to know how often the body runs.
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, step), split)
        y, (written,) = opening.body(fn, [CARRY], see=see, **event)(
            [shared, variables], [same, keys], (carry,)
        )
        return y, written

    def test(state: State) -> bool | jax.Array:
        result, _ = run(cond_fn, state)
        if not isinstance(result, bool) and not (
            getattr(result, "dtype", None) == "bool" and result.shape == ()
        ):
            raise ConditionError(
                f"{opening.place}: cond_fn must return one bool.\n"
                f"found: {kind_of(result)}\n"
                f"expected: bool[], e.g. x.sum() < 9, or by .all() or .any()"
            )
        return result

    def advance(state: State) -> State:
        step, variables, before = state
        carry, after = run(body_fn, state, carry=True)
        checked_carry(opening, *jax.tree.flatten(before), carry)
        if made:
            raise ScopeVariableNotFoundError(
                f"{opening.place}: the body makes variables ({', '.join(made[:4])}), but a while "
                f"loop may run zero times. Make them before the loop: call the body once on "
                f"the initial carry where self.is_initializing()"
            )
        # What goes round keeps its structure: a variable that was not written is in it as well.
        kept = tuple({**old, **now} for old, now in zip(variables, after, strict=True))
        check_carried(opening, variables, kept)
        return step + 1, kept, carry

    if max_steps is None:
        _, carried, carry = jax.lax.while_loop(test, advance, (0, carried, init))
    else:
        if isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1:
            raise LiftOptionError(
                f"{opening.place}: max_steps expected an int, 1 or more; found {shown(max_steps)}"
            )
        # Linen has no such loop: where nothing bounds the steps there is no derivative in reverse.
        _, carried, carry = _bounded(test, advance, (0, carried, init), max_steps)
    opening.write_back(carried)
    return carry


def _bounded(
    test: Callable[[State], Any], advance: Callable[[State], State], state: State, most: int
) -> State:
    """Runs a while loop of at most so many steps as loops that JAX differentiates in reverse.

    Groups of steps are computed again in the backward pass: what enters each group is kept, and the
    steps of one group at a time, so memory grows with the root of ``most``. Once the loop has
    ended, the groups that are left do nothing.
    """
    size = math.isqrt(most - 1) + 1

    def goes_on(state: State) -> jax.Array:
        return jnp.logical_and(state[0] < most, test(state))

    def stay(state: State) -> State:
        return state

    def one(state: State, _: None) -> tuple[State, None]:
        return jax.lax.cond(goes_on(state), advance, stay, state), None

    def several(state: State) -> State:
        return jax.lax.scan(one, state, None, length=size)[0]

    again = jax.checkpoint(several, prevent_cse=False)

    def group(state: State, _: None) -> tuple[State, None]:
        return jax.lax.cond(goes_on(state), again, stay, state), None

    start: State = jax.tree.map(jnp.asarray, state)
    return jax.lax.scan(group, start, None, length=-(-most // size))[0]
