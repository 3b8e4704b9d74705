"""What a scope says when it refuses: the errors of scopes, with their messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from .. import compat
from ..errors import (
    ClosedOverModuleError,
    InvalidRngError,
    InvalidScopeError,
    LeakedTracerError,
    LiftaxError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
    ScopeVariableNotFoundError,
    UnnamedCollectionError,
)
from .rngs import describe

if TYPE_CHECKING:
    from .scope import Scope

_ARGUMENTS = {
    "scan": "variable_axes={{{0!r}: 0}}, variable_carry={0!r} or variable_broadcast={0!r}",
    "vmap": "variable_axes={{{0!r}: 0}}",
    "while_loop": "carry_variables={0!r}",
}


def not_valid(scope: Scope) -> LiftaxError:
    """A scope whose call has ended, or has handed it to a lift that runs now."""
    lift = scope._root.entered_by
    if lift is None:
        return InvalidScopeError(
            f"{scope._where()}: used after the call that made it had ended. "
            f"Pass values out of init or apply, not scopes or bound modules."
        )
    name = scope.name or "module"
    return ClosedOverModuleError(
        f"{scope._where()}: used inside {lift}, which it was not passed to.\n"
        f"found: the lifted function closes over this module (or scope), so the lift cannot "
        f"give it its own axis, keys and variables\n"
        f"expected: the module as an argument of the lifted function:\n"
        f"    def body(mdl, {name}, ...): ...   # not: def body(mdl, ...)\n"
        f"    lifted(self, {name}, ...)"
    )


def no_stream(scope: Scope, name: str) -> InvalidRngError:
    """A key of a stream that is not here."""
    have = ", ".join(map(repr, scope.rngs)) or "none"
    lift = scope._root.lift
    hint = f"pass rngs={{{name!r}: jax.random.key(0)}} to init or apply"
    if lift:
        hint += f", and name it in the split_rngs (or rngs) argument of {lift}"
    return InvalidRngError(
        f"{scope._where()}: needs a key of stream {name!r}, streams here: {have}; {hint}"
    )


def unnamed(scope: Scope, col: str) -> UnnamedCollectionError:
    """A write that a lift would lose."""
    kind = (scope._root.lift or "").split(" ", 1)[0]
    arguments = _ARGUMENTS.get(kind, "variables={0!r} (or True)").format(col)
    return UnnamedCollectionError(
        f"{scope._where()}: a write to collection {col!r} would be lost.\n"
        f"found: no argument of {kind} names {col!r}, though it is mutable outside\n"
        f"expected: {arguments} in the call of {kind}"
    )


def check_leak(scope: Scope, col: str, name: str, value: Any) -> None:
    """Raises LeakedTracerError where a value dies before the scope does."""
    for leaf in jax.tree.leaves(value):
        if compat.leaks(leaf, scope._root.trace):
            raise LeakedTracerError(
                f"{scope._where()}: variable {name!r} of collection {col!r} would be a leaked "
                f"tracer.\n"
                f"found: {describe(leaf)}, traced by a JAX transformation that was started "
                f"inside the module\n"
                f"expected: liftax's own lift in its place, e.g. nn.jit for jax.jit, nn.vmap "
                f"for jax.vmap, nn.scan for jax.lax.scan"
            )


def not_found(scope: Scope, col: str, name: str) -> LiftaxError:
    """A variable that is missing and may not be made."""
    node = scope._node(col)
    have = ", ".join(map(repr, list(node)[:8])) if node else "nothing"
    lift = scope._root.lift
    hint = f"; name {col!r} in the arguments of {lift}" if lift else ""
    text = f"{scope._where()}: variable {name!r} is missing in collection {col!r}"
    if scope.is_collection_empty(col):
        return ScopeCollectionNotFound(
            f"{text}: the collection is empty; pass {{{col!r}: ...}} as made by init{hint}"
        )
    error = ScopeParamNotFoundError if col == "params" else ScopeVariableNotFoundError
    return error(f"{text}; found there: {have}{hint}")


def check_shape(
    scope: Scope, name: str, value: Any, init_fn: Any, init_args: Any, init_kwargs: Any
) -> None:
    """Raises ScopeParamShapeError where a parameter is not what its initializer makes."""

    def abstract() -> Any:
        return init_fn(jax.random.key(0), *init_args, **init_kwargs)

    expected = jax.tree.leaves(jax.eval_shape(abstract))
    for have, want in zip(jax.tree.leaves(value), expected, strict=False):
        if jnp.shape(have) != jnp.shape(want):
            raise ScopeParamShapeError(
                f"{scope._where()}: parameter {name!r} has shape {jnp.shape(have)}, its "
                f"initializer makes {jnp.shape(want)}.\n"
                f"Check the module's fields and the inputs against those that the variables "
                f"were made for."
            )
