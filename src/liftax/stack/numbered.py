"""Loops in loops that go over the numbers of layers: a layer's slice is taken where it is used.

A scan over groups hands each group its slice of a stacked array, a copy of the weights of all its
layers; their gradients come back as another. Over numbers no group has an array of its own: the
innermost body reads its slice of the whole.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from ..pytrees import is_inexact, joined, parted

Step = Callable[[object, object], tuple[object, object]]
Leaves = list[jax.Array]


class Threaded(NamedTuple):
    """What goes through a loop over numbers.

    Attributes:
      carry: what goes through the loop over slices.
      wholes: the arrays of all layers, for the sake of their derivative.
    """

    carry: object
    wholes: Leaves


def by_number(
    step: Step, carry: object, xs: object, length: int
) -> tuple[Step, Threaded, jax.Array]:
    """Returns a step over numbers that does what a step over slices does, its carry, the numbers.

    Args:
      step: ``(carry, x) -> (carry, y)``.
      carry: the first carry.
      xs: leaves with a leading axis of ``length``.
      length: the number of steps.
    """
    leaves, treedef = jax.tree.flatten(xs)
    moved = [is_inexact(leaf) for leaf in leaves]  # may have a derivative
    wholes, others = parted(leaves, moved)

    def numbered(state: object, i: object) -> tuple[Threaded, object]:
        assert isinstance(state, Threaded) and isinstance(i, jax.Array)
        taken, carried = _taken(wholes, state.wholes, i)
        x = joined(taken, [_slice(leaf, i) for leaf in others], moved)
        after, y = step(state.carry, jax.tree.unflatten(treedef, x))
        return Threaded(after, carried), y

    return numbered, Threaded(carry, wholes), jnp.arange(length, dtype=jnp.int32)


def _slice(whole: jax.Array, i: jax.Array) -> jax.Array:
    return lax.dynamic_index_in_dim(whole, i, 0, keepdims=False)


# The loop of the backward pass must carry the gradient of all layers and write each layer's into
# it; XLA does that in place. Of an array that a loop closes over JAX makes one gradient a group and
# adds them up, so what is differentiated goes along as a carry. Its values are read from outside of
# the loop all the same: a carry is stored for each turn that is computed again. And that it comes
# back as it went in is hidden in a rule: `jax.lax.scan` would make an array closed over of it.
@jax.custom_jvp
def _taken(values: Leaves, carried: Leaves, i: jax.Array) -> tuple[Leaves, Leaves]:
    """The slices with number ``i`` of arrays, and the same arrays as the loop carries them.

    The slices' derivative is that of the carried ones.
    """
    return [_slice(value, i) for value in values], carried


@_taken.defjvp
def _moved(
    primals: tuple[Leaves, Leaves, jax.Array], tangents: tuple[Leaves, Leaves, jax.Array]
) -> tuple[tuple[Leaves, Leaves], tuple[Leaves, Leaves]]:
    values, carried, i = primals
    _, moved, _ = tangents
    # The values plainly, and not by this rule again: what is computed again would need the carry,
    # and store it for each turn. A derivative of this derivative is that of the values, the same.
    taken = [_slice(value, i) for value in values]
    return (taken, carried), ([_slice(whole, i) for whole in moved], moved)
