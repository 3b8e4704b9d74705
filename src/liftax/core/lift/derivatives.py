"""Lifted differentiation: vjp, jvp, value_and_grad, grad, custom_vjp."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...errors import StaticArgumentError
from ...pytrees import joined, parted
from ..filters import Filter
from ..linen_keys import Drawn, Log, join
from ..roles import THROUGH, Roles, Row, through_roles
from ..streams import Keyed
from ..types import Function, Group, Tree
from . import derivative_checks
from .counters import counted, set_counters
from .crossing import Opening
from .options import Options, lift_of

__all__ = ["custom_vjp", "grad", "jvp", "value_and_grad", "vjp"]

DIFFERENTIATED = "differentiated"
_BOTH = (DIFFERENTIATED, THROUGH)

Pull = Callable[[Tree], tuple[Any, ...]]
"""From the cotangent of an output to those of the inputs."""


def _differentiated(
    lift: str, chosen: Filter, argument: str, variables: Filter = True, rngs: Filter = True
) -> Roles:
    # In this order: the first row that has a collection decides.
    rows = [Row(chosen, DIFFERENTIATED, argument), Row(variables, THROUGH, "variables")]
    return Roles(lift, rows, [(rngs, False)])


def _pulled(
    opening: Opening, fn: Function, primals: Sequence[Tree], has_aux: bool
) -> tuple[Any, Pull, Any]:
    """Calls `jax.vjp`: returns the output, what pulls its cotangent back, and the second value.

    The cotangents are those of the differentiated variables, a group of them, and of each primal.
    """
    run = opening.body(fn, _BOTH)
    others, keys = opening.values(THROUGH), opening.keys(False)

    def outputs(chosen: Group, *primals: Tree) -> tuple[Any, tuple[list[Group], Any]]:
        y, written = run([others, chosen], [keys], primals)
        y, aux = derivative_checks.with_aux(opening, y) if has_aux else (y, None)
        # What was written is no output to differentiate, so it leaves as JAX's own aux does.
        return y, (written, aux)

    chosen = opening.values(DIFFERENTIATED)
    y, pull, (written, aux) = jax.vjp(outputs, chosen, *primals, has_aux=True)
    opening.write_back(*written)
    return y, pull, aux


def vjp(
    fn: Function,
    scope: Tree,
    *primals: Tree,
    has_aux: bool = False,
    reduce_axes: Sequence[object] = (),
    vjp_variables: Filter = "params",
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`liftax.vjp` over a function of a scope.

    Args:
      fn: ``(scope, *primals) -> y``, or ``(y, aux)`` with ``has_aux``.
      scope: a scope or a pytree of scopes.

    The other arguments are those of `liftax.vjp`.

    Returns:
      ``(y, vjp_fn)`` or ``(y, vjp_fn, aux)``; ``vjp_fn(y_bar)`` returns the
      cotangents of the variables (a dict of collections, or a list of them for
      several scopes) and of each primal.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def f(scope, x):
      ...     return x * scope.param('w', lambda key: 0.0)
      >>> def both(scope, x):
      ...     y, vjp_fn = lift.vjp(f, scope, x)
      ...     return vjp_fn(1.0)
      >>> jax.tree.map(float, apply(both)({'params': {'w': 2.0}}, 3.0))
      ({'params': {'w': 3.0}}, 2.0)
    """
    derivative_checks.check_unreduced(reduce_axes, "vjp")
    roles = _differentiated("vjp", vjp_variables, "vjp_variables", variables, rngs)
    opening = Opening(roles, scope, fn)
    y, pull, aux = _pulled(opening, fn, primals, has_aux)
    single = len(opening.tops) == 1
    # A pytree, so that ``vjp_fn`` can leave jit, or be the residuals of a custom_vjp.
    pullback = jax.tree_util.Partial(_PullBack(single, opening.place), pull)
    return (y, pullback, aux) if has_aux else (y, pullback)


@dataclasses.dataclass(frozen=True)
class _PullBack:
    """Applies a vjp and shows the variables' cotangents by scope."""

    single: bool
    # For messages: JAX compares two of these to tell whether a program can be used again.
    place: str = dataclasses.field(compare=False)

    def __call__(self, pull: Pull, y_bar: Tree) -> tuple[Any, ...]:
        try:
            variables_bar, *rest = pull(y_bar)
        except (TypeError, ValueError) as cause:
            derivative_checks.check_cotangent(self.place, y_bar, cause)
            raise
        return (variables_bar[0] if self.single else list(variables_bar), *rest)


def value_and_grad(
    fn: Function,
    scope: Tree,
    *primals: Tree,
    has_aux: bool = False,
    reduce_axes: Sequence[object] = (),
    variables: Filter = True,
    rngs: Filter = True,
) -> Any:
    """`liftax.value_and_grad` over a function of a scope.

    Args:
      fn: ``(scope, *primals) -> y`` with a scalar y, or ``(y, aux)``.
      scope: a scope or a pytree of scopes.

    Returns:
      ``(y, grads)`` or ``((y, aux), grads)``, with one gradient per primal.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def square(scope, x): return x * x
      >>> run = apply(lambda scope, x: lift.value_and_grad(square, scope, x))
      >>> jax.tree.map(float, run({}, 3.0))
      (9.0, (6.0,))
    """
    derivative_checks.check_unreduced(reduce_axes, "value_and_grad")
    opening = Opening(through_roles("value_and_grad", variables, rngs), scope, fn)
    y, pull, aux = _pulled(opening, fn, primals, has_aux)
    derivative_checks.check_scalar(opening, y)
    # No row of the table is differentiated: the first cotangent is of no variables.
    _, *grads = pull(jnp.ones_like(y))
    return ((y, aux), tuple(grads)) if has_aux else (y, tuple(grads))


def grad(fn: Function, scope: Tree, *primals: Tree, **options: Any) -> Any:
    """`value_and_grad` without the value: ``grads``, or ``(grads, aux)`` with ``has_aux``.

    Example:
      >>> from liftax.core import apply, lift
      >>> def square(scope, x): return x * x
      >>> float(apply(lambda scope, x: lift.grad(square, scope, x))({}, 3.0)[0])
      6.0
    """
    value, grads = value_and_grad(fn, scope, *primals, **options)
    return (grads, value[1]) if options.get("has_aux", False) else grads


def jvp(
    fn: Function,
    scope: object,
    primals: Sequence[object],
    tangents: Sequence[object],
    variable_tangents: Mapping[str, object] | Sequence[Mapping[str, object]],
    variables: Filter = True,
    rngs: Filter = True,
) -> tuple[Any, Any]:
    """`liftax.jvp` over a function of a scope.

    Args:
      fn: ``(scope, *primals) -> y``.
      scope: a scope or a pytree of scopes.
      primals, tangents: the inputs and their tangents.
      variable_tangents: collection -> tangents of its variables; for several
        scopes a sequence of such dicts, in their order.

    Returns:
      ``(y, y_dot)``.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def f(scope, x):
      ...     return x * scope.param('w', lambda key: 0.0)
      >>> def push(scope, x):
      ...     return lift.jvp(f, scope, (x,), (0.0,), {'params': {'w': 1.0}})
      >>> jax.tree.map(float, apply(push)({'params': {'w': 2.0}}, 3.0))
      (6.0, 3.0)
    """
    opening = Opening(through_roles("jvp", variables, rngs), scope, fn)
    given = [variable_tangents] if isinstance(variable_tangents, Mapping) else variable_tangents
    run, values, keys = opening.body(fn), opening.values(THROUGH), opening.keys(False)
    derivative_checks.check_named(opening, values, given)
    # Only what has a tangent is an input of `jax.jvp`: zeros need not be made for the rest.
    chosen = tuple(map(_part, values, given))
    directions = tuple({c: t[c] for c in part} for part, t in zip(chosen, given, strict=True))

    def outputs(chosen: Group, primals: tuple[Tree, ...]) -> tuple[Any, list[Group]]:
        return run([tuple(map(_overlay, values, chosen))], [keys], primals)

    inputs, moves = (chosen, tuple(primals)), (directions, tuple(tangents))
    (y, written), (y_dot, _) = derivative_checks.checked_jvp(opening, outputs, inputs, moves)
    opening.write_back(*written)
    return y, y_dot


def _part(node: Any, like: object) -> Any:
    """Returns the part of a nested dict that another one has."""
    if isinstance(node, Mapping) and isinstance(like, Mapping):
        return {k: _part(node[k], v) for k, v in like.items() if k in node}
    return node


def _overlay(node: object, part: object) -> Any:
    """Undoes `_part`, with other values in it."""
    if isinstance(node, Mapping) and isinstance(part, Mapping):
        return {k: _overlay(v, part[k]) if k in part else v for k, v in node.items()}
    return part


class _Counted:
    """Counts the keys of one call whose function JAX may trace more than once.

    A later trace, which may come after the model has gone on, draws the keys that the
    first one drew.
    """

    def __init__(self, opening: Opening):
        self.opening = opening
        self.before = counted(opening)
        self.drawn: list[Drawn] | None = None

    def __call__(
        self,
        fn: Function,
        variables: Sequence[Group],
        keys: Sequence[Keyed],
        args: Sequence[object],
    ) -> tuple[Any, list[Group]]:
        opening, log = self.opening, self.opening.log
        if self.drawn is None:
            start = len(log or ())
            out = opening.body(fn, _BOTH)(variables, keys, args)
            self.drawn = log[start:] if log is not None else []
            return out
        after = counted(opening)
        set_counters(opening, self.before)
        again = None if log is None else Log(log.hoisted, log.outer)
        out = opening.body(fn, _BOTH, log=again)(variables, keys, args)
        set_counters(opening, after)
        join(self.drawn, again or (), lambda collection: False)
        return out


@dataclasses.dataclass(frozen=True, eq=False)
class CustomVjp(Options):
    """`liftax.custom_vjp` over functions of a scope.

    Args:
      fn: ``(scope, *args) -> y``.
      forward_fn: ``(scope, *args) -> (y, residuals)``.
      backward_fn: ``(*nondiff_args, residuals, y_bar) -> (variables_bar,
        *args_bar)``, without the nondifferentiable arguments among the last.
      grad_vars: the collections that are differentiated.
      nondiff_argnums: the positions of arguments that are not; the scope is 0.

    Returns:
      ``(scope, *args) -> y``.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def f(scope, x):
      ...     return x * scope.param('w', lambda key: 0.0)
      >>> def forward(scope, x):
      ...     return lift.vjp(f, scope, x)
      >>> def backward(vjp_fn, y_bar):
      ...     variables_bar, x_bar = vjp_fn(y_bar)
      ...     return jax.tree.map(jax.numpy.sign, variables_bar), x_bar
      >>> run = apply(lift.custom_vjp(f, forward, backward))
      >>> float(jax.grad(run)({'params': {'w': 2.0}}, 3.0)['params']['w'])
      1.0
    """

    lift = "custom_vjp"

    forward_fn: Function
    backward_fn: Callable[..., Any]
    grad_vars: Filter = "params"
    nondiff_argnums: int | Sequence[int] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if 0 in self.numbers:
            raise StaticArgumentError(
                "custom_vjp: nondiff_argnums has 0, which is the module (or scope) itself; the "
                "arguments after it count from 1. What is differentiated of it is set by grad_vars"
            )

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        return _differentiated("custom_vjp", self.grad_vars, "grad_vars")

    @functools.cached_property
    def numbers(self) -> tuple[int, ...]:
        """The positions of arguments that are not differentiated."""
        numbers = self.nondiff_argnums
        return (numbers,) if isinstance(numbers, int) else tuple(numbers)

    def moves(self, fn: Function, args: tuple[Tree, ...]) -> list[bool]:
        """Tells of each argument of a call whether it is differentiated."""
        for n in self.numbers:
            if not -len(args) <= n <= len(args):
                raise StaticArgumentError(
                    f"custom_vjp of {getattr(fn, '__name__', 'a function')}: nondiff_argnums has "
                    f"{n}, the call has {len(args)} arguments besides the module; expected 1 to "
                    f"{len(args)}, or {-len(args)} to -1 from the end"
                )
        still = {n - 1 if n > 0 else len(args) + n for n in self.numbers}
        return [i not in still for i in range(len(args))]

    # By position alone, as `jax.custom_vjp` gives a rule its arguments.
    def run(self, fn: Function, scopes: Tree, /, *args: Tree) -> Any:  # type: ignore[override]
        """Runs a function whose derivative is the user's."""
        moves = self.moves(fn, args)
        opening = Opening(self.roles, scopes, fn)
        if opening.watched:
            # Nothing is differentiated in init, and a loop outside is to see what is made in here.
            return opening.call_without(fn, scopes, args, {})
        # Closed over: JAX's own ``nondiff_argnums`` refuses what is traced.
        moving, fixed = parted(args, moves)
        chosen, place = opening.values(DIFFERENTIATED), opening.place
        single, given, once = len(opening.tops) == 1, (chosen, moving), _Counted(opening)

        def called(
            fn: Function, chosen: Group, others: Group, keys: Keyed, moving: Sequence[object]
        ) -> tuple[Any, list[Group]]:
            return once(fn, [others, chosen], [keys], joined(moving, fixed, moves))

        def forward(*inputs: Any) -> tuple[tuple[Any, list[Group]], object]:
            out, written = called(self.forward_fn, *inputs)
            y, residuals = derivative_checks.with_residuals(opening, out)
            return (y, written), residuals

        def backward(residuals: Tree, bars: tuple[Tree, Tree]) -> tuple[object, ...]:
            # What was written is an output too, for JAX; the user's rule knows of ``y`` alone.
            y_bar, _ = bars
            out: Any = self.backward_fn(*fixed, residuals, y_bar)
            variables_bar, *moving_bar = derivative_checks.with_variables(place, out, len(moving))
            chosen_bar = (variables_bar,) if single else tuple(variables_bar)
            derivative_checks.check_cotangents(place, given, (chosen_bar, moving_bar))
            # None is a cotangent of zero: nothing of these is differentiated.
            return chosen_bar, None, None, moving_bar

        rule = jax.custom_vjp(functools.partial(called, fn))
        rule.defvjp(forward, backward)
        y, written = rule(chosen, opening.values(THROUGH), opening.keys(False), moving)
        opening.write_back(*written)
        return y


custom_vjp = lift_of("custom_vjp", CustomVjp)
