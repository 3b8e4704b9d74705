"""Derivatives of functions of a module: lifts that are called at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..core.filters import Filter
from ..core.lift.derivatives import custom_vjp as lift_custom_vjp
from ..core.lift.derivatives import jvp as lift_jvp
from ..core.lift.derivatives import value_and_grad as lift_value_and_grad
from ..core.lift.derivatives import vjp as lift_vjp
from ..core.types import Function, Tree
from ..errors import DifferentiationError
from .target import call_functions

__all__ = ["custom_vjp", "grad", "jvp", "value_and_grad", "vjp"]


def vjp(
    fn: Function,
    mdl: Tree,
    *primals: Tree,
    has_aux: bool = False,
    reduce_axes: Sequence[object] = (),
    vjp_variables: Filter = "params",
    variables: Filter = True,
    rngs: Filter = True,
    multi_scope: bool = False,
) -> Any:
    """Lifts `jax.vjp` to functions of a module.

    Args:
      fn: ``(mdl, *primals) -> y``, or ``(y, aux)`` with ``has_aux``.
      mdl: a bound module, or a container of them.
      *primals: arrays or pytrees of them.
      has_aux: whether ``fn`` returns a second value that is not differentiated.
      reduce_axes: not supported by JAX any more; only empty.
      vjp_variables: the collections that are differentiated.
      variables: which of the other collections go in.
      rngs: the streams that go in.
      multi_scope: True for modules at more than one place of the model; the
        cotangents of the variables are then a list, in the order of the modules.

    Returns:
      ``(y, vjp_fn)`` or ``(y, vjp_fn, aux)``, where ``vjp_fn(y_bar)`` returns
      ``(variables_bar, *primals_bar)``. ``variables_bar`` has the structure of
      ``{'params': ...}``.

    Example:
      >>> import jax, liftax as nn
      >>> class Slope(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         y, vjp_fn = nn.vjp(lambda mdl, x: mdl(x).sum(), nn.Dense(2), x)
      ...         variables_bar, x_bar = vjp_fn(jax.numpy.ones_like(y))
      ...         return x_bar
      >>> x_bar, _ = Slope().init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> x_bar.shape
      (3,)
    """
    (body,), scopes, args = call_functions("vjp", [fn], mdl, primals)
    # The cotangents of one module have the structure of its variables; who is to get a list of
    # them must say so, or would find it where he looks for a dict.
    if len(scopes) > 1 and not multi_scope:
        raise DifferentiationError(
            f"vjp: the module holds {len(scopes) - 1} other modules, at places of their own; "
            f"pass multi_scope=True for a list of cotangents, one for each"
        )
    return lift_vjp(
        body, scopes, *args, has_aux=has_aux, reduce_axes=reduce_axes,
        vjp_variables=vjp_variables, variables=variables, rngs=rngs,
    )  # fmt: skip


def value_and_grad(
    fn: Function,
    mdl: Tree,
    *primals: Tree,
    has_aux: bool = False,
    reduce_axes: Sequence[object] = (),
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """Lifts `jax.value_and_grad` to functions of a module, for their inputs.

    Gradients are taken for ``primals``, not for variables; for those see `vjp`.

    Args:
      fn: ``(mdl, *primals) -> y`` with a scalar y, or ``(y, aux)``.
      mdl: a bound module, or a container of them.
      *primals: what is differentiated.
      has_aux: whether ``fn`` returns a second value.
      reduce_axes: not supported by JAX any more; only empty.
      variables: the collections that go in.
      rngs: the streams that go in.

    Returns:
      ``(y, grads)`` or ``((y, aux), grads)`` with a tuple of gradients.

    Example:
      >>> import jax, liftax as nn
      >>> class Energy(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.value_and_grad(lambda mdl, x: mdl(x).sum(), nn.Dense(2), x)
      >>> (y, grads), _ = Energy().init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> y.shape, grads[0].shape
      ((), (3,))
    """
    (body,), scopes, args = call_functions("value_and_grad", [fn], mdl, primals)
    return lift_value_and_grad(
        body, scopes, *args, has_aux=has_aux, reduce_axes=reduce_axes,
        variables=variables, rngs=rngs,
    )  # fmt: skip


def grad(
    fn: Function,
    mdl: Tree,
    *primals: Tree,
    has_aux: bool = False,
    reduce_axes: Sequence[object] = (),
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`value_and_grad` without the value: ``grads``, or ``(grads, aux)`` with ``has_aux``.

    Example:
      >>> import jax, liftax as nn
      >>> class Force(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.grad(lambda mdl, x: mdl(x).sum(), nn.Dense(2), x)
      >>> (force,), _ = Force().init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> force.shape
      (3,)
    """
    value, grads = value_and_grad(
        fn, mdl, *primals, has_aux=has_aux, reduce_axes=reduce_axes,
        variables=variables, rngs=rngs,
    )  # fmt: skip
    # With `has_aux` the value is a pair, and what is left without the value is its second half.
    return (grads, value[1]) if has_aux else grads


def jvp(
    fn: Function,
    mdl: Tree,
    primals: Sequence[object],
    tangents: Sequence[object],
    variable_tangents: Mapping[str, object] | Sequence[Mapping[str, object]],
    variables: Filter = True,
    rngs: Filter = True,
) -> tuple[Any, Any]:
    """Lifts `jax.jvp` to functions of a module.

    Args:
      fn: ``(mdl, *primals) -> y``.
      mdl: a bound module, or a container of them.
      primals, tangents: the inputs and their tangents.
      variable_tangents: ``{collection: tangents}`` for the module's variables; a
        sequence of them, in order, for modules at more than one place.
      variables: the collections that go in.
      rngs: the streams that go in.

    Returns:
      ``(y, y_dot)``.

    Example:
      >>> import jax, liftax as nn
      >>> class Push(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.jvp(lambda mdl, x: mdl(x), nn.Dense(2), (x,), (x,), {})
      >>> (y, y_dot), _ = Push().init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> bool((y == y_dot).all())  # the bias starts at zero
      True
    """
    (body,), scopes, args = call_functions("jvp", [fn], mdl, tuple(primals))
    return lift_jvp(body, scopes, args, tangents, variable_tangents, variables, rngs)


def custom_vjp(
    fn: Function,
    forward_fn: Function,
    backward_fn: Function,
    grad_vars: Filter = "params",
    nondiff_argnums: int | Sequence[int] = (),
) -> Callable[..., Any]:
    """Lifts `jax.custom_vjp` to functions of a module.

    Args:
      fn: ``(mdl, *args) -> y``.
      forward_fn: ``(mdl, *args) -> (y, residuals)``; often `vjp` of something.
      backward_fn: ``(*nondiff_args, residuals, y_bar) -> (variables_bar,
        *args_bar)``.
      grad_vars: the collections that are differentiated.
      nondiff_argnums: the positions of arguments that are not; the module is 0.

    Returns:
      ``(mdl, *args) -> y``.

    Example:
      >>> import jax, liftax as nn
      >>> class SignGrad(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         def f(mdl, x):
      ...             return mdl(x)
      ...         def forward(mdl, x):
      ...             return nn.vjp(f, mdl, x)
      ...         def backward(vjp_fn, y_bar):
      ...             variables_bar, x_bar = vjp_fn(y_bar)
      ...             return jax.tree.map(jax.numpy.sign, variables_bar), x_bar
      ...         return nn.custom_vjp(f, forward, backward)(nn.Dense(1), x)
      >>> x = jax.numpy.array([3.0, -2.0])
      >>> variables = SignGrad().init(jax.random.key(0), x)
      >>> grads = jax.grad(lambda v: SignGrad().apply(v, x).sum())(variables)
      >>> grads['params']['Dense_0']['kernel'].tolist()
      [[1.0], [-1.0]]
    """

    # `fn` and `forward_fn` are bodies over one detached module: JAX calls the one where nothing is
    # differentiated and the other where something is, and both go on from where it stands.
    def run(mdl: Tree, *args: Tree) -> object:
        bodies, scopes, plain = call_functions("custom_vjp", [fn, forward_fn], mdl, args)
        lifted = lift_custom_vjp(bodies[0], bodies[1], backward_fn, grad_vars, nondiff_argnums)
        return lifted(scopes, *plain)

    return run
