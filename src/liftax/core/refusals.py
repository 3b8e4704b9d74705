"""What a scope says when it refuses: the errors of scopes, with their messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp

from .. import jax_private
from ..errors import (
    ApplyScopeInvalidVariablesTypeError,
    AxisNameError,
    ClosedOverModuleError,
    InitializerError,
    InvalidRngError,
    InvalidScopeError,
    JaxTransformError,
    LeakedTracerError,
    LiftaxError,
    ModifyScopeVariableError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    ScopeParamShapeError,
    ScopeVariableNotFoundError,
    TiedModulesError,
    UnnamedCollectionError,
    where,
)
from ..tracebacks import place_of
from ..words import describe, shown
from .call import Call, ScopeLike
from .filters import names_of
from .roles import BROADCAST, Roles
from .trees import tracers
from .types import Function

_ARGUMENTS = {
    "scan": "variable_axes={{{0!r}: 0}}, variable_carry={0!r} or variable_broadcast={0!r}",
    "vmap": "variable_axes={{{0!r}: 0}} (None shares it)",
    "while_loop": "carry_variables={0!r}",
}

# What JAX, or `one_trace.Loop` by the name of its function, says to have traced a body.
_TRACED_FOR = {
    "while_body": "while_loop",
    "while_cond": "while_loop",
    "cond": "a branch",
    "switch": "a branch",
}


def no_variables(given: object) -> ApplyScopeInvalidVariablesTypeError:
    """What was handed to apply or bind in place of variables."""
    # The two slips that are common: parameters by themselves, and the pair that init_with_output
    # returns.
    found, hint = describe(given), ""
    if isinstance(given, Mapping):
        names = list(given.items())[:8]
        found = "{" + ", ".join(f"{n!r}: {describe(v)}" for n, v in names) + "}"
        if all(isinstance(name, str) for name in given):
            hint = "\nParameters alone go in as {'params': variables}"
    elif isinstance(given, (tuple, list)) and given and isinstance(given[-1], Mapping):
        hint = (
            "\ninit_with_output, and apply with mutable=, return a pair: the variables are second"
        )
    return ApplyScopeInvalidVariablesTypeError(
        f"variables: expected a mapping of collections, {{'params': {{...}}, ...}}; found "
        f"{found}{hint}"
    )


def no_mapping(scope: ScopeLike, col: str, found: object) -> ApplyScopeInvalidVariablesTypeError:
    """What stands where the variables of a scope belong."""
    return ApplyScopeInvalidVariablesTypeError(
        f"{scope.where()}: expected a mapping of variables in collection {col!r}, "
        f"found {describe(found)}"
    )


def immutable(scope: ScopeLike, col: str, name: str) -> ModifyScopeVariableError:
    """A write to a collection that may not be written."""
    return ModifyScopeVariableError(
        f"{scope.where()}: cannot write variable {name!r}, collection {col!r} is immutable "
        f"here; pass mutable=[{col!r}] to apply"
    )


def not_valid(scope: ScopeLike) -> LiftaxError:
    """A scope whose call has ended, or has handed it to a lift that runs now."""
    opening = scope.call.entered_by
    if opening is None:
        return InvalidScopeError(
            f"{scope.where()}: used after the call that made it had ended. "
            f"Pass values out of init or apply, not scopes or bound modules."
        )
    fn = getattr(opening.target, "__name__", "body")
    name = scope.name if scope.name and scope.name.isidentifier() else "module"
    # Two slips look alike from here: self in place of the first argument, and another module.
    if any(scope.path == top.path for top in opening.tops):
        found = "the lifted function uses the module from outside, not its own first argument"
        expected = (
            f"expected: the argument in its place:\n"
            f"    def {fn}(mdl, ...): ...   # and mdl inside, not self"
        )
    else:
        found = "the lifted function closes over this module (or scope)"
        expected = (
            f"expected: the module as an argument of the lifted function:\n"
            f"    def {fn}(mdl, {name}, ...): ...   # not: def {fn}(mdl, ...)\n"
            f"    lifted(self, {name}, ...)"
        )
    return ClosedOverModuleError(
        f"{scope.where()}: used inside {opening.label}, which it was not passed to.\n"
        f"found: {found}, so the lift cannot give it its own axis, keys and variables\n"
        f"{expected}"
    )


def check_readable(scope: ScopeLike, col: str) -> None:
    """Raises an error where what is read here is not what the lift that runs now works on.

    Values that the lift shares, or leaves alone, are the same inside and outside.
    """
    opening = scope.call.entered_by
    if opening is None:
        raise not_valid(scope)
    for top, roles in zip(opening.tops, opening.tables, strict=True):
        below = top.call is scope.call and scope.path[: len(top.path)] == top.path
        # These have a slice of their own inside, or a value that changes: outside there is another.
        if below and roles.lift in _ARGUMENTS and roles.role(col) not in (None, BROADCAST):
            raise not_valid(scope)


def _lifts(scope: ScopeLike) -> Iterator[tuple[Call, Roles, ScopeLike]]:
    """Yields the lifts in force, innermost first: root inside, table, scope outside."""
    root = scope.call
    while root.outside is not None and root.roles is not None:
        yield root, root.roles, root.outside
        root = root.outside.call


def no_stream(scope: ScopeLike, name: str) -> InvalidRngError:
    """A key of a stream that is not here."""
    have = ", ".join(map(repr, scope.rngs)) or "none"
    hint = f"pass rngs={{{name!r}: jax.random.key(0)}} to init or apply"
    for root, roles, outside in _lifts(scope):
        # The innermost lift that leaves it outside is where a user has to name it first.
        if roles.split(name) is None:
            axis = roles.lift in ("scan", "vmap", "while_loop")
            argument = f"split_rngs={{{name!r}: True}}" if axis else "rngs=True"
            here = f"pass {argument} (it was left outside) to {root.lift}"
            hint = here if name in outside.rngs else f"{hint}, and {here}"
            break
    return InvalidRngError(
        f"{scope.where()}: needs a key of stream {name!r}, streams here: {have}; {hint}"
    )


def check_named(scope: ScopeLike, col: str) -> None:
    """Raises UnnamedCollectionError where a lift in force would lose a write to ``col``."""
    for root, roles, outside in _lifts(scope):
        if outside.call.is_mutable(col):
            row = roles.of(col)
            if row is None:
                found = f"no argument of {roles.lift} names {col!r}, though it is mutable outside"
            elif not row.leaves:
                found = f"{row.argument} lets {col!r} in and not out, though it is mutable outside"
            else:
                return
            raise UnnamedCollectionError(
                f"{where(scope.path, root.lift)}: a write to collection {col!r} would be lost.\n"
                f"found: {found}{_meant(roles, col)}\n"
                f"expected: {_argument(roles, col, row is not None)}"
            )


def check_not_hidden(scope: ScopeLike, col: str, name: str) -> None:
    """Raises UnnamedCollectionError where a variable exists and a lift leaves it outside."""
    for root, roles, outside in _lifts(scope):
        if roles.of(col) is None and _has(outside, col, (*scope.path, name)):
            raise UnnamedCollectionError(
                f"{where(scope.path, root.lift)}: variable {name!r} of collection {col!r} is "
                f"read, and would be missing.\n"
                f"found: no argument of {roles.lift} names {col!r}, though the variable exists "
                f"outside{_meant(roles, col)}\n"
                f"expected: {_argument(roles, col)}"
            )


def _has(outside: ScopeLike, col: str, path: tuple[str, ...]) -> bool:
    node: object = outside.node(col)
    for name in path[len(outside.path) :]:
        if not isinstance(node, Mapping) or name not in node:
            return False
        node = node[name]
    return node is not None


def _argument(roles: Roles, col: str, named: bool = False) -> str:
    """The arguments of a lift that would let a collection in, and out."""
    lift = roles.lift
    if lift == "map_variables" and named:
        return "init=True, to make what is missing, or mutable=True, to write it, in map_variables"
    argument = _ARGUMENTS.get(lift, roles.advice).format(col)
    return f"{argument} in the call of {lift}"


def _meant(roles: Roles, col: str) -> str:
    """Names an entry of the table that may have meant ``col``."""
    names = {name for row in roles.rows for name in names_of(row.filter)}
    near = difflib.get_close_matches(col, names - {col}, n=1, cutoff=0.75)
    return f"; it names {near[0]!r}: did you mean {col!r}?" if near else ""


def check_leak(scope: ScopeLike, col: str, name: str, value: object) -> None:
    """Raises an error where a value dies before the scope does.

    Raises:
      JaxTransformError: the variable is being made.
      LeakedTracerError: it is written.
    """
    for leaf in tracers(value):
        if not jax_private.leaks(leaf, scope.call.trace):
            continue
        if scope.call.creating is not None and jax_private.current_trace() is not scope.call.trace:
            raise JaxTransformError(
                f"{scope.where()}: variable {name!r} of collection {col!r} is made inside a JAX "
                f"transformation that was started inside the module, and would be lost with it.\n"
                f"found: {describe(leaf)}, traced by jax.jit, jax.lax.scan or the like\n"
                f"expected: liftax's own lift in its place, with the module as the first "
                f"argument of the lifted function: nn.jit for jax.jit, nn.scan for jax.lax.scan"
            )
        raise LeakedTracerError(
            f"{scope.where()}: variable {name!r} of collection {col!r} would be a leaked "
            f"tracer.\n"
            f"found: {describe(leaf)}, traced by a JAX transformation that was started "
            f"inside the module\n"
            f"expected: a value that the transformed function returns; or liftax's own lift in "
            f"place of JAX's, e.g. nn.jit for jax.jit, nn.vmap for jax.vmap"
        )


def check_returned(scope: ScopeLike, y: object) -> None:
    """Raises LeakedTracerError where a call returns what died with a lift inside of it."""
    for leaf in tracers(y):
        if jax_private.leaks(leaf, scope.call.trace):
            try:
                jnp.add(leaf, leaf)  # JAX knows where it was made, and says so when it is used
            except jax.errors.UnexpectedTracerError as error:
                raise escaped(error) from error


def escaped(error: jax.errors.UnexpectedTracerError) -> LeakedTracerError:
    """A value that left the lift that made it, from what JAX says where it is used."""
    # A tracer that escaped says nothing by itself: all that is known of it is in JAX's text. What
    # another release words otherwise is left out.
    text = str(error)
    kind = re.search(r"with type (\S+) wrapped in a (\w+?)Tracer", text)
    traced = re.search(r"was (?:<(\w+)>|\S+) at .*?:\d+ traced for (\w+)", text)
    line = re.search(r"was created on line (.*?\))", text)
    name = "vmap" if kind and kind[2] == "Batch" else "a transformation"
    if traced is not None:
        name = traced[1] or traced[2]
        name = _TRACED_FOR.get(name, name)
    return LeakedTracerError(
        f"{_raised_in(error)}: a value that was made inside {name} is used after it has ended.\n"
        f"found: {kind[1] if kind else 'a tracer'}{f', made at {line[1]}' if line else ''}\n"
        f"expected: the lifted function returns what is needed outside of it (in scan: in the "
        f"carry, or in ys), or keeps it in a variable: mdl.sow('intermediates', 'name', value)"
    )


def unbound_axis(error: NameError) -> str | None:
    """Returns the axis name that JAX says no map gives, None if the error is another."""
    found = re.search(r"unbound axis name:? (\w+)", str(error))
    return None if found is None or isinstance(error, LiftaxError) else found[1]


def check_axis_name(error: NameError) -> None:
    """Raises AxisNameError where JAX knows no axis of a collective's name."""
    name = unbound_axis(error)
    if name is not None:
        raise AxisNameError(
            f"{_raised_in(error)}: a collective inside uses the axis name {name!r}, which "
            f"nothing around it gives.\n"
            f"found: no vmap, of liftax's or JAX's, with axis_name={name!r}\n"
            f"expected: axis_name={name!r} in the vmap around the model; or no axis_name= in "
            f"the layer that has it"
        ) from error


def _raised_in(error: BaseException) -> str:
    """Where a module's own code was when an error of JAX's came."""
    return place_of(error) or where(())


def not_found(scope: ScopeLike, col: str, name: str) -> LiftaxError:
    """A variable that is missing and may not be made."""
    node = scope.node(col)
    have = ", ".join(map(repr, list(node)[:8])) if node else "nothing"
    # The innermost lift that hides it is to blame; what was given is told by the outermost scope.
    hint, outer = "", scope
    for root, roles, outside in _lifts(scope):
        outer = outside
        if not hint and roles.of(col) is None:
            hint = f"; name {col!r} in the arguments of {root.lift}"
    text = f"{scope.where()}: variable {name!r} is missing in collection {col!r}"
    if scope.is_collection_empty(col):
        given = ", ".join(map(repr, outer.collections()[:8])) or "none"
        if not outer.is_collection_empty(col):
            # It was given, and has nothing for the modules inside the lift.
            return ScopeCollectionNotFound(
                f"{text}, which has nothing for {where(outer.path)}{hint}. Found in the "
                f"collection: {', '.join(_first_paths(outer, col)) or 'nothing'}"
            )
        return ScopeCollectionNotFound(
            f"{text}: the collection is empty; pass {{{col!r}: ...}} as made by init{hint}. "
            f"Collections given: {given}"
        )
    error = ScopeParamNotFoundError if col == "params" else ScopeVariableNotFoundError
    return error(f"{text}; found there: {have}{hint}")


def no_initializer(scope: ScopeLike, col: str, name: str, found: object) -> InitializerError:
    """What stands where a function that makes the initial value belongs."""
    calls = "(key, shape, dtype)" if col == "params" else "()"
    return InitializerError(
        f"{scope.where()}: the initializer of variable {name!r} in collection {col!r} cannot be "
        f"called.\n"
        f"found: {shown(found)}\n"
        f"expected: a function called as {calls}, e.g. "
        + ("nn.initializers.zeros" if col == "params" else "lambda: jnp.zeros(3)")
    )


def _first_paths(scope: ScopeLike, col: str) -> list[str]:
    """The first paths of a collection, those of the nearest module that has any."""
    node, path = scope.node(col), scope.path
    root: ScopeLike | None = scope
    while not node and root is not None:
        root = root.parent
        if root is not None:
            node, path = root.node(col), root.path
    return ["/".join((col, *path, str(name))) for name in list(node or ())[:4]]


def check_shape(
    scope: ScopeLike,
    name: str,
    value: object,
    init_fn: Function,
    init_args: tuple[object, ...],
    init_kwargs: Mapping[str, object],
) -> None:
    """Raises ScopeParamShapeError where a parameter is not what its initializer makes."""

    def abstract() -> object:
        return init_fn(jax.random.key(0), *init_args, **init_kwargs)

    made = jax.eval_shape(abstract)
    if isinstance(value, Mapping) and not isinstance(made, Mapping):
        raise ScopeParamShapeError(
            f"{scope.where()}: parameter {name!r} is a dict of {', '.join(map(repr, value))}, "
            f"its initializer makes {', '.join(map(describe, jax.tree.leaves(made)))}.\n"
            f"Check the module's fields against those that the variables were made for."
        )
    # By leaves and not by structure: a value may be in a box, or boxed by its initializer alone.
    expected = jax.tree.leaves(made)
    for have, want in zip(jax.tree.leaves(value), expected, strict=False):
        if jnp.shape(have) != jnp.shape(want):
            _check_cut(scope, name, jnp.shape(have), jnp.shape(want))
            if scope.call.flags.get("initializing"):
                # What init finds, it has made: the same module ran before, on another input.
                raise ScopeParamShapeError(
                    f"{scope.where()}: parameter {name!r} is used in two shapes.\n"
                    f"found: {jnp.shape(have)} in the first call of this module, "
                    f"{jnp.shape(want)} in this one\n"
                    f"expected: inputs of one width wherever one module is called, or a module "
                    f"of its own for each width"
                )
            raise ScopeParamShapeError(
                f"{scope.where()}: parameter {name!r} has shape {jnp.shape(have)}, its "
                f"initializer makes {jnp.shape(want)}.\n"
                f"Check the module's fields and the inputs against those that the variables "
                f"were made for."
            )


def _check_cut(scope: ScopeLike, name: str, have: tuple[int, ...], want: tuple[int, ...]) -> None:
    """Raises TiedModulesError where a lift of this call gave a parameter an axis of its own."""
    # In `apply` the shapes come from the user, and say nothing of how the variable was made.
    made_here = scope.call.flags.get("initializing", False)
    if not made_here or ("params", (*scope.path, name)) in scope.call.made_plain:
        return
    if any(have[:i] + have[i + 1 :] == want for i in range(len(have))):
        variable = "/".join(("params", *scope.path, name))
        raise TiedModulesError(
            f"{scope.where()}: variable {variable} was made inside a lift, with an axis of the "
            f"lift, and is used outside of it.\n"
            f"found: one module used both inside and outside of a lift: shape {have}\n"
            f"expected: shape {want}; share 'params' in the lift (variable_broadcast='params' in "
            f"scan, variable_axes={{'params': None}} in vmap), or take a module for each"
        )
