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

A loop, or a program, inside a loop that shares what it makes is cut twice, for
both traces that Linen makes of the loop outside: see `forms`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import jax
from jax.tree_util import PyTreeDef

from ... import equations, jax_private
from ...errors import LiftaxError
from ...words import names_on
from ..trees import alike
from ..types import Function, Tree
from .births import Births, Kind, Marks, mark_p
from .checks import depends_on_loop, split_shared
from .crossing import Opening
from .forms import choice, chosen, of_first_trace
from .places import Place, Variables, name_of, nested

if TYPE_CHECKING:
    import jax.extend.core as jex

T = TypeVar("T")

Atoms = Sequence["jex.Var | jex.Literal"]


class _Part(NamedTuple):
    """A program cut down to some of its outputs.

    Attributes:
      program: what is left of it.
      used: of each input it had, whether it still is one.
    """

    program: jex.Jaxpr
    used: list[bool]

    def taken(self, inputs: Sequence[T]) -> list[T]:
        """Returns those of the first inputs that it takes."""
        return [value for value, used in zip(inputs, self.used, strict=False) if used]

    def run(self, inputs: Sequence[object]) -> list[jax.Array]:
        return jax_private.evaluate(self.program, self.taken(inputs))


class Loop:
    """A loop body, traced once and cut in parts.

    Args:
      body: ``(carry, x) -> (carry, born, ys, invariants)``; ``born`` has the final values
        of the carried births by place, ``invariants`` is a pair (variables by place,
        outputs).
      carry, x: of one iteration, or their shapes.
      marks: what ``body`` marks.
      opening: the call of the lift, for messages.
      chooses: whether Linen's first trace makes variables that are there in its second, so that
        the choices of lifts inside are made here; else they are left to a loop outside.
      partial: whether Linen makes what stands before the loop by partial evaluation.

    Attributes:
      invariants: made before the loop, as the body returned them.
      made: the shared births by place, made before the loop.
      outside: the program that made them.
      carry_avals: the leaves of the carry that the body returns.

    Raises:
      SplitSharedError: a shared parameter is made from a split stream.
      LoopDependentError: an invariant needs the carry or a scanned value.
    """

    def __init__(
        self,
        body: Function,
        carry: Tree,
        x: Tree,
        marks: Marks,
        opening: Opening,
        *,
        chooses: bool = True,
        partial: bool = False,
    ):
        def run(carry: Tree, x: Tree) -> object:
            out = body(carry, x)
            marks.end()
            return out

        # JAX says it where a value outlives the trace, and `refusals.escaped` reads it there.
        run.__name__ = f"<{opening.roles.lift}>"
        # What is made before the loop is run in the units in which it would be run there.
        if jax_private.is_run(jax_private.current_trace()):
            run = jax_private.in_units(run)
        closed, shapes = jax.make_jaxpr(run, return_shape=True)(carry, x)
        self.jaxpr, self.consts = jax_private.consts_as_inputs(closed), list(closed.consts)
        self.marks, self.opening, self.chooses, self.partial = marks, opening, chooses, partial

        # Where in the program the marked values are, and which of its outputs are the loop's.
        self.marked = {
            eqn.params["mark"]: eqn.outvars[0] for eqn in self.jaxpr.eqns if eqn.primitive is mark_p
        }
        self.shared = marks.of(Kind.SHARED)
        self.later = marks.of(Kind.CARRIED, Kind.EACH)
        self.carry_avals: list[jax.core.ShapedArray] = jax.tree.leaves(shapes[0])
        self.out_def: PyTreeDef = jax.tree.structure(shapes[:3])
        self.invariant_shapes = shapes[3]
        n = len(jax.tree.leaves(shapes[:3]))
        self.looped, self.invariant = self.jaxpr.outvars[:n], self.jaxpr.outvars[n:]

        # Before the loop. A choice is of the first trace there, if no loop outside has one in which
        # that is the second.
        making = self._chosen(lambda names: None if marks.are_heard(names) else 0)
        self.start = _alone(making, self._variables(self.later))
        making = of_first_trace(making)
        hoisted = [*self.invariant, *self._variables(self.shared)]
        part = _alone(making, hoisted)
        if any(part.used[len(self.consts) :]):
            raise self._dependent(hoisted)
        self.outside = part.program
        self.invariants, self.made = self._before(making, self.consts, self.shared)

        # The loop itself, in which all that is there.
        rest = self._inside(self._chosen(lambda names: 1), self.shared | self.later, self.looped)
        rest = rest.replace(eqns=_without(rest.eqns, part.program, self.start.program))
        self.rest = _Part(*jax_private.prune(rest, [True] * n))

    def _chosen(self, choose: Callable[[tuple[str, ...]], int | None]) -> jex.Jaxpr:
        """Returns the program with the choices of lifts inside made."""
        return chosen(self.jaxpr, choose) if self.chooses else self.jaxpr

    def _variables(self, births: Births) -> list[jex.Var]:
        """Returns where the program has the leaves of births."""
        return [self.marked[mark] for birth in births.values() for mark in birth.marks]

    def _inside(self, program: jex.Jaxpr, births: Births, out: Atoms) -> jex.Jaxpr:
        """Returns the program of an iteration in which some births come in."""
        given = self._variables(births)
        marked = set(given)
        eqns = [eqn for eqn in program.eqns if marked.isdisjoint(eqn.outvars)]
        invars = [*program.invars, *given]
        return jax_private.rewire(program, invars=invars, outvars=out, eqns=eqns)

    def _before(
        self, program: jex.Jaxpr, inputs: Sequence[object], births: Births
    ) -> tuple[Any, Variables]:
        """Runs what makes the invariants and some births before the loop.

        Args:
          inputs: the first of the program's inputs, which is all that it may need.
        """
        out = [*self.invariant, *self._variables(births)]
        part = _alone(program, out)
        if (
            self.partial
            and jax_private.hoists()
            and any(map(equations.is_loop, equations.all_of(part.program)))
        ):
            # Evaluated as Linen does it. Up to its last output the program has to do with what is
            # not known: a loop that is known in part is another one, without its constants, which
            # rounds otherwise.
            whole = _alone(program, [*self.looped, *out])
            given = whole.taken(inputs)
            avals = [var.aval for var in whole.program.invars[len(given) :]]
            found = jax_private.known(whole.program, given, avals)[len(self.looped) :]
        else:
            found = part.run(inputs)
        n, structure = len(self.invariant), jax.tree.structure(self.invariant_shapes)
        return jax.tree.unflatten(structure, found[:n]), _by_place(births, found[n:])

    def write(self, values: Variables) -> Variables:
        """Writes initial values to the scopes outside; returns what stands there.

        Where this loop stands in another one's body, the values are marked there on the
        way, and the loop must use them with that mark on.
        """
        opening, births = self.opening, self.marks.births
        for place in sorted(values):  # as JAX hands out what comes of a transformation
            if births[place].came_in:
                continue
            node, (index, col, *names) = values[place], place
            top, (first, *rest) = opening.tops[index], names
            for name in reversed(rest):
                node = {name: node}
            call = top.call
            # A loop outside hears of it as of what its own body makes, in this collection.
            creating, call.creating, call.late = call.creating, col, births[place].late
            top.put_variable(col, first, node)
            call.creating, call.late = creating, False
        return {place: _at(opening, place) for place in values}

    def write_shared(self, *, both: bool = False) -> Variables:
        """Writes what is shared, as the body left it; returns what the iterations take.

        Args:
          both: whether as a loop outside has it in its two traces.
        """
        made = self.write(self.made)
        fresh = self._reread(made) if both else {}
        then = fresh | self.invariants[0]
        if not then:
            return made
        self.opening.write_back(nested(then, len(self.opening.tops)))
        after = {place: _at(self.opening, place) for place in made}
        # One that changes its kind does so in each iteration anew.
        return {p: after[p] if alike(after[p], value) else value for p, value in made.items()}

    def _reread(self, made: Variables) -> Variables:
        """Takes the invariants as a loop outside does from its two traces.

        Args:
          made: the shared births as they stand outside.

        Returns:
          those of which that loop does not hear, which its second trace makes anew.
        """
        there = {place[1] for place in self.shared}
        heard = {col for col in there if self.marks.are_heard([col])}
        given = {place: birth for place, birth in self.shared.items() if place[1] in heard}
        anew = {place: birth for place, birth in self.shared.items() if place[1] not in heard}
        if not heard or not (self.invariant or anew):
            return {}
        known = self._chosen(lambda names: int(not anew or heard.issuperset(names)))
        out = [*self.invariant, *self._variables(anew)]
        program = of_first_trace(self._inside(known, given, out))
        # What comes in stands with the constants: both are known.
        k, n, invars = len(self.consts), len(self.jaxpr.invars), program.invars
        program = program.replace(invars=[*invars[:k], *invars[n:], *invars[k:n]])
        values = jax.tree.leaves([made[place] for place in given])
        again, fresh = self._before(program, [*self.consts, *values], anew)
        first = {place: self.made[place] for place in anew}
        found: Variables = choice(first, fresh, heard)
        self.invariants = choice(self.invariants, again, heard)
        return found

    def first(self, carry: Tree, x: Tree) -> Variables:
        """Returns the first values of the births that are not shared."""
        return _by_place(self.later, self._run(self.start, carry, x))

    def step(self, made: Variables, carry: Tree, born: Variables, x: Tree) -> Any:
        """Runs an iteration: returns carry, births and outputs.

        Args:
          made: what is shared, by place.
          born: the births that are not.
        """
        values = [made[place] for place in self.shared], [born[place] for place in self.later]
        return jax.tree.unflatten(self.out_def, self._run(self.rest, carry, x, values))

    def whole(self, made: Variables, carry: Tree, born: Variables, x: Tree) -> Any:
        """As `step`, where what each iteration has is made, and nothing is done besides.

        Returns:
          what `step` does, and the births of the iteration.
        """
        carried, each = self.marks.of(Kind.CARRIED), self.marks.of(Kind.EACH)
        there = {place[1] for place in self.shared}
        out = [*self.looped, *self._variables(each)]
        full = self._chosen(lambda names: int(there.issuperset(names)))
        part = _alone(self._inside(full, self.shared | carried, out), out)
        values = [made[place] for place in self.shared], [born[place] for place in carried]
        found, n = self._run(part, carry, x, values), len(self.looped)
        return jax.tree.unflatten(self.out_def, found[:n]), _by_place(each, found[n:])

    def _run(self, part: _Part, *inputs: Tree) -> list[jax.Array]:
        return part.run([*self.consts, *jax.tree.leaves(inputs)])

    def _dependent(self, outvars: Atoms) -> LiftaxError:
        """The first of the body's values that needs more than constants."""
        paths = jax.tree_util.tree_leaves_with_path(self.invariant_shapes)
        names = [_name_at(path) for path, _ in paths]
        names += [name_of(place) for place, birth in self.shared.items() for _ in birth.marks]
        both, n = zip(names, outvars, strict=True), len(self.consts)
        name, var = next((m, v) for m, v in both if any(_alone(self.jaxpr, [v]).used[n:]))
        opening = self.opening
        if opening.roles.split("params") and name.startswith("variable params/"):
            return split_shared(opening.place, name)
        return depends_on_loop(opening.place, name, var.aval)


def _alone(jaxpr: jex.Jaxpr, outvars: Atoms) -> _Part:
    """Cuts a body down to some of its values.

    What the body does besides, such as printing, it does in the loop, once an iteration.
    """
    outside = jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=outvars, eqns=jaxpr.eqns)
    return _Part(*jax_private.prune(equations.quiet(outside), [True] * len(outvars)))


def _without(eqns: Sequence[jex.JaxprEqn], *before: jex.Jaxpr) -> list[jex.JaxprEqn]:
    """Returns the equations of the loop, less what was done before it.

    An initial value that is read from a file is not read again: where nothing else needs
    what came of it, the equation may go.
    """
    done = {var for program in before for eqn in program.eqns for var in eqn.outvars}

    def quiet(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
        again = equations.acts(eqn) and not done.isdisjoint(eqn.outvars)
        return equations.calmed(eqn) if again else eqn

    return [quiet(eqn) for eqn in eqns]


def _by_place(births: Births, leaves: Sequence[jax.Array]) -> Variables:
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


def _at(opening: Opening, place: Place) -> object:
    """Returns what stands at a place in the scopes outside, None where there is nothing."""
    index, col, *names = place
    node: Any = opening.tops[index].node(col)
    for name in names:
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
