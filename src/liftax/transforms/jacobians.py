"""Jacobians of functions of a module: lifts that are called at once."""

from __future__ import annotations

from typing import Any

from ..core.filters import Filter
from ..core.lift.jacobians import jacfwd as lift_jacfwd
from ..core.lift.jacobians import jacrev as lift_jacrev
from ..core.types import Function, Tree
from .target import call_functions

__all__ = ["jacfwd", "jacrev"]


def jacfwd(
    fn: Function,
    mdl: Tree,
    *primals: Tree,
    has_aux: bool = False,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """Lifts `jax.jacfwd` to functions of a module: all derivatives of outputs by inputs.

    They equal the loop

    .. code-block:: python

      columns = [nn.jvp(fn, mdl, (x,), (one_hot(i),), {})[1] for i in range(x.size)]

    in one program, and with one trace of ``fn``. The time grows with the number of inputs; where
    they are more than the outputs, `jacrev` takes less. Derivatives are taken by ``primals``, not
    by variables.

    Args:
      fn: ``(mdl, *primals) -> y``, or ``(y, aux)`` with ``has_aux``. What it writes is written.
      mdl: a bound module, or a container of them.
      *primals: what is differentiated by: real numbers.
      has_aux: whether ``fn`` returns a second value that is not differentiated.
      variables: the collections that go in.
      rngs: the streams that go in.

    Returns:
      ``jacobians``, or ``(jacobians, aux)``: in place of each array of ``y`` a tuple with the
      structure of ``primals``, of arrays of ``[*array of y, *array of the primal]``.

    Raises:
      DifferentiationError: an input or an output is no real number.

    Example:
      >>> import jax, liftax as nn
      >>> class Slopes(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         (jacobian,) = nn.jacfwd(lambda mdl, x: mdl(x), nn.Dense(2), x)
      ...         return jacobian
      >>> jacobian, variables = Slopes().init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> bool((jacobian == variables['params']['Dense_0']['kernel'].T).all())
      True
    """
    (body,), scopes, args = call_functions("jacfwd", [fn], mdl, primals)
    return lift_jacfwd(
        body, scopes, *args, has_aux=has_aux, variables=variables, rngs=rngs
    )  # fmt: skip


def jacrev(
    fn: Function,
    mdl: Tree,
    *primals: Tree,
    has_aux: bool = False,
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """Lifts `jax.jacrev` to functions of a module; as `jacfwd`, by the backward pass.

    They equal the loop

    .. code-block:: python

      y, pull = nn.vjp(fn, mdl, x)
      rows = [pull(one_hot(i))[1] for i in range(y.size)]

    in one program. The time grows with the number of outputs.

    Args, returns and errors are those of `jacfwd`.

    Example:
      >>> import jax, liftax as nn
      >>> class Slopes(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         jacobians, y = nn.jacrev(
      ...             lambda mdl, x: (mdl(x),) * 2, nn.Dense(2), x, has_aux=True)
      ...         return jacobians[0], y
      >>> found, _ = Slopes().init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> jax.tree.map(jax.numpy.shape, found)
      ((2, 3), (2,))
    """
    (body,), scopes, args = call_functions("jacrev", [fn], mdl, primals)
    return lift_jacrev(
        body, scopes, *args, has_aux=has_aux, variables=variables, rngs=rngs
    )  # fmt: skip
