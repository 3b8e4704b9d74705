"""One trace for a body that makes what does not belong to one iteration.

Two kinds of value leave a loop body by another door than the carry and the
stacked outputs:

  invariant   the same in every iteration: a broadcast variable that the body
              makes, or an output declared ``broadcast``
  birth       a carried variable that the body makes: the loop needs its first
              value before the first iteration

The body is traced once to a jaxpr in which the places where such values are
made are marked. What the invariants need is cut out by dependency and run once,
before the loop; what the births need is run once on the first iteration's
inputs; the loop runs the rest, with both as inputs. An invariant that needs the
carry or a scanned value is an error.

A loop, or a program, inside a loop that shares what it makes has two forms. Linen's
first trace of the loop outside runs it as it is; in the second one its variables are
there, and come in. XLA rounds by what it compiles together, so both forms are
written down, and each value that comes out is a choice of the two, which the loop
outside makes: what it runs before its iterations is of the first trace, the rest of
the second.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from ... import equations, jax_private
from ...errors import LiftaxError
from ...words import names_on
from ..linen_keys import draw_p
from ..roles import Role, Roles
from ..scope import Scope
from ..types import Function, Group, Path, Tree
from .checks import depends_on_loop, split_shared
from .crossing import Opening

if TYPE_CHECKING:
    import jax.extend.core as jex

# Our own, and not `checkpoint_name`: what that gives is the user's to save or to offload, and
# JAX changes how it is written down.
_mark_p = jax_private.identity("liftax_mark")
_choice_p = jax_private.choice("liftax_choice")

T = TypeVar("T")

Place = tuple[int, str, *tuple[str, ...]]
"""Where a variable lies among opened scopes: (which scope, collection, *names)."""

Variables = dict[Place, object]
"""Variables by place, as a loop carries them: new ones are found by comparing keys."""


def flat(group: Group) -> Variables:
    """Returns the variables of a group by place."""
    found: Variables = {}
    for top, collections in enumerate(group):
        for col, node in collections.items():
            _find((top, col), node, found)
    return found


def _find(place: Place, node: object, found: Variables) -> None:
    # An empty dict has a place too: a variable may be one, and must come out again.
    if isinstance(node, dict) and node:
        for name, value in node.items():
            _find((*place, name), value, found)
    else:
        found[place] = node


def nested(places: Mapping[Place, object], scopes: int) -> Group:
    """Undoes `flat`."""
    group: Group = tuple([{} for _ in range(scopes)])
    for (top, *names), value in places.items():
        node: dict[str, Any] = group[top]
        *above, last = names
        for name in above:
            node = node.setdefault(name, {})
        node[last] = {} if type(value) is dict else value
    return group


def without(group: Group, places: Iterable[Place]) -> Group:
    """Returns a group less the variables at some places."""
    left = flat(group)
    for place in places:
        left.pop(place, None)
    return nested(left, len(group))


def rewritten(
    after: Group, before: Mapping[Place, object], marks: Marks | None = None
) -> Variables:
    """Returns what a body wrote, by place: what neither stood there before nor was marked there."""
    return {
        place: value
        for place, value in flat(after).items()
        if len(place) > 2
        and not (place in before and value is before[place])
        and not (marks is not None and marks.unchanged(place, value))
    }


def name_of(place: Place) -> str:
    """Names a variable in messages."""
    return "variable " + "/".join(map(str, place[1:]))


class Kind(enum.Enum):
    """Who has a variable that a body makes, and so where its value comes in."""

    SHARED = "all iterations"
    CARRIED = "one iteration after the other"
    EACH = "each iteration one of its own, and a loop outside all of them"


class Birth(NamedTuple):
    """A variable that the body made.

    Attributes:
      kind: who has it.
      marks: one for each leaf of its value.
      treedef: the structure of its value.
      first: its value, marked; None when the trace has ended.
      late: whether a lift inside the body made it: then the value is what that lift
        left of it, not its first one.
      came_in: whether it was there before, and the body may write it.
    """

    kind: Kind
    marks: list[str]
    treedef: PyTreeDef
    first: object
    late: bool
    came_in: bool = False


class Marks:
    """The marks that one trace of a body leaves in its jaxpr, and the births they stand for."""

    def __init__(self) -> None:
        self.births: dict[Place, Birth] = {}
        self._number = itertools.count()
        self._heard: list[Callable[[str], bool]] = []

    def listen(
        self, inner: Sequence[Scope], kinds: Mapping[Role, Kind], tops: Sequence[Scope]
    ) -> None:
        """Marks what is made in scopes from now on.

        Args:
          kinds: role -> who has its variables; other roles are left alone, and so is what
            each iteration has, where no loop outside hears of it.
          tops: the scopes outside.
        """
        self._heard = [_hears(top) for top in tops]
        for i, (scope, hears) in enumerate(zip(inner, self._heard, strict=True)):
            roles = scope.call.roles
            assert roles is not None
            kind = functools.partial(_kind_in, roles, kinds, hears)
            scope.call.on_birth = functools.partial(self._born, i, len(scope.path), kind)
            scope.call.hears = functools.partial(_is_heard, kind)

    def of(self, kind: Kind) -> dict[Place, Birth]:
        """Returns the births of a kind."""
        return {place: birth for place, birth in self.births.items() if birth.kind is kind}

    def are_heard(self, collections: Iterable[str]) -> bool:
        """Tells whether a loop outside hears of all these collections."""
        return all(any(hears(col) for hears in self._heard) for col in collections)

    def _born(
        self,
        top: int,
        depth: int,
        kind_in: Callable[[str], Kind | None],
        col: str,
        path: Path,
        value: object,
        late: bool,
    ) -> object:
        kind = kind_in(col)
        if kind is None:
            return value
        if isinstance(value, dict):  # what a lift inside the body made, all at once
            return {
                k: self._born(top, depth, kind_in, col, (*path, k), v, late)
                for k, v in value.items()
            }
        return self._mark((top, col, *path[depth:]), kind, value, late)

    def came_in(self, group: Group, may_write: Callable[[int, str], bool]) -> Group:
        """Marks variables that are there already, as if the body made them.

        Linen's first trace writes them, and the second goes on from there.

        Args:
          may_write: ``(which scope, collection)`` -> whether the body may.
        """
        marked = {
            place: value
            if (type(value) is dict and not value) or not may_write(place[0], place[1])
            else self._mark(place, Kind.SHARED, value, False, came_in=True)
            for place, value in flat(group).items()
        }
        return nested(marked, len(group))

    def _mark(
        self, place: Place, kind: Kind, value: object, late: bool, came_in: bool = False
    ) -> object:
        leaves, treedef = jax.tree.flatten(value)
        # A nested loop leaves its own marks in the same jaxpr: tell them apart.
        names = [f"{id(self)}:{next(self._number)}" for _ in leaves]
        marked = [_mark_p.bind(jnp.asarray(x), mark=n) for x, n in zip(leaves, names, strict=True)]
        value = jax.tree.unflatten(treedef, marked)
        self.births[place] = Birth(kind, names, treedef, value, late, came_in)
        return value

    def unchanged(self, place: Place, value: object) -> bool:
        """Tells whether ``value`` is what was marked there."""
        birth = self.births.get(place)
        return birth is not None and value is birth.first

    def clear(self) -> None:
        """Forgets the marks of a trace that another one replaces."""
        self.births.clear()

    def end(self) -> None:
        """Forgets the values of a trace that has ended: JAX holds on to what it traced."""
        self.births = {place: b._replace(first=None) for place, b in self.births.items()}


def _hears(top: Scope) -> Callable[[str], bool]:
    """Returns what tells of which collections a loop outside wants to hear as they are made."""
    root = top.call
    if root.on_birth is None or root.hears is None or not root.wants_first:
        return lambda col: False
    return root.hears


def _kind_in(
    roles: Roles, kinds: Mapping[Role, Kind], hears: Callable[[str], bool], col: str
) -> Kind | None:
    """Who has the variables of a collection; None where it is left alone."""
    role = roles.role(col)
    kind = None if role is None else kinds.get(role)
    return None if kind is Kind.EACH and not hears(col) else kind


def _is_heard(kind: Callable[[str], Kind | None], col: str) -> bool:
    return kind(col) is not None


def choice(first: Tree, again: Tree, collections: Iterable[str]) -> Any:
    """Returns what a loop outside takes from its first trace, and from its second.

    Args:
      first, again: of one structure.
      collections: which are made in the first and are there in the second.
    """
    names = tuple(sorted(set(collections)))

    def choose(first: object, again: object) -> object:
        if jax.typeof(first) != jax.typeof(again):
            return again
        return _choice_p.bind(first, again, collections=names)

    return jax.tree.map(choose, first, again)


Atoms = Sequence["jex.Var | jex.Literal"]

Pruned = tuple["jex.Jaxpr", list[bool]]
"""A program cut down, and which of the inputs it had are still inputs."""


class Loop(NamedTuple):
    """A traced loop body, cut in parts.

    Attributes:
      step: ``(made, carry, born, x) -> (carry, born, ys)``; ``born`` are the births that are
        not shared.
      whole: as ``step``, where what each iteration has is made, and nothing is done besides:
        ``(made, carry, born, x) -> ((carry, born, ys), births)``.
      invariants: made before the loop, as the body returned them.
      made: the shared births by place, made before the loop.
      reread: ``made -> (fresh, invariants)``, as a loop outside takes them from its two traces,
        where ``made`` are the shared births as they stand outside; ``fresh`` are those of which
        that loop does not hear, which its second trace makes anew.
      first: ``(carry, x) -> born``: the births that are not shared, at their first values.
      outside: the program of what is made before the loop.
      carry_avals: the shapes and dtypes of the leaves of the carry that the body returns.
    """

    step: Callable[..., Any]
    whole: Callable[..., Any]
    invariants: Any
    made: Variables
    reread: Callable[[Variables], tuple[Variables, Any]]
    first: Callable[[Tree, Tree], Variables]
    outside: jex.Jaxpr
    carry_avals: list[jax.core.ShapedArray]


def trace_loop(
    body: Function,
    carry: Tree,
    x: Tree,
    marks: Marks,
    opening: Opening,
    *,
    split: bool = False,
    chooses: bool = True,
    partial: bool = False,
) -> Loop:
    """Traces ``body`` once and cuts it.

    Args:
      body: ``(carry, x) -> (carry, born, ys, invariants)``; ``born`` has the final values
        of the carried births by place, ``invariants`` is a pair (variables by place,
        outputs).
      carry, x: of one iteration, or their shapes.
      marks: what ``body`` marks, and ends when it returns.
      opening: the call of the lift, for messages.
      split: whether the stream ``params`` is split, for messages.
      chooses: whether Linen's first trace makes variables that are there in its second, so that
        the choices of lifts inside are made here; else they are left to a loop outside.
      partial: whether Linen makes what stands before the loop by partial evaluation.

    Raises:
      SplitSharedError: a shared parameter is made from a split stream.
      LoopDependentError: an invariant needs the carry or a scanned value.
    """

    def run(carry: Tree, x: Tree) -> object:
        return body(carry, x)

    # JAX says it where a value outlives the trace, and `refusals.escaped` reads it there.
    run.__name__ = f"<{opening.roles.lift}>"
    # What is made before the loop is run in the units in which it would be run there.
    if jax_private.is_run(jax_private.current_trace()):
        run = jax_private.in_units(run)
    closed, shapes = jax.make_jaxpr(run, return_shape=True)(carry, x)
    jaxpr, consts = jax_private.consts_as_inputs(closed), list(closed.consts)
    # Where the marked values are in the program, and which of its outputs are the loop's.
    wanted = {mark for birth in marks.births.values() for mark in birth.marks}
    marked = {m: eqn.outvars[0] for eqn in jaxpr.eqns if (m := _mark_of(eqn)) in wanted}
    shared, carried, each = (marks.of(kind) for kind in Kind)
    later = carried | each

    def variables(births: Mapping[Place, Birth]) -> list[jex.Var]:
        return [marked[m] for birth in births.values() for m in birth.marks]

    n = len(jaxpr.outvars) - len(jax.tree.leaves(shapes[3]))
    looped, invariant = jaxpr.outvars[:n], jaxpr.outvars[n:]

    def inside(program: jex.Jaxpr, births: Mapping[Place, Birth], out: Atoms) -> jex.Jaxpr:
        """Returns the program of an iteration in which some births come in."""
        given = {mark for birth in births.values() for mark in birth.marks}
        eqns = [eqn for eqn in program.eqns if _mark_of(eqn) not in given]
        invars = [*program.invars, *variables(births)]
        return jax_private.rewire(program, invars=invars, outvars=out, eqns=eqns)

    def hoist(program: jex.Jaxpr, inputs: Sequence[object], out: Atoms) -> list[jax.Array]:
        """Returns what is made before the loop."""
        small = _alone(program, out)
        if partial and jax_private.hoists() and _any(small[0], equations.is_loop):
            return _known(program, [*looped, *out], inputs)[n:]
        unknown = [None] * (len(program.invars) - len(inputs))
        return _run(small, [*inputs, *unknown])

    names = [_name_at(p) for p, _ in jax.tree_util.tree_leaves_with_path(shapes[3])]
    names += [name_of(p) for p, b in shared.items() for _ in b.marks]
    hoisted = [*invariant, *variables(shared)]
    # Of the first trace, if no loop outside has one in which that is the second.
    making = _chosen(jaxpr, lambda names: None if marks.are_heard(names) else 0, chooses)
    outside = _alone(_of_first_trace(making), hoisted)
    if any(outside[1][len(consts) :]):
        raise _dependent(jaxpr, hoisted, len(consts), names, opening.place, split)
    before = hoist(_of_first_trace(making), consts, hoisted)
    structure = jax.tree.structure(shapes[3])
    invariants = jax.tree.unflatten(structure, before[: len(invariant)])
    births = _by_place(shared, before[len(invariant) :])
    start = _alone(making, variables(later))

    there = {place[1] for place in shared}
    made_all = _chosen(jaxpr, lambda names: 1, chooses)
    again = inside(made_all, shared | later, looped)
    again = again.replace(eqns=_without(again.eqns, outside, start))
    rest = jax_private.prune(again, [True] * len(looped))
    full = _chosen(jaxpr, lambda names: int(there.issuperset(names)), chooses)
    out = [*looped, *variables(each)]
    unsplit = _alone(inside(full, shared | carried, out), out) if each else None

    def reread(made: Variables) -> tuple[Variables, Any]:
        heard = {col for col in there if marks.are_heard([col])}
        given = {place: birth for place, birth in shared.items() if place[1] in heard}
        anew = {place: birth for place, birth in shared.items() if place[1] not in heard}
        if not heard or not (invariant or anew):
            return {}, invariants
        known = made_all
        if anew:
            known = _chosen(jaxpr, lambda names: int(heard.issuperset(names)), chooses)
        out = [*invariant, *variables(anew)]
        program = _of_first_trace(inside(known, given, out))
        # What comes in stands with the constants: both are known.
        k = len(consts)
        invars, values = program.invars, [*consts, *jax.tree.leaves([made[p] for p in given])]
        moved = [*invars[:k], *invars[len(jaxpr.invars) :], *invars[k : len(jaxpr.invars)]]
        second = hoist(program.replace(invars=moved), values, out)
        again = jax.tree.unflatten(structure, second[: len(invariant)])
        fresh = _by_place(anew, second[len(invariant) :])
        first = {place: births[place] for place in anew}
        return choice(first, fresh, heard), choice(invariants, again, heard)

    def first(carry: Tree, x: Tree) -> Variables:
        return _by_place(later, _run(start, [*consts, *jax.tree.leaves((carry, x))]))

    def step(made: Variables, carry: Tree, born: Variables, x: Tree) -> Any:
        values = [*(made[place] for place in shared), *(born[place] for place in later)]
        out = _run(rest, [*consts, *jax.tree.leaves((carry, x, values))])
        return jax.tree.unflatten(jax.tree.structure(shapes[:3]), out)

    def whole(made: Variables, carry: Tree, born: Variables, x: Tree) -> Any:
        assert unsplit is not None
        values = [*(made[place] for place in shared), *(born[place] for place in carried)]
        out = _run(unsplit, [*consts, *jax.tree.leaves((carry, x, values))])
        return jax.tree.unflatten(jax.tree.structure(shapes[:3]), out[:n]), _by_place(each, out[n:])

    avals = jax.tree.leaves(shapes[0])
    return Loop(step, whole, invariants, births, reread, first, outside[0], avals)


def _chosen(
    jaxpr: jex.Jaxpr, choose: Callable[[tuple[str, ...]], int | None], chooses: bool
) -> jex.Jaxpr:
    """Returns the program with its choices made: the first (0), the second (1), or left (None)."""
    if not chooses or not _any(jaxpr, lambda eqn: eqn.primitive is _choice_p):
        return jaxpr

    def chosen(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
        if eqn.primitive is not _choice_p:
            programs = [inner.jaxpr for inner in equations.programs_of(eqn)]
            if not any(_any(inner, lambda eqn: eqn.primitive is _choice_p) for inner in programs):
                return eqn
            return equations.with_programs(eqn, lambda inner: _chosen(inner, choose, chooses))
        which = choose(eqn.params["collections"])
        if which is None:
            return eqn
        return eqn.replace(primitive=_mark_p, invars=[eqn.invars[which]], params={"mark": ""})

    eqns = [chosen(eqn) for eqn in jaxpr.eqns]
    return jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=jaxpr.outvars, eqns=eqns)


def _mark_of(eqn: jex.JaxprEqn) -> str | None:
    return eqn.params["mark"] if eqn.primitive is _mark_p else None


def _of_first_trace(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """Returns the program with the keys that Linen's first trace of it draws."""
    eqns = [_in_first(eqn) for eqn in jaxpr.eqns]
    return jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=jaxpr.outvars, eqns=eqns)


def _in_first(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
    if eqn.primitive is draw_p:
        first = eqn.params["draw"].first
        return eqn if first is None else eqn.replace(params={"draw": first})
    if not any(draws_again(inner.jaxpr) for inner in equations.programs_of(eqn)):
        return eqn
    return equations.with_programs(eqn, _of_first_trace)


def draws_again(program: jex.Jaxpr) -> bool:
    """Tells whether a part of the program draws keys for which a second trace has others."""
    return _any(
        program, lambda eqn: eqn.primitive is draw_p and eqn.params["draw"].first is not None
    )


def _any(program: jex.Jaxpr, found: Callable[[jex.JaxprEqn], bool]) -> bool:
    """Tells whether an equation of the program, or of one that it calls, is such a one."""
    return any(map(found, equations.all_of(program)))


def _alone(jaxpr: jex.Jaxpr, outvars: Atoms) -> Pruned:
    """Cuts a body down to some of its values.

    What the body does besides, such as printing, it does in the loop, once an iteration.
    """
    outside = jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=outvars, eqns=jaxpr.eqns)
    return jax_private.prune(equations.quiet(outside), [True] * len(outvars))


def _without(eqns: Sequence[jex.JaxprEqn], *before: Pruned) -> list[jex.JaxprEqn]:
    """Returns the equations of the loop, less what was done before it.

    An initial value that is read from a file is not read again: where nothing else needs
    what came of it, the equation may go.
    """
    done = {var for program, _ in before for eqn in program.eqns for var in eqn.outvars}

    def quiet(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
        again = equations.acts(eqn) and not done.isdisjoint(eqn.outvars)
        return equations.calmed(eqn) if again else eqn

    return [quiet(eqn) for eqn in eqns]


def _run(program: Pruned, inputs: Sequence[object]) -> list[jax.Array]:
    small, used = program
    return jax_private.evaluate(small, [v for v, u in zip(inputs, used, strict=True) if u])


def _known(program: jex.Jaxpr, outvars: Atoms, inputs: Sequence[object]) -> list[jax.Array]:
    """Returns what a program makes of its first inputs alone, evaluated as Linen does it.

    Up to its last output it has to do with the others: a loop that is known in part is another
    one, without its constants, which rounds otherwise.
    """
    program, used = _alone(program, outvars)
    given = [value for value, needed in zip(inputs, used, strict=False) if needed]
    avals = [var.aval for var in program.invars[len(given) :]]
    return jax_private.known(program, given, avals)


def _by_place(births: Mapping[Place, Birth], leaves: Sequence[jax.Array]) -> Variables:
    left = iter(leaves)
    return {
        place: jax.tree.unflatten(b.treedef, [next(left) for _ in b.marks])
        for place, b in births.items()
    }


def _name_at(path: tuple[Any, ...]) -> str:
    """Names an invariant by its path: a shared variable that was written, or an output."""
    if path[0].idx == 0:
        return "/".join([name_of(path[1].key), *names_on(path[2:])])
    return "output ys" + jax.tree_util.keystr(path[1:])


def _dependent(
    jaxpr: jex.Jaxpr,
    outvars: Atoms,
    n: int,
    names: Sequence[str],
    place: str,
    split: bool,
) -> LiftaxError:
    """The first of a body's values that needs an input after the first ``n``."""
    both = zip(names, outvars, strict=True)
    name, var = next((name, var) for name, var in both if any(_alone(jaxpr, [var])[1][n:]))
    if split and name.startswith("variable params/"):
        return split_shared(place, name)
    return depends_on_loop(place, name, var.aval)


def strengthened(before: T, after: Sequence[jax.core.ShapedArray]) -> T | None:
    """Returns the carry in the dtypes that the body makes of it, None if they agree."""
    leaves, treedef = jax.tree.flatten(before)
    kept = [
        old if jax.typeof(old).dtype == new.dtype else jnp.asarray(old, new.dtype)
        for old, new in zip(leaves, after, strict=True)
    ]
    same = all(a is b for a, b in zip(kept, leaves, strict=True))
    return None if same else jax.tree.unflatten(treedef, kept)


def write_births(opening: Opening, marks: Marks, values: Mapping[Place, object]) -> Variables:
    """Writes initial values to the scopes outside; returns what stands there.

    Where this loop stands in another one's body, the values are marked there on the
    way, and the loop must use them with that mark on.
    """
    for place in sorted(values):  # as JAX hands out what comes of a transformation
        if marks.births[place].came_in:
            continue
        node, (index, col, *names) = values[place], place
        top, (first, *rest) = opening.tops[index], names
        for name in reversed(rest):
            node = {name: node}
        root = top.call
        # A loop outside hears of it as of what its own body makes, in this collection.
        creating, root.creating, root.late = root.creating, col, marks.births[place].late
        top.put_variable(col, first, node)
        root.creating, root.late = creating, False
    return {place: _at(opening, place) for place in values}


def write_over(opening: Opening, made: Variables, then: Mapping[Place, object]) -> Variables:
    """Writes over initial values what a body left in them; returns what its iterations take."""
    if not then:
        return made
    opening.write_back(nested(then, len(opening.tops)))
    after = {place: _at(opening, place) for place in made}
    # One that changes its kind does so in each iteration anew.
    return {p: after[p] if alike(after[p], value) else value for p, value in made.items()}


def _at(opening: Opening, place: Place) -> object:
    index, col, *names = place
    return _below(opening.tops[index].node(col), names)


def at_place(group: Group, place: Place) -> object:
    """Returns what a group has at a place, None where there is nothing."""
    index, *names = place
    return _below(group[index], names)


def _below(node: Any, names: Iterable[Any]) -> object:
    for name in names:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node


def alike(a: Tree, b: Tree) -> bool:
    """Tells whether one program takes either of two values."""
    structures: list[PyTreeDef] = [jax.tree.structure(tree) for tree in (a, b)]
    kinds = [
        [(x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(tree))]
        for tree in (a, b)
    ]
    return bool(structures[0] == structures[1]) and kinds[0] == kinds[1]
