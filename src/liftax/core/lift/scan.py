"""The lifted scan over functions of scopes.

The pure loop below the scopes is `jax.lax.scan`. A body that makes nothing is traced by it, and
that is all there is to see. One that makes what does not belong to an iteration (shared variables,
first values of carried ones, outputs that are declared the same in each) is traced here, once, and
cut in three; `one_trace` says how.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from ... import jax_private
from ...errors import AxesTreeError
from ...pytrees import Rest, split_by
from .. import boxes
from ..filters import Filter
from ..linen_keys import Drawn, Tally
from ..roles import BROADCAST, CARRY, Axis, Role, Roles, VariableAxes, broadcast, loop_roles
from ..scope import Scope
from ..streams import Keyed
from ..types import Fn, Function, Group, Metadata, Tree
from . import checks, in_place
from .automatic import automatic
from .axes import Sizes, axes_of, from_front, restack, to_front, unnamed, unstack
from .births import Kind, Marks
from .both_traces import run_both
from .crossing import Opening
from .one_trace import Loop
from .options import Options, lift_of
from .places import Place, Variables, flat, name_of, nested, rewritten
from .split import check_whole

__all__ = ["scan"]

Transform = Callable[[Sequence[Group], Sequence[Keyed]], tuple[Sequence[Group], Sequence[Keyed]]]
"""A user's function over what goes into an iteration, for sharding annotations."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scan(Options):
    """`liftax.scan` over a function of a scope.

    Args:
      fn: the body, ``(scope, carry, *xs, **kwargs) -> (carry, ys)``; ``scope`` may
        be a pytree of scopes.

    The other arguments are those of `liftax.scan`.

    Returns:
      ``(scope, carry, *xs, **kwargs) -> (carry, ys)``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from liftax.core import init, lift
      >>> def layer(scope, x):
      ...     w = scope.param('w', jax.random.normal, (3, 3))
      ...     return x @ w, x.sum()
      >>> deep = lift.scan(
      ...     layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=4)
      >>> (y, sums), variables = init(deep)(jax.random.key(0), jnp.ones(3))
      >>> y.shape, sums.shape, variables['params']['w'].shape
      ((3,), (4,), (4, 3, 3))
    """

    lift = "scan"

    variable_axes: VariableAxes = dataclasses.field(default_factory=dict)
    variable_broadcast: Filter = False
    variable_carry: Filter = False
    split_rngs: Mapping[Filter, bool] = dataclasses.field(default_factory=dict)
    in_axes: Tree = 0
    out_axes: Tree = 0
    length: int | None = None
    reverse: bool = False
    unroll: int | bool = 1
    _split_transpose: bool = False
    data_transform: Transform | None = None
    metadata_params: Metadata = dataclasses.field(default_factory=dict)
    check_constancy_invariants: bool = True

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        axes, shared, carried = self.variable_axes, self.variable_broadcast, self.variable_carry
        return loop_roles("scan", axes, shared, carried, self.split_rngs)

    @functools.cached_property
    def of_jax(self) -> dict[str, Any]:
        """The options of `jax.lax.scan`, without the length."""
        names = ("reverse", "unroll", "_split_transpose")
        return {name: getattr(self, name) for name in names}

    def __call__(self, fn: Fn) -> Fn:
        return Plan(self, self.roles).over(fn)  # type: ignore[return-value]


class Plan(NamedTuple):
    """A scan as it is run: what the user said, read, and what a stack says besides.

    Attributes:
      options: what the user said.
      roles: its table, or the stack's.
      loop: what runs the pure body, called like `jax.lax.scan`; it may call the
        body more than once.
      shared: scopes whose variables all iterations share.
      microbatches: into how many parts ``loop`` cuts what goes through it. Each has keys of its
        own, along a second axis, and ``loop`` says itself what is written where it stands.
    """

    options: Scan
    roles: Roles
    loop: Callable[..., Any] = jax.lax.scan
    shared: Sequence[Scope] = ()
    microbatches: int | None = None

    def over(self, fn: Function) -> Callable[..., tuple[Any, Any]]:
        """Returns the lifted function."""
        return functools.partial(_scanned, self, fn)


scan = lift_of("scan", Scan)

_MISSING = object()  # None is a carry: the user may have nothing to carry

Leaves = list[Any]
State = tuple[Leaves, Variables]
"""What an iteration hands to the next: the leaves of the carry, the carried variables."""
Slice = tuple[Leaves, list[Group], Keyed]
"""What belongs to one iteration, or stacked to all: arguments, variables by axis, keys."""


def _scanned(
    plan: Plan, fn: Function, scopes: Tree, /, carry: Tree = _MISSING, *args: Tree, **kwargs: object
) -> tuple[Any, Any]:
    """Runs a scan: takes the scopes apart, runs the loop, writes back what came out."""
    opening = Opening(plan.roles, scopes, fn, plan.shared)
    if carry is _MISSING:
        raise checks.no_carry(opening.place)
    checks.check_arguments(opening)
    options = plan.options
    in_axes = axes_of(options.in_axes, args, opening, "in_axes", skip=2)
    if None in in_axes:
        raise AxesTreeError(
            f"{opening.place}: in_axes has None for an array; to hand it whole to each "
            f"iteration use nn.broadcast in its place"
        )

    # Who has the axis: variables and arguments must agree on its length. A box may change its
    # value as its axis is named, so the names go first.
    axes = plan.roles.axes
    stacked = opening.sorted_values(axes)
    sizes = Sizes(opening, options.length, "length")
    sizes.see_arguments(args, in_axes, options.in_axes, skip=2)
    if boxes.holds_boxes(stacked):
        stacked = {
            axis: unnamed(opening, stacked[axis], axis, options.metadata_params) for axis in axes
        }
    for axis in axes:
        sizes.see_variables(stacked[axis], axis)
    size = sizes.known("nothing is scanned over; pass length=")

    # `jax.lax.scan` goes along the first axis of all its inputs.
    moving, whole = split_by(args, [isinstance(axis, int) for axis in in_axes])
    along = [axis for axis in in_axes if isinstance(axis, int)]
    xs = (
        [to_front(leaf, axis) for leaf, axis in zip(moving, along, strict=True)],
        [unstack(stacked[axis], axis) for axis in axes],
        opening.split_keys(size, plan.microbatches),
    )
    leaves, carry_def = jax.tree.flatten(carry)
    try:
        return _Call(plan, fn, scopes, opening, whole, kwargs, carry_def, size).finish(leaves, xs)
    except Exception as error:
        # JAX says of an axis that is split no more than that it is.
        groups = [] if plan.microbatches else [(axis, stacked[axis]) for axis in axes]
        check_whole(opening, args, in_axes, options.in_axes, groups, error)
        raise


class _Result(NamedTuple):
    """What comes out of the loop; carry and ys as lists of leaves."""

    carry: Leaves
    carried: Variables
    ys: list[jax.Array]
    stacked: list[Group]
    constant: Tree = None


class _Retrace(Exception):
    """A carried variable appeared in a body that was traced straight into the loop."""


@dataclasses.dataclass
class _Call:
    """One call of a lifted scan, past the checks of its arguments."""

    plan: Plan
    fn: Function
    scopes: Tree
    opening: Opening
    args: Rest  # without the leaves along an axis
    kwargs: dict[str, object]
    carry_def: PyTreeDef
    size: int
    first: list[Drawn] | None = None  # the draws of the first iteration, if it ran by itself
    traced: bool = False  # whether a first trace has made what the iterations share
    peels: bool = False  # whether the first iteration ran by itself, and others go on from there

    def __post_init__(self) -> None:
        self.options = self.plan.options
        variables = self.opening.sorted_values((BROADCAST, CARRY))
        self.shared = variables[BROADCAST]
        self.carried = flat(variables[CARRY])
        self.pipelined = self.plan.microbatches is not None
        self.shared_keys = self.opening.no_keys if self.pipelined else self.opening.keys(False)
        self.tally = Tally(
            self.plan.roles,
            self.opening.log,
            keyless=self.opening.keyless,
            twice=self.options.check_constancy_invariants,
            first=self.first,
        )
        # Whether a loop outside hears of what each iteration makes: then that comes in to a loop
        # of its own. Without jit that is what Python does.
        self.splits = self.opening.heard and not self.peels and not jax_private.jit_is_disabled()
        # Of the last trace of the body: what it marked, and the structure of its outputs.
        self.marks: Marks | None = None
        self.y_def: PyTreeDef
        self.y_axes: list[Axis] = []
        self.left: set[Place] = set()  # which of the variables along an axis are as they were made

    def finish(self, carry: Leaves, xs: Slice) -> tuple[Any, Any]:
        """Runs the loop, writes the variables back and puts the outputs together."""
        opening, result = self.opening, (self.run_piped if self.pipelined else self.run)(carry, xs)
        if opening.log is not None:
            opening.log.extend(self.tally.drawn)
        if not opening.read_only:
            both = zip(result.stacked, self.plan.roles.axes, strict=True)
            params = self.options.metadata_params
            groups = [restack(opening, group, axis, params) for group, axis in both]
            carried = nested(result.carried, len(opening.tops))
            opening.write_back(opening.merged([carried, *groups]))
        moving, constant = iter(result.ys), iter(jax.tree.leaves(result.constant))
        ys = [
            from_front(next(moving), axis) if isinstance(axis, int) else next(constant)
            for axis in self.y_axes
        ]
        end = jax.tree.unflatten(self.carry_def, result.carry)
        return end, jax.tree.unflatten(self.y_def, ys)

    def run(self, carry: Leaves, xs: Slice) -> _Result:
        """Runs the loop: `jax.lax.scan` traces the body itself where nothing is made in it."""
        if not (self.pipelined or self.traced) and self.may_make(carry):
            births = self.opening.initializing and self.opening.can_write(CARRY)
            alone = self.tally.goes_on and self.tally.twice and not births
            return self.run_one_by_one(carry, xs) if alone else self.run_in_parts(carry, xs)

        def step(state: State, x: Slice) -> tuple[State, tuple[Leaves, list[Group]]]:
            inner, after, ys = self.body(state, x)
            carried = state[1]
            stacked: list[Group] = []
            if self.pipelined:
                checks.check_apart(self.opening, {**flat(self.shared), **carried}, inner)
            if not self.opening.read_only:
                written, carried, stacked = self.up(inner, carried)
                # Linen allows a first write in `apply` as well. Nobody can know of it before the
                # body has run, so the loop begins again, in parts.
                if written.keys() - carried.keys():
                    raise _Retrace
            self.opening.close(inner)
            return (after, carried), (ys, stacked)

        try:
            if self.tally.goes_on and self.tally.twice and not self.traced:
                # Of what Linen's first trace draws only the counts are left.
                jax.eval_shape(step, (carry, self.carried), jax.tree.map(jax_private.element, xs))
            (carry, carried), (ys, stacked) = self.loop(step, (carry, self.carried), xs)
        except _Retrace:
            self.tally.take_back()
            return self.run_in_parts(carry, xs)
        return _Result(carry, carried, ys, stacked)

    def run_piped(self, carry: Leaves, xs: Slice) -> _Result:
        """Runs the loop of a pipeline, where JAX splits along all axes of the mesh by itself."""

        def run(given: _Result, moving: Leaves, keys: Keyed, *whole: Any) -> _Result:
            self.carried = given.carried
            self.shared, self.args, self.kwargs = whole
            return self.run(given.carry, (moving, given.stacked, keys))

        given = _Result(carry, self.carried, [], xs[1])
        whole = self.shared, self.args, self.kwargs
        return automatic(run, given, xs[0], xs[2], *whole, place=self.opening.place)

    def may_make(self, carry: Leaves) -> bool:
        """Tells whether the body may make what the loop needs before it begins."""
        opening, out_axes = self.opening, self.options.out_axes
        return (
            opening.can_write(BROADCAST)
            or (opening.initializing and opening.can_write(CARRY))
            or (out_axes != 0 and broadcast in jax.tree.leaves(out_axes))
            or self.splits
            # lax.scan traces a weakly typed carry a second time to make it strong.
            or any(getattr(jax.typeof(leaf), "weak_type", False) for leaf in carry)
        )

    def loop(self, step: Callable[..., object], state: Tree, xs: Tree) -> Any:
        """Hands a pure body to what runs it."""
        # lax.scan takes no symbol for a length, but scans over arrays of symbolic sizes.
        length = None if jax_private.is_symbolic(self.size) else self.size
        loop = functools.partial(self.plan.loop, length=length, **self.options.of_jax)
        if self.pipelined:
            return loop(step, state, xs, place=self.opening.place)
        # Where nothing is compiled the body may look at values, and arrays are copied anyway.
        if length and self.opening.writes_in_place() and jax_private.is_compiled():
            return in_place.run(loop, step, state, xs, self.opening)
        return loop(step, state, xs)

    # --- the body -------------------------------------------------------------

    def body(self, state: State, x: Slice) -> tuple[list[Scope], Leaves, Leaves]:
        """Runs the user's body once; returns the inner scopes, the carry's and the ys' leaves.

        The scopes are to be closed when what was written is taken out of them.
        """
        opening, options = self.opening, self.options
        (carry, carried), (moving, stacked, split_keys) = state, x

        # Down: what belongs to this iteration, as scopes. Shared variables that the body may
        # write are marked: what Linen's first trace leaves in them, its second one reads.
        shared = self.shared
        if self.marks is not None:
            shared = self.marks.came_in(shared, lambda i, col: opening.tops[i].call.is_mutable(col))
        before = nested(carried, len(opening.tops)) if carried else opening.empty()
        variables: Sequence[Group] = (shared, before, *stacked)
        keys: Sequence[Keyed] = (self.shared_keys, split_keys)
        if options.data_transform is not None:
            variables, keys = options.data_transform(variables, keys)
        log = self.tally.begin()
        inner = opening.enter(variables, keys, log=log)
        if self.marks is not None:
            kinds: dict[Role, Kind] = {BROADCAST: Kind.SHARED, CARRY: Kind.CARRIED}
            if self.splits:
                kinds |= dict.fromkeys(self.plan.roles.axes, Kind.EACH)
            self.marks.listen(inner, kinds, opening.tops)
            for scope in inner:
                scope.call.wants_first = True

        out = opening.call(
            self.fn,
            inner,
            (jax.tree.unflatten(self.carry_def, carry), *self.args.filled(moving)),
            self.kwargs,
            size=self.size,
            axis_name=options.metadata_params.get(boxes.PARTITION_NAME),
            carry=bool(carry) or bool(carried),
        )

        # Up: what it returned, checked while the user's own values are there to be named.
        if not isinstance(out, (tuple, list)) or len(out) != 2:
            raise checks.not_a_pair(opening.place, out)
        self.tally.end(log)
        after = checks.checked_carry(opening, carry, self.carry_def, out[0])
        ys, self.y_def = jax.tree.flatten(out[1])
        self.y_axes = axes_of(options.out_axes, out[1], opening, "out_axes")
        checks.check_out_axes(opening, out[1], self.y_axes, shared=broadcast)
        return inner, after, ys

    def up(self, inner: list[Scope], before: Variables) -> tuple[Variables, Variables, list[Group]]:
        """Takes what the body left out of its scopes.

        Returns:
          what it wrote of carried collections, the carried variables after the iteration, and what
          it wrote along each axis.
        """
        written = flat(self.opening.written(inner, CARRY))
        kept = {place: written.get(place, value) for place, value in before.items()}
        for place, value in before.items():
            if kept[place] is not value:
                checks.check_variable(self.opening, place[1:], value, kept[place])
        groups = [self.opening.written(inner, axis) for axis in self.plan.roles.axes]
        checks.check_variable_axes(self.opening, groups, self.plan.roles.axes)
        return written, kept, groups

    # --- a loop that makes variables ------------------------------------------

    def run_in_parts(self, carry: Leaves, xs: Slice) -> _Result:
        """Traces the body to a jaxpr, runs what stands before the loop, then the loop."""
        self.tally.goes_on = False  # one trace is what every iteration runs
        before = (carry, self.carried)
        loop = self.cut(before, xs)
        strong = _strengthened(before, loop.carry_avals)
        if strong is not None:
            # The body makes a wider carry of a weakly typed one: begin with the wider.
            before = strong
            self.tally.take_back()
            loop = self.cut(before, xs)

        # Linen's order: the first iteration's slice is what carried variables begin with.
        carried = loop.marks.of(Kind.CARRIED)
        unborn = [name_of(place) for place in carried]
        if self.size == 0 and unborn:
            raise checks.nothing_first(self.opening.place, unborn)
        at = -1 if self.options.reverse else 0
        x = jax.tree.map(lambda x: x[at], xs) if unborn else None
        # Written before anything uses them: see `Loop.write`.
        made = loop.write_shared(both=True)
        born = loop.first(before, x) if unborn else {}
        if any(birth.late for birth in carried.values()):
            return self.peeled(loop, made, before, born, xs, x)
        born = loop.write({place: born[place] for place in carried})
        if loop.marks.of(Kind.EACH):
            params = self.options.metadata_params
            out = run_both(loop, self.loop, made, (before, born), xs, self.left, params)
            return self.result(loop, *out)

        def step(state: tuple[State, Variables], x: Slice) -> tuple[object, object]:
            after, births, ys = loop.step(made, state[0], state[1], x)
            return (after, births), ys

        (after, born), ys = self.loop(step, (before, born), xs)
        return self.result(loop, after, born, ys)

    def run_one_by_one(self, carry: Leaves, xs: Slice) -> _Result:
        """Traces the body for what the iterations share, then runs it once for each of them.

        Without jit that is what Linen does, so that each iteration draws keys of its own.
        """
        loop = self.cut((carry, self.carried), xs)
        loop.write_shared()
        again = self.anew(traced=True)
        found = again.run(carry, xs)
        both = zip(found.ys, again.y_axes, strict=True)
        ys = [y for y, axis in both if axis is not broadcast]
        return found._replace(ys=ys, constant=loop.invariants[1])

    def cut(self, state: State, xs: Slice) -> Loop:
        """Traces the body once, and cuts it in what stands before the loop and the rest."""
        self.marks, shape = Marks(), jax.tree.map(jax_private.element, xs)
        return Loop(self.in_parts, state, shape, self.marks, self.opening, partial=True)

    def anew(self, **changes: Any) -> _Call:
        """Returns the same call over variables that have been made by now."""
        opening = Opening(self.plan.roles, self.scopes, self.fn, self.plan.shared)
        return dataclasses.replace(self, opening=opening, **changes)

    def in_parts(self, state: State, x: Slice) -> tuple[object, ...]:
        """The body as `Loop` takes it."""
        assert self.marks is not None
        inner, after, ys = self.body(state, x)
        births, marked = self.marks.births, self.marks.values

        # Carried: those that came in, and those that were made.
        written, kept, stacked = self.up(inner, state[1])
        born = {}
        for place, birth in births.items():
            if birth.kind is Kind.CARRIED:
                value = written.get(place, birth.first)
                if value is not birth.first:
                    checks.check_variable(self.opening, place[1:], birth.first, value)
                born[place] = jax.tree.map(jnp.asarray, value)

        # Shared: what the body left in them, where that is neither what came in nor a mark.
        before = {**flat(self.shared), **marked}
        changed = rewritten(self.opening.written(inner, BROADCAST), before)

        # The outputs keep their structure where they are the same in each iteration, so that
        # an error can name one.
        moving, constant = split_by(ys, [axis is not broadcast for axis in self.y_axes])
        invariants = changed, jax.tree.unflatten(self.y_def, constant.leaves)
        along = [item for group in stacked for item in flat(group).items()]
        self.left = {place for place, value in along if place in marked and marked[place] is value}
        self.opening.close(inner)
        return (after, kept), born, (moving, stacked), invariants

    def result(
        self, loop: Loop, state: State, born: Variables, out: tuple[list[jax.Array], list[Group]]
    ) -> _Result:
        """Returns what came out of the loop."""
        _, constant = loop.invariants
        (carry, carried), (ys, stacked) = state, out
        return _Result(carry, {**carried, **born}, ys, stacked, constant)

    def peeled(
        self, loop: Loop, made: Variables, before: State, born: Variables, xs: Slice, x: Tree
    ) -> _Result:
        """Runs the first iteration by itself, then the loop over the rest.

        For carried variables that a lift inside the body made: their first value is
        sealed in that lift, and what is known is what the iteration left of them.
        """
        after, births, out = loop.step(made, before, born, x)
        one = self.result(loop, after, births, jax.tree.map(lambda y: jnp.expand_dims(y, 0), out))
        if self.size == 1:
            return one

        # The rest is a loop over variables that exist, a call of its own.
        self.opening.write_back(nested(one.carried, len(self.opening.tops)))
        first, reverse = self.tally.drawn, self.options.reverse
        self.tally.take_back()
        again = self.anew(size=self.size - 1, first=first, peels=True)
        rest = jax.tree.map(lambda leaf: leaf[:-1] if reverse else leaf[1:], xs)
        more = again.run(one.carry, rest)
        self.tally.drawn = first

        def join(first: jax.Array, others: jax.Array) -> jax.Array:
            return jnp.concatenate((others, first) if reverse else (first, others))

        ys, stacked = jax.tree.map(join, (one.ys, one.stacked), (more.ys, more.stacked))
        return more._replace(ys=ys, stacked=stacked)


def _strengthened(before: State, after: Sequence[jax.core.ShapedArray]) -> State | None:
    """Returns the carry in the dtypes that the body makes of it, None if they agree."""
    leaves, treedef = jax.tree.flatten(before)
    kept = [
        old if jax.typeof(old).dtype == new.dtype else jnp.asarray(old, new.dtype)
        for old, new in zip(leaves, after, strict=True)
    ]
    same = all(a is b for a, b in zip(kept, leaves, strict=True))
    return None if same else jax.tree.unflatten(treedef, kept)
