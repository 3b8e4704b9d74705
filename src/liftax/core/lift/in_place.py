"""A loop whose body writes variables where they stand, in the array of all iterations.

`jax.lax.scan` hands an iteration its slice of a stacked array and stacks what comes back: all of it
is read and written, however little changes. A cache for decoding changes by one position. Here the
stacked array goes through the loop whole. The body, traced once, is cut where it updates a slice;
each update is made in the whole array instead, and what the body reads is its slice of that. XLA
then keeps one array, and writes the position.

Under differentiation a carry is stored once for each iteration, so the derivative is that of the
loop over slices.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import KeyPath

from ... import equations, jax_private
from ...pytrees import joined, parted
from ..types import Function, Tree
from .crossing import Opening

if TYPE_CHECKING:
    import jax.extend.core as jex

    Atom = jex.Var | jex.Literal

Leaves = list[jax.Array]

Loop = Callable[[Callable[..., Any], Tree, Tree], tuple[Any, Any]]
"""``(step, state, xs) -> (state, ys)``, as `jax.lax.scan` without its options."""


def run(loop: Loop, step: Function, state: Tree, xs: Tree, opening: Opening) -> tuple[Any, Any]:
    """Runs a loop, variables in place where the table says so.

    Args:
      loop: runs a pure body.
      step: ``(state, x) -> (state, y)``.
      state: what the first iteration gets.
      xs: leaves with a leading axis of iterations.
      opening: the loop's, of whose table the variables are.

    Returns:
      what ``loop`` returns.
    """
    x = jax.tree.map(jax_private.element, xs)
    closed, shape = jax.make_jaxpr(step, return_shape=True)(state, x)
    found = _written_in_place(opening, x, shape[1])
    program = jax_private.consts_as_inputs(closed)
    first = len(closed.consts) + len(jax.tree.leaves(state))  # where the inputs of x begin
    after = len(jax.tree.leaves(shape[0]))  # where the outputs of y begin
    body = _Body(program, [(first + k, after + n) for k, n in found.items()])
    # By paths, on both sides in one order: the first that goes in is the first that comes out.
    goes_in = [k in found for k in range(len(jax.tree.leaves(xs)))]
    comes_out = [n in found.values() for n in range(len(jax.tree.leaves(shape[1])))]
    state_def, y_def = jax.tree.structure(state), jax.tree.structure(shape[1])

    def sliced(consts: Leaves, state: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
        def as_it_is(state: Leaves, x: Leaves) -> tuple[Leaves, Leaves]:
            out = jax_private.evaluate(program, [*consts, *state, *x])
            return out[:after], out[after:]

        return loop(as_it_is, state, xs)

    def in_place(consts: Leaves, state: Leaves, xs: Leaves) -> tuple[Leaves, Leaves]:
        wholes, rest = parted(xs, goes_in)

        def writing(
            state: tuple[Leaves, Leaves], i: jax.Array
        ) -> tuple[tuple[Leaves, Leaves], Leaves]:
            # A loop that is written out could take its slices whenever it likes, and XLA for CPUs
            # takes all of them first: a second copy of the weights. With this an iteration's number
            # is known when the one before it is done, and not earlier.
            i, (carry, wholes) = lax.optimization_barrier((i, state))
            own = [_slice(leaf, i) for leaf in joined(wholes, rest, goes_in)]
            out, wholes = body([*consts, *carry, *own], wholes, i)
            return (out[:after], wholes), parted(out[after:], comes_out)[1]

        # An iteration has to know which part is its own: the slice did not say.
        numbers = jnp.arange(len(wholes[0]), dtype=jnp.int32)
        (state, wholes), ys = loop(writing, (state, wholes), numbers)
        return state, joined(wholes, ys, comes_out)

    leaves = (list(closed.consts), jax.tree.leaves(state), jax.tree.leaves(xs))
    # A rule for derivatives takes no effects along; prints are for programs that are looked at.
    if not found or program.effects:
        out, ys = sliced(*leaves)
    else:
        ruled = jax.custom_jvp(in_place)
        # Run only where a derivative is taken; the value is then of this loop too.
        ruled.defjvp(lambda primals, tangents: jax.jvp(sliced, primals, tangents))
        out, ys = ruled(*leaves)
    return jax.tree.unflatten(state_def, out), jax.tree.unflatten(y_def, ys)


def _written_in_place(opening: Opening, x: Tree, y: Tree) -> dict[int, int]:
    """Finds the variables of an iteration that are written where they stand.

    Args:
      opening: of the loop.
      x: what goes in: arguments, groups of variables, keys.
      y: what comes out: arrays, groups of variables.

    Returns:
      for each, its place among the leaves that go in -> that among those that come out.
    """

    def places(slices: Tree) -> dict[KeyPath, tuple[int, jax.ShapeDtypeStruct]]:
        leaves = jax.tree_util.tree_leaves_with_path(slices)
        return {path[1:]: (k, leaf) for k, (path, leaf) in enumerate(leaves) if path[0].idx == 1}

    found, comes_out = dict[int, int](), places(y)
    for path, (k, old) in places(x).items():
        top, col = path[1:3]
        row = opening.tables[top.idx].of(col.key)
        if path in comes_out and row is not None and row.in_place:
            n, new = comes_out[path]
            # One that changes its shape is another array, and cannot lie in the old one's place.
            if (old.shape, old.dtype) == (new.shape, new.dtype):
                found[k] = n
    return found


class _Body:
    """One iteration, cut where it updates a slice.

    Args:
      program: of constants, the state's leaves and x's leaves.
      pairs: the places of an input and of the output that takes its place.
    """

    def __init__(self, program: jex.Jaxpr, pairs: Sequence[tuple[int, int]]):
        self.program = program
        makers = {out: eqn for eqn in program.eqns for out in eqn.outvars}
        # What each equation that updates a slice updates, and the slices that change as a whole.
        self.updates: dict[int, int] = {}
        self.replaced: dict[int, Atom] = {}
        for k, (i, o) in enumerate(pairs):
            # Backwards from what comes out: only a chain of updates, with nothing between, can be
            # made in the whole array.
            found = _updates(program.invars[i], program.outvars[o], makers)
            if found is None:
                self.replaced[k] = program.outvars[o]
            else:
                self.updates.update((id(eqn), k) for eqn in found)
        self.parts: list[Any] = list(self._cut())

    def _cut(self) -> Iterator[jex.JaxprEqn | jex.Jaxpr]:
        """Yields the updates, and the programs of what stands between them."""
        part: list[jex.JaxprEqn] = []
        for eqn in self.program.eqns:
            if id(eqn) in self.updates:
                yield from self._part(part)
                yield eqn
                part = []
            else:
                part.append(eqn)
        yield from self._part(part)

    def _part(self, eqns: list[jex.JaxprEqn]) -> Iterator[jex.Jaxpr]:
        if eqns:
            # All that a part makes is handed out, used or not: what is dead there XLA finds by
            # itself.
            made = list(equations.variables(out for eqn in eqns for out in eqn.outvars))
            used = list(equations.variables(a for eqn in eqns for a in eqn.invars))
            inside = set(made)
            needed = [a for a in dict.fromkeys(used) if a not in inside]
            yield jax_private.rewire(self.program, invars=needed, outvars=made, eqns=eqns)

    def __call__(
        self, inputs: Sequence[Any], wholes: Sequence[jax.Array], i: jax.Array
    ) -> tuple[Leaves, Leaves]:
        """Runs the iteration with number ``i``; returns its outputs and the arrays afterwards."""
        wholes = list(wholes)
        values = dict(zip(self.program.invars, inputs, strict=True))
        read = functools.partial(equations.value_of, values)
        for part in self.parts:
            changed = self.updates.get(id(part))
            if changed is None:
                made = jax_private.evaluate(part, [values[a] for a in part.invars])
                values.update(zip(part.outvars, made, strict=True))
                continue
            _, update, *place = map(read, part.invars)
            # `dynamic_update_slice` wants all of its indices of one dtype, and the body has chosen.
            number = i.astype(jnp.result_type(*place))
            wholes[changed] = lax.dynamic_update_slice(
                wholes[changed], update[None], (number, *place)
            )
            values[part.outvars[0]] = _slice(wholes[changed], i)
        for k, atom in self.replaced.items():
            wholes[k] = lax.dynamic_update_index_in_dim(wholes[k], read(atom), i, 0)
        return [read(atom) for atom in self.program.outvars], wholes


def _slice(whole: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(whole, i, 0, keepdims=False)


def _updates(
    start: Atom, end: Atom, makers: dict[jex.Var, jex.JaxprEqn]
) -> list[jex.JaxprEqn] | None:
    """Returns the updates that make one value of another, None where something else does."""
    found = []
    while end is not start:
        eqn = makers.get(end) if jax_private.is_variable(end) else None
        if eqn is None or not equations.is_update(eqn):
            return None
        found.append(eqn)
        end = eqn.invars[0]
    return found
