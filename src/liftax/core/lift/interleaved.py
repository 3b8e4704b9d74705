"""A pipeline's loss and gradients in one loop: each step runs forward and backward (1F1B).

A stage works back on a microbatch as soon as its neighbour has, so that what it must keep of it is
in a ring as long as the way to the last stage and back, however many microbatches there are.
What is kept is what came in; the layers are computed again.

Stage ``s`` runs microbatch ``m`` forward at step ``m + s`` and backward at step
``m + 2 * (stages - 1) - s``, the last one in the same step. The first stage has then kept it for
``2 * (stages - 1)`` steps in which one more came in each: the ring is ``2 * stages - 1``. It would
be ``stages`` if steps were halves, forward in every other stage and backward in the others; but a
choice by stage under one `jax.vmap` computes both and takes one.

With repeats, ``stages`` microbatches go around all repeats before the next ones come in, and back
around in the other direction; so the n-th visit of a stage, in either direction, is a
place in ``[groups, repeats, stages]``. What comes out of the last stage is in the first one a step
later, as what goes on from any stage to the next; so it goes on through all repeats without a gap,
and is back after ``repeats * stages - 1`` steps more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ...pytrees import floats, spread, with_floats
from .in_turn import Accumulated, InTurn, Slopes, of_floats
from .stages import Leaves, Own, Stages, Visit, choose, on_stages, pick

Loss = Callable[[Leaves, Leaves], jax.Array]
"""The loss of one microbatch: what came out of the layers, and its part of the loss's arguments."""
Part = tuple[jax.Array, bool]
"""An argument of the loss, and whether it has an axis of microbatches in front."""
_Carry = tuple[Leaves, Leaves, Leaves, Leaves, Leaves]


def interleaved(
    stages: Stages | InTurn,
    visit: Visit,
    loss: Loss,
    parts: Leaves,
    own: Own,
    args: Sequence[Part],
) -> jax.Array:
    """Returns the mean of the loss over the microbatches.

    Its derivatives are made in the same loop as its value, and stored.

    Args:
      stages: of the pipeline.
      visit: the layers of one visit; they write nothing.
      loss: of one microbatch.
      parts: the microbatches, along the first axis.
      own: what the layers have.
      args: further arguments of the loss.
    """
    alone, cut = [one for _, one in own], [one for _, one in args]
    run: Callable[[Leaves, Leaves, Leaves], tuple[jax.Array, Slopes]]
    if isinstance(stages, InTurn):
        run = Accumulated(visit, loss, alone, cut)
    else:
        run = _Both(stages, visit, loss, alone, cut)

    @jax.custom_vjp
    def total(parts: Leaves, own: Leaves, args: Leaves) -> jax.Array:
        return run(parts, own, args)[0]

    # The loss is one number, so whatever comes back is a factor of what is stored already.
    def backward(slopes: Slopes, by: jax.Array) -> tuple[list[jax.Array | None], ...]:
        return tuple([s if s is None else (s * by).astype(s.dtype) for s in p] for p in slopes)

    total.defvjp(run, backward)
    return total(parts, [leaf for leaf, _ in own], [leaf for leaf, _ in args])


class _Which(NamedTuple):
    """A visit of each stage: its repeat, its microbatch, and the how many-th it is forward."""

    repeat: jax.Array
    part: jax.Array
    turn: jax.Array


class _Both:
    """The loop: ``(parts, own, args) -> (loss, derivatives)``."""

    def __init__(
        self, stages: Stages, visit: Visit, loss: Loss, alone: Sequence[bool], cut: Sequence[bool]
    ):
        self.stages, self.visit, self.loss, self.alone, self.cut = stages, visit, loss, alone, cut

    def __call__(self, parts: Leaves, own: Leaves, args: Leaves) -> tuple[jax.Array, Slopes]:
        options, ids = self.stages.options, self.stages.ids
        count, last, visits = options.microbatches, options.stages - 1, self.stages.visits
        # The first stage waits longest: the way to the last stage and back.
        ring_size, alone = options.ring, self.alone
        # The last stage works back on a microbatch as soon as it has come to it the last time.
        around = options.stages * options.repeats - 1

        def forward(which: _Which, state: Leaves, own: Leaves) -> Leaves:
            return self.visit(state, self.taken(own, which))[0]

        def back(which: _Which, state: Leaves, own: Leaves, slope: Leaves) -> list[Leaves]:
            now = self.taken(own, which)
            real = [floats(state), floats(now)]

            def again(some: list[Leaves]) -> Leaves:
                return floats(self.visit(with_floats(state, some[0]), with_floats(now, some[1]))[0])

            # By floats alone: integers have no derivative that a loop could carry.
            (slopes,) = jax.vjp(again, real)[1](slope)
            return slopes

        def turn(carry: _Carry, t: jax.Array) -> tuple[_Carry, list[Leaves]]:
            flight, slopes, ring, summed, of_args = carry
            ahead, behind = t - ids, t - around - last + ids
            which = self.which(ahead)
            first = [leaf[which.part[0]] for leaf in parts]
            comes_in = (ids == 0) & (which.repeat == 0)
            state = [
                choose(comes_in, jnp.broadcast_to(f, a.shape), self.stages.moved(a, 1))
                for f, a in zip(first, flight, strict=True)
            ]
            # What lay here has been worked back on by now, by the size of the ring.
            at = t % ring_size
            ring = [self.stages.put(leaf, at, x) for leaf, x in zip(ring, state, strict=True)]
            out = self.stages.vmapped(forward)(which, state, own)

            # The last stage's microbatch: its loss, and what it says of what came out.
            done = which.part[last]
            goes_out = which.repeat[last] == options.repeats - 1
            valid = (t >= last) & (t - last < visits) & goes_out
            its = [leaf[done] if c else leaf for leaf, c in zip(args, self.cut, strict=True)]
            y = [leaf[last] for leaf in out]

            def lost(some: list[Leaves]) -> jax.Array:
                return self.loss(with_floats(y, some[0]), with_floats(its, some[1])) / count

            value, (slope, more) = jax.value_and_grad(lost)([floats(y), floats(its)])

            # Back: each stage on what it has kept longest.
            which = self.which(behind, back=True)
            kept = [
                jax.vmap(lambda leaf, at: leaf[at])(leaf, (which.turn + ids) % ring_size)
                for leaf in ring
            ]
            begins = (ids == last) & (which.repeat == options.repeats - 1)
            slopes = [
                choose(begins, jnp.broadcast_to(a, b.shape), self.stages.moved(b, -1))
                for a, b in zip(slope, slopes, strict=True)
            ]
            slopes, own_slopes = self.stages.vmapped(back)(which, kept, own, slopes)
            is_one = (behind >= 0) & (behind < visits)
            # Zero where the stage has no microbatch, and not skipped: all stages run one program.
            summed = [
                self.added(total, jnp.where(_wide(is_one, s), s, 0), which, one)
                for total, s, one in zip(summed, own_slopes, of_floats(own, alone), strict=True)
            ]
            more = [jnp.where(valid, s, 0) for s in more]
            cuts = of_floats(args, self.cut)
            of_args = [
                total if c else total + s for total, s, c in zip(of_args, more, cuts, strict=True)
            ]
            # Arguments that are cut have a derivative for each microbatch; of others there is one
            # sum.
            apart = [s for s, c in zip(more, cuts, strict=True) if c]
            carry = out, slopes, ring, summed, of_args
            return carry, [[jnp.where(valid, value, 0)], [s[0] for s in slopes], apart]

        empty = [
            on_stages(jnp.zeros((last + 1, *leaf.shape[1:]), leaf.dtype), options.axis)
            for leaf in parts
        ]
        ring = [jnp.stack([leaf] * ring_size, 1) for leaf in empty]
        summed = [jnp.zeros_like(leaf) for leaf in floats(own)]
        of_args = [jnp.zeros_like(leaf) for leaf in floats(args)]
        before = empty, floats(empty), ring, summed, of_args
        end, out = jax.lax.scan(turn, before, jnp.arange(visits + around + last))
        (_, _, _, summed, of_args), (values, of_parts, apart) = end, out
        # The steps in which a microbatch went out of the last stage, and back out of the first.
        numbers = np.arange(count)
        groups, rest = np.divmod(numbers, options.stages)
        went = groups * (around + 1) + (options.repeats - 1) * options.stages + rest + last
        each = iter(apart)
        of_args = [
            next(each)[went] if c else s
            for s, c in zip(of_args, of_floats(args, self.cut), strict=True)
        ]
        grads = [
            spread(parts, [s[went + around] for s in of_parts]),
            spread(own, summed),
            spread(args, of_args),
        ]
        return jnp.sum(values[0]), grads

    def which(self, turn: jax.Array, back: bool = False) -> _Which:
        """The visit that a stage makes n-th in one direction; any, where there is none."""
        stages, repeats = self.stages.options.order
        turn = jnp.clip(turn, 0, self.stages.visits - 1)
        group, rest = turn // (stages * repeats), turn % (stages * repeats)
        repeat = repeats - 1 - rest // stages if back else rest // stages
        turn = (group * repeats + repeat) * stages + rest % stages
        return _Which(repeat, group * stages + rest % stages, turn)

    def taken(self, own: Leaves, which: _Which) -> Leaves:
        """What a visit has of its stage's."""
        number = which.repeat * self.stages.options.microbatches + which.part
        return [
            pick(leaf, number if one else which.repeat)
            for leaf, one in zip(own, self.alone, strict=True)
        ]

    def added(self, total: jax.Array, slope: jax.Array, which: _Which, alone: bool) -> jax.Array:
        """Adds derivatives by what one visit had to those by what all have."""
        if total.shape[1] == 1:
            return on_stages(total + slope[:, None], self.stages.options.axis)
        number = which.repeat * self.stages.options.microbatches + which.part
        at = number if alone else which.repeat
        added = jax.vmap(lambda leaf, s, at: leaf.at[at].add(s))(total, slope, at)
        return on_stages(added, self.stages.options.axis)


def _wide(which: jax.Array, like: jax.Array) -> jax.Array:
    return which.reshape(-1, *(1,) * (like.ndim - 1))
