"""One of several functions of a module, chosen while the program runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.typing

from ..core.filters import Filter
from ..core.lift.branches import cond as lift_cond
from ..core.lift.branches import switch as lift_switch
from ..core.types import Function, Tree
from .target import call_functions

__all__ = ["cond", "switch"]


def cond(
    pred: jax.typing.ArrayLike,
    true_fun: Function,
    false_fun: Function,
    mdl: Tree,
    *operands: Tree,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """Lifts `jax.lax.cond` to functions of a module.

    It equals ``true_fun(mdl, *operands) if pred else false_fun(mdl, *operands)``.
    A variable that one branch makes and the other doesn't is made in any case.

    Args:
      pred: a bool or a scalar array.
      true_fun, false_fun: functions that return the same shapes and dtypes.
      mdl: a bound module, or a container of them.
      *operands: handed to the branch.
      variables: the collections that go in.
      rngs: the streams that go in.

    Raises:
      BranchError: the branches return different structures, shapes or dtypes.

    Example:
      >>> import jax, liftax as nn
      >>> class Gate(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, on):
      ...         def yes(mdl, x): return nn.Dense(3, name='yes')(x)
      ...         def no(mdl, x): return x
      ...         return nn.cond(on, yes, no, self, x)
      >>> sorted(Gate().init(jax.random.key(0), jax.numpy.ones(3), False)['params'])
      ['yes']
    """
    # Bodies over one detached module: both begin where it stands, and JAX traces both.
    bodies, scopes, args = call_functions("cond", [true_fun, false_fun], mdl, operands)
    return lift_cond(pred, *bodies, scopes, *args, variables=variables, rngs=rngs)


def switch(
    index: jax.typing.ArrayLike,
    branches: Sequence[Function],
    mdl: Tree,
    *operands: Tree,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """Lifts `jax.lax.switch` to functions of a module.

    It equals ``branches[index](mdl, *operands)``, with the index clipped into
    range. A variable that some branches make and others don't is made in any
    case.

    Args:
      index: an int or a scalar array.
      branches: functions that return the same shapes and dtypes.
      mdl: a bound module, or a container of them.
      *operands: handed to the branch.
      variables: the collections that go in.
      rngs: the streams that go in.

    Raises:
      BranchError: the branches return different structures, shapes or dtypes.

    Example:
      >>> import jax, liftax as nn
      >>> class Expert(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, i):
      ...         small = lambda mdl, x: nn.Dense(3, name='small')(x)
      ...         large = lambda mdl, x: nn.Dense(3, name='large')(nn.Dense(9, name='up')(x))
      ...         return nn.switch(i, [small, large], self, x)
      >>> sorted(Expert().init(jax.random.key(0), jax.numpy.ones(3), 0)['params'])
      ['large', 'small', 'up']
    """
    if not branches:
        return lift_switch(index, [], None)  # which says that there is none
    bodies, scopes, args = call_functions("switch", list(branches), mdl, operands)
    return lift_switch(index, bodies, scopes, *args, variables=variables, rngs=rngs)
