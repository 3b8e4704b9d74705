"""Lifts that change how collections and streams look from inside."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...errors import ApplyScopeInvalidVariablesTypeError, UnusedFilterError
from ...words import kind_of
from .. import boxes
from ..call import Call
from ..filters import Filter, in_filter, names_of
from ..linen_keys import Log, replay, rewind, settle
from ..roles import THROUGH, Roles, Row, axis_rows, through_roles
from ..scope import Scope
from .crossing import Group, Opening
from .one_trace import Marks, Place, alike, draws_again, flat, nested, trace_loop

MAPPED = "mapped"


def _unchanged(variables: Any) -> Any:
    return variables


def map_variables(
    fn: Callable[..., Any],
    mapped_collections: Filter,
    map_in_fn: Callable[..., Any] = _unchanged,
    map_out_fn: Callable[..., Any] = _unchanged,
    init: bool = False,
    mutable: bool = False,
    rngs: Filter = True,
    variables: Filter = True,
) -> Callable[..., Any]:
    """`liftax.map_variables` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.
      map_in_fn: as ``trans_in_fn`` of `liftax.map_variables`.
      map_out_fn: as ``trans_out_fn`` of `liftax.map_variables`.

    The other arguments are those of `liftax.map_variables`.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def layer(scope, x):
      ...     return x * scope.param('w', lambda key: 0.0)
      >>> negative = lift.map_variables(
      ...     layer, 'params', map_in_fn=lambda v: jax.tree.map(lambda w: -w, v))
      >>> apply(negative)({'params': {'w': 3.0}}, 2.0)
      -6.0
    """
    writes = init or mutable
    map_in = _checked(map_in_fn, "trans_in_fn")
    map_out = _checked(map_out_fn, "trans_out_fn")
    roles = Roles(
        "map_variables",
        [
            Row(mapped_collections, MAPPED, "mapped_collections", leaves=writes),
            Row(variables, THROUGH, "variables"),
        ],
        [(rngs, False)],
    )

    def mapped(scope: Any, *args: Any, **kwargs: Any) -> Any:
        opening = Opening(roles, scope, fn)
        _check_used(opening, mapped_collections)
        outside = opening.values(MAPPED)
        through = opening.values(THROUGH)
        keys = opening.keys(False)

        def run(inside: Group, **seen: Any) -> Any:
            body = opening.body(fn, (MAPPED, THROUGH), **seen)
            return body([through, inside], [keys], args, kwargs)

        if init and opening.can_write(MAPPED):
            return _initialised(opening, fn, run, outside, map_in, map_out)
        inside = tuple(map_in(opening, v) for v in outside)
        return _written(opening, run(inside), map_out)

    return mapped


def _written(opening: Opening, out: Any, map_out: Callable[..., Any]) -> Any:
    """Writes what a body wrote to the scopes outside; returns what the body returned."""
    y, (changed, through) = out
    opening.write_back(tuple(map_out(opening, v) if v else v for v in changed), through)
    return y


def _checked(fn: Callable[..., Any], argument: str) -> Callable[..., Any]:
    """Returns ``fn`` with a check of what it returns."""

    def checked(opening: Opening, variables: Mapping[str, Any]) -> Mapping[str, Any]:
        made = fn(variables)
        if not isinstance(made, Mapping) or not all(
            isinstance(node, Mapping) for node in made.values()
        ):
            raise ApplyScopeInvalidVariablesTypeError(
                f"{opening.place}: {argument} must return a mapping of collections.\n"
                f"found: {kind_of(made)}\n"
                f"expected: {{'params': ...}}, each collection a mapping, as what it is given"
            )
        return made

    return checked


def _check_used(opening: Opening, mapped: Filter) -> None:
    """Raises UnusedFilterError where the name of a mapped collection is mistyped."""
    here = {col for top in opening.tops for col in top.collections()}
    names = names_of(mapped)
    if names <= here:
        return
    here |= {"params"} if opening.initializing else set()
    for name in names - here:
        near = difflib.get_close_matches(name, here - names, n=1, cutoff=0.8)
        if near:
            raise UnusedFilterError(
                f"{opening.place}: mapped_collections names {name!r}, which matches nothing here; "
                f"did you mean {near[0]!r}?"
            )


def _initialised(
    opening: Opening,
    fn: Callable[..., Any],
    run: Callable[..., Any],
    outside: Group,
    map_in: Callable[..., Any],
    map_out: Callable[..., Any],
) -> Any:
    """Runs the body on the variables as they are, then on what they are after the mapping.

    The first run makes what is missing; all that it leaves in mapped variables goes out and
    in again before the second, and what the first one returns, or writes to others, is lost.

    The body is traced once for both: the values of mapped variables are marked where they
    are made or come in, and the second run is the same program with others in their place.
    """
    marks = Marks()
    logs: list[Any] = []
    remembered = getattr(fn, "side", lambda: None)()

    def see(inner: Sequence[Scope]) -> None:
        marks.listen(inner, {MAPPED: False})
        for top, scope in zip(opening.tops, inner, strict=True):
            _pass_on(opening, top.call, scope.call)

    def body(carry: None, x: None) -> Any:
        log = Log(lambda col: opening.roles.role(col) == MAPPED, opening.log)
        out = run(marks.came_in(outside, lambda top, col: True), log=log, see=see)
        rewind(log)
        entries = replay(log)
        settle(entries)
        logs[:] = log, entries
        marks.end()
        return None, {}, out, (flat(out[1][0]), None)

    loop = trace_loop(body, None, None, marks, opening.place)
    log, drawn = logs
    made = nested(loop.invariants[0], len(opening.tops))
    # Written first: a loop or a map outside marks what is made on the way, and what
    # follows must use it with that mark on.
    values = tuple(map_out(opening, v) if v else {} for v in made)
    opening.write_back(values, late=False, heard=True)
    mapped = tuple(map_in(opening, v) if v else {} for v in opening.values(MAPPED))
    births = _mapped_births(marks, mapped, loop.made)
    reused = births is not None and not draws_again(loop.outside)
    if not reused:
        # Of the two runs in the log the second is no copy of the first.
        rewind(drawn)
        drawn = [e._replace(draws=(*e.draws, *d.draws)) for e, d in zip(log, drawn, strict=False)]
        settle(drawn)
    if opening.log is not None:
        opening.log.extend(drawn)
    if reused:
        return _written(opening, loop.step(births, None, {}, None)[2], map_out)
    if remembered is not None:
        fn.restore(remembered)  # type: ignore[attr-defined]
    return _written(opening, run(mapped), map_out)


def _mapped_births(marks: Marks, mapped: Group, made: dict[Place, Any]) -> dict[Place, Any] | None:
    """Returns what stands for the births after the mapping, None where the trace has no use of it.

    So it is where a lift inside the body made them, and used them unmapped, where they would be
    made anew, and where the mapping gives them another structure, shape or dtype.
    """
    if any(birth.late for birth in marks.births.values()):
        return None
    found = flat(mapped)
    if not made.keys() <= found.keys():
        return None
    births = {place: found[place] for place in made}
    return births if alike(births, made) else None


def _pass_on(opening: Opening, outside: Call, root: Call) -> None:
    """Tells a loop or a map outside what is made in a body, before it is mapped."""
    marked: Any = root.on_birth

    def on_birth(col: str, path: tuple[str, ...], value: Any, late: bool) -> Any:
        if opening.roles.role(col) != MAPPED:
            return value
        # What is put there by no initializer, as by sow, is put there by the second run too.
        late = late or root.creating is None
        if outside.on_birth is not None and outside.wants_first:
            value = outside.hear(root, col, path, value, late)
        return marked(col, path, value, late)

    root.on_birth, root.wants_first = on_birth, True


def swap_collection(fn: Callable[..., Any], col_a: str, col_b: str) -> Callable[..., Any]:
    """Shows ``fn`` two collections under each other's names.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.
      col_a: one collection.
      col_b: the other.

    Example:
      >>> from liftax.core import apply, lift
      >>> def read(scope):
      ...     return scope.get_variable('params', 'w')
      >>> apply(lift.swap_collection(read, 'params', 'ema'))({'ema': {'w': 5}})
      5
    """
    names = {col_a: col_b, col_b: col_a}

    def swap(group: Mapping[str, Any]) -> dict[str, Any]:
        return {names.get(col, col): node for col, node in group.items()}

    return map_variables(fn, [col_a, col_b], swap, swap, mutable=True)


def fold_rngs(
    fn: Callable[..., Any], variables: Filter = True, rngs: Filter = True
) -> Callable[..., Any]:
    """`liftax.fold_rngs` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.

    The other arguments are those of `liftax.fold_rngs`.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def noise(scope):
      ...     return jax.random.normal(scope.make_rng('noise'))
      >>> run = apply(lift.fold_rngs(noise))
      >>> run({}, rngs={'noise': jax.random.key(0)}).shape
      ()
    """
    roles = through_roles("fold_rngs", variables, rngs)

    def folded(scope: Any, *args: Any, **kwargs: Any) -> Any:
        opening = Opening(roles, scope, fn)
        run = opening.body(fn, folded=True)
        y, written = run([opening.values(THROUGH)], [opening.base_keys()], args, kwargs)
        opening.write_back(*written)
        return y

    return folded


def add_metadata_axis(
    fn: Callable[..., Any],
    variable_axes: Mapping[Filter, Any] = {},
    metadata_params: Mapping[Any, Any] = {},
) -> Callable[..., Any]:
    """`liftax.add_metadata_axis` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.

    The other arguments are those of `liftax.add_metadata_axis`.
    """
    rows = axis_rows(variable_axes, "add_metadata_axis", shared=True)

    def axis_of(col: str) -> int | None:
        return next((r.axis for r in rows if in_filter(r.filter, col)), None)

    def changed(change: Callable[..., Any], group: Mapping[str, Any]) -> dict[str, Any]:
        found = {}
        for col, node in group.items():
            axis = axis_of(col)
            found[col] = node if axis is None else change(node, axis, metadata_params)
        return found

    return map_variables(
        fn,
        True,
        lambda group: changed(boxes.remove_axis, group),
        lambda group: changed(boxes.add_axis, group),
        mutable=True,
    )
