"""Which layers of a stack run: some of them, as many as a traced number says, or those of a mask.

A loop over some repeats is a loop over their slices. Where values say which ones run, each
iteration chooses between the layer and nothing. Of what is left out, variables stay as they are,
and outputs are zero until those of the layers that ran are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .. import jax_private
from ..errors import StackError
from ..words import describe
from .storage import StackLayout

Step = Callable[[Any, Any], tuple[Any, Any]]
Loop = Callable[[Step, Any, Any, int], tuple[Any, Any]]
"""``(step, carry, xs, length) -> (carry, ys)``."""


@dataclass(frozen=True)
class Chosen:
    """The layers that run.

    Attributes:
      before, rows, after: the numbers of those before the pattern, of the repeats, and of those
        after it.
      on: for each repeat whether it runs, where only values know it.
    """

    before: range
    rows: range
    after: range
    on: jax.Array | None = None

    def over(self, loop: Loop, step: Step, carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
        """Runs a loop over the repeats that were chosen; the outputs are of all.

        Args:
          loop: runs a step on slices.
          step: ``(carry, x) -> (carry, y)``, pure.
          carry: what the first iteration gets.
          xs: leaves with a leading axis of all repeats.
          length: how many repeats there are.
        """
        if self.on is None:
            return self._part(loop, step, carry, xs)
        element = jax.tree.map(jax_private.element, xs)
        # Traced here, once: the branch that leaves the layer out needs the shapes of what the layer
        # gives, before `cond` traces anything.
        closed, shapes = jax.make_jaxpr(step, return_shape=True)(carry, element)
        program, treedef = jax_private.consts_as_inputs(closed), jax.tree.structure(shapes)

        def run(carry: Any, x: Any) -> Any:
            found = jax_private.evaluate(
                program, [*closed.consts, *jax.tree.leaves(carry), *jax.tree.leaves(x)]
            )
            return jax.tree.unflatten(treedef, found)

        def leave(carry: Any, x: Any) -> Any:
            # Both branches must return one structure, so what was left out gives something too.
            return carry, _paired(
                x, shapes[1], lambda old, y: jnp.zeros(y.shape, y.dtype) if old is None else old
            )

        def gated(carry: Any, x: Any) -> Any:
            return jax.lax.cond(x[0], run, leave, carry, x[1])

        return loop(gated, carry, (self.on, xs), length)

    def _part(self, loop: Loop, step: Step, carry: Any, xs: Any) -> tuple[Any, Any]:
        start, stop = self.rows.start, self.rows.stop
        part = jax.tree.map(lambda x: x[start:stop], xs)
        # A loop of no iterations is not run: its outputs have shapes all the same.
        if self.rows:
            carry, ys = loop(step, carry, part, len(self.rows))
        else:
            element = jax.tree.map(jax_private.element, xs)
            shapes = jax.eval_shape(step, carry, element)[1]
            ys = jax.tree.map(lambda y: jnp.zeros((0, *y.shape), y.dtype), shapes)

        # Callers take a stack's variables back whole, whichever layers ran.
        def whole(old: Any, y: Any) -> Any:
            length = len(jax.tree.leaves(xs)[0])
            sizes = ((0, start), (stop, length))
            ends = [
                jnp.zeros((b - a, *y.shape[1:]), y.dtype) if old is None else old[a:b]
                for a, b in sizes
            ]
            return jnp.concatenate([ends[0], y, ends[1]])

        return carry, _paired(xs, ys, whole)


def _paired(xs: Any, ys: Any, change: Callable[[Any, Any], Any]) -> Any:
    """Changes what an iteration gives, each variable in it beside what was given for that.

    Both are triples or pairs of which the second has the variables: axis, scope, collection, path.
    """
    # By path and not by position: a layer may write variables that were not there, and need not
    # write those that were.
    given = {
        path[1:]: leaf
        for path, leaf in jax.tree.leaves_with_path(xs)
        if len(path) > 3 and path[0].idx == 1
    }

    def one(path: Any, y: Any) -> Any:
        is_variable = len(path) > 3 and path[0].idx == 1
        return change(given.get(path[1:]) if is_variable else None, y)

    return jax.tree.map_with_path(one, ys)


def chosen(layers: Any, at: StackLayout, place: str) -> Chosen:
    """Reads ``layers=`` of a call.

    Args:
      layers: a slice of layers, a number of them (the first ones), or a bool for each.
      at: the layers.
      place: the stack, for messages.

    Raises:
      StackError: it is none of these, or the stack cannot run these layers.
    """
    count = len(at)
    if isinstance(layers, slice):
        return _of_slice(layers, at, place)
    # A bool is an int to Python, and a list of one bool means one layer: neither is a number.
    is_one = getattr(layers, "ndim", 0) == 0 and not isinstance(layers, (list, tuple, bool))
    if is_one and not isinstance(layers, jax.core.Tracer) and hasattr(layers, "__index__"):
        number = layers.__index__()
        if not 0 <= number <= count:
            raise StackError(f"{place}: layers={number}, and the stack has {count} layers")
        return _of_slice(slice(0, number), at, place)
    # From here on the numbers are values. A slice of a stacked array needs them as Python knows
    # them, so every repeat runs, or is passed over by a `cond`.
    array = jnp.asarray(layers)
    if at.before or at.after or at.positions != 1:
        raise StackError(
            f"{place}: which layers run is known from values only, and that is for a stack of "
            f"one repeated layer.\n"
            f"found: {at.before} layers before, a pattern of {at.positions}, {at.after} after\n"
            f"expected: layers= as a slice or an int, or a stack of that kind"
        )
    if array.ndim == 0 and jnp.issubdtype(array.dtype, jnp.integer):
        on = jnp.arange(count) < array
    elif array.shape == (count,) and array.dtype == bool:
        on = array
    else:
        raise StackError(
            f"{place}: layers expected a slice, an int, or {count} bools, one for each layer; "
            f"found {describe(array)}"
        )
    return Chosen(range(0), range(count), range(0), on)


def _of_slice(layers: slice, at: StackLayout, place: str) -> Chosen:
    start, stop, step = layers.indices(len(at))
    if step != 1:
        raise StackError(
            f"{place}: layers={layers} has a step; expected layers one after the other"
        )
    # An empty slice may end before it begins, as those of Python's lists.
    stop = max(start, stop)
    first, last = at.before, at.before + at.positions * at.repeats
    # The slice, cut to the repeats. Where it lies in the layers before or after, nothing is left of
    # it, wherever in a repeat it then ends.
    inside = [min(max(n, first), last) - first for n in (start, stop)]
    if inside[0] != inside[1] and any(n % at.positions for n in inside):
        raise StackError(
            f"{place}: layers={layers} begins or ends within a repeat of the pattern of "
            f"{at.positions} layers.\n"
            f"expected: whole repeats; the pattern begins at layer {first}"
        )
    rows = range(inside[0] // at.positions, inside[1] // at.positions)
    if inside[0] == inside[1]:
        rows = range(0)
    before = range(min(start, first), min(stop, first))
    after = range(max(start, last) - last, max(stop, last) - last)
    return Chosen(before, rows, after)


@dataclass(frozen=True)
class Way:
    """What one call of a stack asks for.

    Attributes:
      method: the method of the layers that runs.
      layers: which of them run, None for all.
      reverse: whether the last one runs first.
    """

    method: str = "__call__"
    layers: Any = None
    reverse: bool = False


def kept(written: Mapping[str, bool], place: str) -> None:
    """Refuses to leave out layers where variables of both kinds are written.

    Args:
      written: collection with an axis of layers that may be written -> whether it is in place.
    """
    if len(set(written.values())) == 2:
        raise StackError(
            f"{place}: layers= with {' and '.join(sorted(written))} mutable, of which some are "
            f"written in place and others are not; let one kind be immutable in this call"
        )
