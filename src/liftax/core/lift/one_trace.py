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
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Birth(NamedTuple):
    """A variable that the body made.

    Attributes:
      carried: whether it goes from one iteration to the next.
      marks: one for each leaf of its value.
      treedef: the structure of its value.
      first: its value, marked; None when the trace has ended.
      late: whether a lift inside the body made it: then the value is what that lift
        left of it, not its first one.
      came_in: whether it was there before, and the body may write it.
    """

    carried: bool
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

    def listen(
        self, inner: Sequence[Scope], kinds: Mapping[Role, bool], tops: Sequence[Scope] = ()
    ) -> None:
        """Marks what is made in scopes from now on.

        Args:
          kinds: role -> whether its variables are carried; other roles are left alone.
          tops: the scopes outside; where they are given, only what a loop outside hears of.
        """
        for i, scope in enumerate(inner):
            roles, hears = scope.call.roles, tops[i].call.hears if tops else None
            assert roles is not None
            kind = functools.partial(_kind_in, roles, kinds, hears)
            scope.call.on_birth = functools.partial(self._born, i, len(scope.path), kind)
            scope.call.hears = functools.partial(_is_heard, kind)

    def _born(
        self,
        top: int,
        depth: int,
        kind: Callable[[str], bool | None],
        col: str,
        path: Path,
        value: object,
        late: bool,
    ) -> object:
        carried = kind(col)
        if carried is None:
            return value
        if isinstance(value, dict):  # what a lift inside the body made, all at once
            return {
                k: self._born(top, depth, kind, col, (*path, k), v, late) for k, v in value.items()
            }
        return self._mark((top, col, *path[depth:]), carried, value, late)

    def came_in(self, group: Group, may_write: Callable[[int, str], bool]) -> Group:
        """Marks variables that are there already, as if the body made them.

        Linen's first trace writes them, and the second goes on from there.

        Args:
          may_write: ``(which scope, collection)`` -> whether the body may.
        """
        marked = {
            place: value
            if (type(value) is dict and not value) or not may_write(place[0], place[1])
            else self._mark(place, False, value, False, came_in=True)
            for place, value in flat(group).items()
        }
        return nested(marked, len(group))

    def _mark(
        self, place: Place, carried: bool, value: object, late: bool, came_in: bool = False
    ) -> object:
        leaves, treedef = jax.tree.flatten(value)
        # A nested loop leaves its own marks in the same jaxpr: tell them apart.
        names = [f"{id(self)}:{next(self._number)}" for _ in leaves]
        marked = [_mark_p.bind(jnp.asarray(x), mark=n) for x, n in zip(leaves, names, strict=True)]
        value = jax.tree.unflatten(treedef, marked)
        self.births[place] = Birth(carried, names, treedef, value, late, came_in)
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


def _kind_in(
    roles: Roles,
    kinds: Mapping[Role, bool],
    hears: Callable[[str], bool] | None,
    col: str,
) -> bool | None:
    """Whether a collection is carried; None where it is left alone."""
    role = roles.role(col)
    return None if role is None or not (hears is None or hears(col)) else kinds.get(role)


def _is_heard(kind: Callable[[str], bool | None], col: str) -> bool:
    return kind(col) is not None


Atoms = Sequence["jex.Var | jex.Literal"]

Pruned = tuple["jex.Jaxpr", list[bool]]
"""A program cut down, and which of the inputs it had are still inputs."""


class Loop(NamedTuple):
    """A traced loop body, cut in three.

    Attributes:
      step: ``(made, carry, born, x) -> (carry, born, ys)``.
      invariants: made before the loop, as the body returned them.
      made: the shared births by place, made before the loop.
      first: ``(carry, x) -> born``: the carried births by place, at their first values.
      outside: the program of what is made before the loop.
      carry_avals: the shapes and dtypes of the leaves of the carry that the body returns.
    """

    step: Callable[..., Any]
    invariants: Any
    made: Variables
    first: Callable[[Tree, Tree], Variables]
    outside: jex.Jaxpr
    carry_avals: list[jax.core.ShapedArray]


def trace_loop(
    body: Function, carry: Tree, x: Tree, marks: Marks, opening: Opening, split: bool = False
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
    shared, carried = (
        {p: b for p, b in marks.births.items() if b.carried is kind} for kind in (False, True)
    )
    shared_vars, carried_vars = (
        [marked[m] for b in births.values() for m in b.marks] for births in (shared, carried)
    )
    n = len(jaxpr.outvars) - len(jax.tree.leaves(shapes[3]))
    looped, invariant = jaxpr.outvars[:n], jaxpr.outvars[n:]

    # Before the loop: the outputs that are the same in each iteration, and what is shared. None of
    # it may need the carry or a slice; the constants are all that it gets.
    names = [_name_at(p) for p, _ in jax.tree_util.tree_leaves_with_path(shapes[3])]
    names += [name_of(p) for p, b in shared.items() for _ in b.marks]
    early = [*invariant, *shared_vars]
    outside = _alone(_of_first_trace(jaxpr), early)
    if any(outside[1][len(consts) :]):
        raise _dependent(jaxpr, early, len(consts), names, opening.place, split)
    before = _run(outside, [*consts, *[None] * (len(jaxpr.invars) - len(consts))])
    invariants = jax.tree.unflatten(jax.tree.structure(shapes[3]), before[: len(invariant)])
    # In the loop: all the rest, with inputs in place of the marks. The first values of carried
    # variables are computed apart, of the first iteration's inputs.
    start = _alone(jaxpr, carried_vars)
    inside = jax_private.rewire(
        jaxpr,
        invars=[*jaxpr.invars, *shared_vars, *carried_vars],
        outvars=looped,
        eqns=_without([eqn for eqn in jaxpr.eqns if _mark_of(eqn) not in wanted], outside, start),
    )
    rest = jax_private.prune(inside, [True] * len(looped))

    def first(carry: Tree, x: Tree) -> Variables:
        return _by_place(carried, _run(start, [*consts, *jax.tree.leaves((carry, x))]))

    def step(made: Variables, carry: Tree, born: Variables, x: Tree) -> Any:
        values = [*(made[place] for place in shared), *(born[place] for place in carried)]
        out = _run(rest, [*consts, *jax.tree.leaves((carry, x, values))])
        return jax.tree.unflatten(jax.tree.structure(shapes[:3]), out)

    made = _by_place(shared, before[len(invariant) :])
    return Loop(step, invariants, made, first, outside[0], jax.tree.leaves(shapes[0]))


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
    return any(
        (eqn.primitive is draw_p and eqn.params["draw"].first is not None)
        or any(draws_again(inner.jaxpr) for inner in equations.programs_of(eqn))
        for eqn in program.eqns
    )


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


def write_births(
    opening: Opening,
    marks: Marks,
    values: Mapping[Place, object],
    then: Mapping[Place, object] | None = None,
) -> Variables:
    """Writes initial values to the scopes outside; returns what stands there.

    Args:
      values: the initial values.
      then: what is written over them.

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
    standing = {place: _at(opening, place) for place in values}
    if then:
        opening.write_back(nested(then, len(opening.tops)))
        after = {place: _at(opening, place) for place in values}
        # One that changes its kind does so in each iteration anew.
        standing = {
            p: after[p] if alike(after[p], value) else value for p, value in standing.items()
        }
    return standing


def _at(opening: Opening, place: Place) -> object:
    index, col, *names = place
    node: Any = opening.tops[index].node(col)
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
