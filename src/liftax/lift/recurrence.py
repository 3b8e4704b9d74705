"""Lifted loops built on others: remat_scan and while_loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from ..core.filters import Filter
from ..core.pack import Opening
from ..core.roles import BROADCAST, CARRY, Roles, Row, split_pairs
from ..errors import ConditionError, LengthError, ScopeVariableNotFoundError
from .axes import names_on
from .looperrors import check_carried, checked_carry, kind_of
from .loops import scan
from .staging import remat


def remat_scan(
    body_fn: Callable[..., Any],
    lengths: Sequence[int],
    policy: Callable[..., bool] | None = None,
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    variable_axes: Mapping[Filter, Any] = {True: 0},
    split_rngs: Mapping[Filter, bool] = {True: True},
) -> Callable[..., Any]:
    """`liftax.remat_scan` over a function of a scope.

    Args:
      body_fn: one layer, ``(scope, carry) -> carry``.

    The other arguments are those of `liftax.remat_scan`.

    Returns:
      ``(scope, carry) -> carry``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from liftax.core import init, lift
      >>> def layer(scope, x):
      ...     return jnp.sin(x @ scope.param('w', jax.random.normal, (3, 3)))
      >>> _, variables = init(lift.remat_scan(layer, (4, 5)))(jax.random.key(0), jnp.ones(3))
      >>> variables['params']['w'].shape
      (4, 5, 3, 3)
    """
    levels = _levels(lengths)

    def loop(fn: Callable[..., Any], length: int) -> Callable[..., Any]:
        return scan(
            fn,
            variable_axes=variable_axes,
            variable_broadcast=variable_broadcast,
            variable_carry=variable_carry,
            split_rngs=split_rngs,
            length=length,
        )

    def named(fn: Callable[..., Any]) -> Callable[..., Any]:
        """Gives a level the name of what the user lifted, for messages and the layout."""
        fn.__name__ = getattr(body_fn, "__name__", "body")
        fn.__wrapped__ = body_fn  # type: ignore[attr-defined]
        return fn

    @named
    def once(scope: Any, carry: Any) -> Any:
        return body_fn(scope, carry), None

    # The innermost layers are stored where a level outside recomputes them, and
    # recomputed where there is none.
    fn = named(remat(once, policy=policy, prevent_cse=False)) if len(levels) == 1 else once
    fn = named(loop(fn, levels[-1]))
    for length in reversed(levels[:-1]):
        fn = named(loop(named(remat(fn, policy=policy, prevent_cse=False)), length))

    def run(scope: Any, carry: Any) -> Any:
        return fn(scope, carry)[0]

    return run


def _levels(lengths: Any) -> tuple[int, ...]:
    """Returns ``lengths``, checked."""
    if isinstance(lengths, str) or not isinstance(lengths, Iterable):
        raise LengthError(
            f"remat_scan: lengths expected one length for each level, e.g. (4, 5), or (20,) for "
            f"one level; found {type(lengths).__name__}"
        )
    levels = tuple(lengths)
    if not levels:
        raise LengthError("remat_scan: lengths is empty; expected one length for each level")
    for level in levels:
        if isinstance(level, bool) or not hasattr(level, "__index__"):
            raise LengthError(
                f"remat_scan: lengths expected ints, one for each level; found "
                f"{type(level).__name__} among them"
            )
        if level.__index__() < 0:
            raise LengthError(f"remat_scan: lengths={levels}: {level} is negative")
    return levels


def while_loop(
    cond_fn: Callable[[Any, Any], Any],
    body_fn: Callable[[Any, Any], Any],
    scope: Any,
    init: Any,
    carry_variables: Filter = False,
    broadcast_variables: Filter = True,
    split_rngs: Mapping[Filter, bool] = {},
) -> Any:
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

    def run(fn: Callable[..., Any], state: Any, **event: Any) -> Any:
        step, variables, carry = state
        keys = jax.tree.map(lambda key: jax.random.fold_in(key, step), split)
        y, (written,) = opening.body(fn, [CARRY], **event)(
            [shared, variables], [same, keys], (carry,)
        )
        return y, written

    def test(state: Any) -> Any:
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

    def advance(state: Any) -> Any:
        step, variables, before = state
        carry, after = run(body_fn, state, carry=True)
        checked_carry(opening, *jax.tree.flatten(before), carry)
        new = [
            "/".join(names_on(path[1:]))
            for path, _ in jax.tree_util.tree_leaves_with_path(after)
            if path not in {p for p, _ in jax.tree_util.tree_leaves_with_path(variables)}
        ]
        if new:
            raise ScopeVariableNotFoundError(
                f"{opening.place}: the body makes variables ({', '.join(new[:4])}), but a while "
                f"loop may run zero times. Make them before the loop: call the body once on "
                f"the initial carry where self.is_initializing()"
            )
        kept = tuple({**old, **now} for old, now in zip(variables, after, strict=True))
        check_carried(opening, variables, kept)
        return step + 1, kept, carry

    _, carried, carry = jax.lax.while_loop(test, advance, (0, carried, init))
    opening.write_back(carried)
    return carry
