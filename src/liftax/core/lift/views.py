"""Lifts that change how collections and streams look from inside."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ... import jax_private
from ...errors import ApplyScopeInvalidVariablesTypeError, UnusedFilterError
from ...words import did_you_mean, kind_of
from .. import boxes
from ..call import Call
from ..filters import Filter, in_filter, names_of
from ..linen_keys import Drawn, Log, replay, rewind, settle
from ..roles import THROUGH, Roles, Row, VariableAxes, axis_rows
from ..scope import Scope
from ..trees import alike
from ..types import Collections, Fn, Function, Group, Metadata, Path, Tree
from .births import Kind, Marks
from .crossing import Opening
from .forms import draws_again
from .one_trace import Loop
from .options import Options, Through, lift_of
from .places import Variables, flat, nested

__all__ = ["add_metadata_axis", "fold_rngs", "map_variables", "swap_collection"]

MAPPED = "mapped"

Seen = Callable[[Collections], Collections]
"""A user's function from the variables on one side of a map to those on the other."""


def unchanged(variables: Collections) -> Collections:
    """Shows variables as they are."""
    return variables


@dataclasses.dataclass(frozen=True, eq=False)
class MapVariables(Options):
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

    lift = "map_variables"

    mapped_collections: Filter
    map_in_fn: Seen = unchanged
    map_out_fn: Seen = unchanged
    init: bool = False
    mutable: bool = False
    rngs: Filter = True
    variables: Filter = True

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        writes = self.init or self.mutable
        rows = [
            Row(self.mapped_collections, MAPPED, "mapped_collections", leaves=writes),
            Row(self.variables, THROUGH, "variables"),
        ]
        return Roles("map_variables", rows, [(self.rngs, False)])

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a function that sees its variables through another."""
        opening = Opening(self.roles, scopes, fn)
        _check_used(opening, self.mapped_collections)
        if self.init and opening.can_write(MAPPED):
            return _Initialised(self, fn, opening, args, kwargs).finish()
        # Where nothing is made the body runs once, on the variables as they are mapped.
        inside = _seen(opening, opening.values(MAPPED), self.map_in_fn, "trans_in_fn")
        body = opening.body(fn, (MAPPED, THROUGH))
        keys, through = opening.keys(False), opening.values(THROUGH)
        return _written(self, opening, body([through, inside], [keys], args, kwargs))


map_variables = lift_of("map_variables", MapVariables)


def _written(options: MapVariables, opening: Opening, out: tuple[Any, Sequence[Group]]) -> Any:
    """Writes what a body wrote to the scopes outside; returns what the body returned."""
    y, (changed, through) = out
    opening.write_back(_seen(opening, changed, options.map_out_fn, "trans_out_fn", False), through)
    return y


def _seen(opening: Opening, group: Group, fn: Seen, argument: str, empty: bool = True) -> Group:
    """Maps the variables of each scope, with a check of what the user's function returns.

    Args:
      empty: whether it is asked of a scope that has none, too.
    """
    found = []
    for variables in group:
        made = fn(variables) if variables or empty else variables
        if not isinstance(made, Mapping) or not all(isinstance(v, Mapping) for v in made.values()):
            raise ApplyScopeInvalidVariablesTypeError(
                f"{opening.place}: {argument} must return a mapping of collections.\n"
                f"found: {kind_of(made)}\n"
                f"expected: {{'params': ...}}, each collection a mapping, as what it is given"
            )
        found.append(made)
    return tuple(found)


def _check_used(opening: Opening, mapped: Filter) -> None:
    """Raises UnusedFilterError where the name of a mapped collection is mistyped."""
    here = {col for top in opening.tops for col in top.collections()}
    names = names_of(mapped)
    if names <= here:
        return
    here |= {"params"} if opening.initializing else set()
    for name in names - here:
        hint = did_you_mean(name, here - names, like=0.8)
        if hint:
            raise UnusedFilterError(
                f"{opening.place}: mapped_collections names {name!r}, which matches nothing "
                f"here{hint}"
            )


@dataclasses.dataclass
class _Initialised:
    """A call that makes variables: the body runs on them as they are, then as they are mapped.

    The first run makes what is missing; all that it leaves in mapped variables goes out and
    in again before the second, and what the first one returns, or writes to others, is lost.

    The body is traced once for both: the values of mapped variables are marked where they
    are made or come in, and the second run is the same program with others in their place.
    Without jit it is run as Python, twice.
    """

    options: MapVariables
    fn: Function
    opening: Opening
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def __post_init__(self) -> None:
        self.outside = self.opening.values(MAPPED)
        self.through, self.keys = self.opening.values(THROUGH), self.opening.keys(False)
        self.marks = Marks()
        # Of the trace: its draws, and the same as Linen's two runs would have made them; what else
        # the body wrote, in its order, which JAX forgets.
        self.log: Log
        self.drawn: list[Drawn]
        self.others: list[list[str]]

    def run(self, inside: Group, **seen: Any) -> tuple[Any, list[Group]]:
        """Runs the body on the mapped variables as they are ``inside``."""
        body = self.opening.body(self.fn, (MAPPED, THROUGH), **seen)
        return body([self.through, inside], [self.keys], self.args, self.kwargs)

    def see(self, inner: Sequence[Scope]) -> None:
        """Marks what the body makes, and tells a loop or a map outside of it."""
        if not jax_private.jit_is_disabled():
            self.marks.listen(inner, {MAPPED: Kind.SHARED}, self.opening.tops)
        for top, scope in zip(self.opening.tops, inner, strict=True):
            _pass_on(self.opening, top.call, scope.call)

    def in_parts(self, carry: None, x: None) -> tuple[object, ...]:
        """The body as `Loop` takes it: a loop of one iteration, with nothing to carry."""
        opening, marks = self.opening, self.marks
        self.log = log = Log(lambda col: opening.roles.role(col) == MAPPED, opening.log)
        out = self.run(marks.came_in(self.outside, lambda top, col: True), log=log, see=self.see)
        rewind(log)
        self.drawn = replay(log)
        settle(self.drawn)
        self.others = [list(collections) for collections in out[1][1]]
        return None, {}, out, (flat(out[1][0]), None)

    def finish(self) -> Any:
        """Runs the body as Linen's two runs; returns what the second one returns."""
        opening, options = self.opening, self.options
        remembered = getattr(self.fn, "side", lambda: None)()
        if jax_private.jit_is_disabled():
            _, (made, _) = self.run(self.outside, see=self.see)
            return self.anew(self.mapped(made), remembered)

        loop = Loop(self.in_parts, None, None, self.marks, opening)
        mapped = self.mapped(nested(loop.invariants[0], len(opening.tops)))
        births = _mapped_births(self.marks, mapped, loop.made)
        if draws_again(loop.outside):
            births = None
        drawn = self.drawn
        if births is None:
            # Of the two runs in the log the second is no copy of the first.
            rewind(drawn)
            both = zip(self.log, drawn, strict=False)
            drawn = [e._replace(draws=(*e.draws, *d.draws)) for e, d in both]
            settle(drawn)
        if opening.log is not None:
            opening.log.extend(drawn)
        if births is not None:
            y, (changed, through) = loop.step(births, None, {}, None)[2]
            in_order = zip(through, self.others, strict=True)
            ordered = tuple([{col: group[col] for col in names} for group, names in in_order])
            return _written(options, opening, (y, [changed, ordered]))
        return self.anew(mapped, remembered)

    def mapped(self, made: Group) -> Group:
        """Writes what the first run left; returns it as the second one sees it."""
        opening, options = self.opening, self.options
        # Written first: a loop or a map outside marks what is made on the way, and what
        # follows must use it with that mark on.
        stored = _seen(opening, made, options.map_out_fn, "trans_out_fn", False)
        new = _new_keys(opening, stored)
        opening.write_back(stored, late=False, heard=True)
        inside = opening.values(MAPPED)
        mapped = _seen(opening, inside, options.map_in_fn, "trans_in_fn", False)
        for node, way in new:  # Linen writes them when the body has run again
            for key in way:
                node[key] = node.pop(key)
                node = node[key]
        return mapped

    def anew(self, mapped: Group, remembered: object) -> Any:
        """Runs the body again, from what its modules remembered before the first run."""
        if remembered is not None:
            self.fn.restore(remembered)  # type: ignore[attr-defined]
        return _written(self.options, self.opening, self.run(mapped))


def _new_keys(opening: Opening, values: Group) -> list[tuple[dict[str, Any], list[str]]]:
    """Returns the keys that writing ``values`` adds: dicts that are there, and the ways below."""
    found = []
    tops = zip(opening.tops, values, strict=True)
    for top, col, names in ((t, c, n) for t, group in tops for c, n in group.items()):
        if not names or not top.call.is_mutable(col):
            continue
        way: list[str] = []
        node: Any = top.node(col)
        while node is None and top.parent is not None:
            way = [top.name or "", *way]
            top = top.parent
            node = top.node(col)
        if node is None:
            node, way = top.nodes, [col, *way]
        found += [(node, [*way, name]) for name in names if way or name not in node]
    return found


def _mapped_births(marks: Marks, mapped: Group, made: Variables) -> Variables | None:
    """Returns what stands for the births after the mapping, None where the trace has no use of it.

    So it is where a lift inside the body made them, and used them unmapped, where they would be
    made anew, and where the mapping gives them another structure, shape or dtype.
    """
    # A lift inside has used its variables where they were made, before any mapping.
    if any(birth.late for birth in marks.births.values()):
        return None
    found = flat(mapped)
    if not made.keys() <= found.keys():
        return None
    births = {place: found[place] for place in made}
    return births if alike(births, made) else None


def _pass_on(opening: Opening, outside: Call, root: Call) -> None:
    """Tells a loop or a map outside what is made in a body, before it is mapped."""
    marked = root.on_birth  # None without jit

    def on_birth(col: str, path: Path, value: object, late: bool) -> object:
        if opening.roles.role(col) != MAPPED:
            return value
        # What is put there by no initializer, as by sow, is put there by the second run too.
        late = late or root.creating is None
        if outside.on_birth is not None and outside.wants_first:
            value = outside.hear(root, col, path, value, late)
        return value if marked is None else marked(col, path, value, late)

    root.on_birth, root.wants_first = on_birth, True
    if marked is None:  # two runs have nothing to be told: only what is outside may listen
        hears = outside.hears if outside.wants_first else None
        root.hears = lambda col: (
            hears is not None and opening.roles.role(col) == MAPPED and hears(col)
        )


def swap_collection(fn: Fn, col_a: str, col_b: str) -> Fn:
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

    def swap(group: Collections) -> Collections:
        return {names.get(col, col): node for col, node in group.items()}

    # A swap undoes itself.
    return map_variables(fn, [col_a, col_b], swap, swap, mutable=True)


@dataclasses.dataclass(frozen=True, eq=False)
class FoldRngs(Through):
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

    lift = "fold_rngs"

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a function on keys of which each is derived from one key of its stream."""
        opening = Opening(self.roles, scopes, fn)
        body = opening.body(fn, folded=True)
        y, written = body([opening.values(THROUGH)], [opening.base_keys()], args, kwargs)
        opening.write_back(*written)
        return y


fold_rngs = lift_of("fold_rngs", FoldRngs)


@dataclasses.dataclass(frozen=True, eq=False)
class AddMetadataAxis:
    """`liftax.add_metadata_axis` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.

    The other arguments are those of `liftax.add_metadata_axis`.
    """

    variable_axes: VariableAxes = dataclasses.field(default_factory=dict)
    metadata_params: Metadata = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """The axis of each collection."""
        return axis_rows(self.variable_axes, "add_metadata_axis", shared=True)

    def changed(self, change: boxes.Change, variables: Collections) -> Collections:
        """Changes the boxes of the collections that have an axis."""
        found = dict(variables)
        for col, node in variables.items():
            axis = next((row.axis for row in self.rows if in_filter(row.filter, col)), None)
            if axis is not None:
                found[col] = change(node, axis, self.metadata_params)
        return found

    def __call__(self, fn: Fn) -> Fn:
        # Inside, the boxes do not know of the axis; what comes out does.
        unnamed = functools.partial(self.changed, boxes.remove_axis)
        named = functools.partial(self.changed, boxes.add_axis)
        return MapVariables(True, unnamed, named, mutable=True)(fn)


add_metadata_axis = lift_of("add_metadata_axis", AddMetadataAxis)
