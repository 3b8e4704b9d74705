"""A pure loop until a condition ends it, of at most so many steps, that JAX differentiates.

Below the scopes: what `jax.lax.while_loop` is to `while_loop` where nothing bounds the steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

State = TypeVar("State", bound=tuple[Any, ...])


def bounded_loop(
    test: Callable[[State], ArrayLike],
    advance: Callable[[State], State],
    state: State,
    *,
    most: int,
) -> State:
    """Runs a while loop of at most so many steps as loops that JAX differentiates in reverse.

    Groups of steps are computed again in the backward pass: what enters each group is kept, and the
    steps of one group at a time, so memory grows with the root of ``most``. Once the loop has
    ended, the groups that are left do nothing.

    Args:
      test: tells whether the loop goes on.
      advance: makes a step.
      state: what the first step gets; its first part counts the steps.
      most: how many there may be, at least 1.
    """
    size = math.isqrt(most - 1) + 1

    # The groups hold more steps than ``most`` where that is no square, so that steps are counted.
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
