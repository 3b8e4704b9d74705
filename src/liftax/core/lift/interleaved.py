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

Nothing of the batch is sent to all. Microbatches lie on all stages and move up to the first, with
their part of the loss's arguments, which goes on to the last stage beside them; the loss is made
there. Derivatives by a microbatch move from the end of such a queue to where it lies.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...pytrees import floats, split_by, spread, with_floats
from .in_turn import Accumulated, InTurn, Slopes, of_floats
from .stages import Leaves, Own, Stages, Visit, choose, on_stages, pick

Loss = Callable[[Leaves, Leaves], jax.Array]
"""The loss of one microbatch: what came out of the layers, and its part of the loss's arguments."""
Part = tuple[jax.Array, bool]
"""An argument of the loss, and whether it has an axis of microbatches in front."""


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


class _Carry(NamedTuple):
    """What a step hands to the next, all by stages.

    Attributes:
      belt: microbatches, and their part of the loss's arguments, on the way to the first stage.
      flight: those on the way through the stages.
      slopes: derivatives on the way back through them.
      ring: what came into each stage, as long as it is needed.
      of_parts, of_own, of_cut, of_whole: derivatives by the microbatches, by what the layers have,
        by arguments of the loss that each microbatch has a part of, by all others.
    """

    belt: Leaves
    flight: Leaves
    slopes: Leaves
    ring: Leaves
    of_parts: Leaves
    of_own: Leaves
    of_cut: Leaves
    of_whole: Leaves


class _Both:
    """The loop: ``(parts, own, args) -> (loss, derivatives)``."""

    def __init__(
        self, stages: Stages, visit: Visit, loss: Loss, alone: Sequence[bool], cut: Sequence[bool]
    ):
        self.stages, self.visit, self.loss, self.alone, self.cut = stages, visit, loss, alone, cut

    def __call__(self, parts: Leaves, own: Leaves, args: Leaves) -> tuple[jax.Array, Slopes]:
        stages, options, ids = self.stages, self.stages.options, self.stages.ids
        last, visits, lanes = options.stages - 1, stages.visits, stages.lanes
        # The last stage works back on a microbatch as soon as it has come to it the last time.
        around = options.stages * options.repeats - 1
        # An argument that is cut is needed in the last stage; it goes there with its microbatch.
        each, whole = split_by(args, self.cut)
        queue = [stages.slots(leaf) for leaf in (*parts, *each)]
        width = len(parts)
        cut, alone = of_floats(args, self.cut), of_floats(own, self.alone)

        def forward(which: _Which, state: Leaves, own: Leaves) -> Leaves:
            return self.visit(state, self.taken(own, which))[0]

        def loss_of(y: Leaves, its: Leaves) -> tuple[jax.Array, list[Leaves]]:
            args = whole.filled(its)

            def lost(some: list[Leaves]) -> jax.Array:
                loss = self.loss(with_floats(y, some[0]), with_floats(args, some[1]))
                return loss / options.microbatches

            return jax.value_and_grad(lost)([floats(y), floats(args)])

        def back(which: _Which, state: Leaves, own: Leaves, slope: Leaves) -> list[Leaves]:
            now = self.taken(own, which)
            real = [floats(state), floats(now)]

            def again(some: list[Leaves]) -> Leaves:
                return floats(self.visit(with_floats(state, some[0]), with_floats(now, some[1]))[0])

            # By floats alone: integers have no derivative that a loop could carry.
            (slopes,) = jax.vjp(again, real)[1](slope)
            return slopes

        def turn(carry: _Carry, t: jax.Array) -> tuple[_Carry, jax.Array]:
            ahead, behind = t - ids, t - around - last + ids
            which, which_back = self.which(ahead), self.which(behind, back=True)
            # Of the stages at both ends, counted anew: what they have by stages would be sent.
            enters, ends, leaves = (
                self.which(t),
                self.which(t - last),
                self.which(t - around - last, back=True),
            )
            comes_in = (t < visits) & (enters.repeat == 0)
            belt = self.arriving(queue, carry.belt, enters.part, comes_in)
            state = [
                choose((ids == 0) & (enters.repeat == 0), b, stages.moved(a, 1))
                for b, a in zip(belt, carry.flight, strict=True)
            ]
            state, its = state[:width], state[width:]
            # What lay here has been worked back on by now, by the size of the ring.
            at = t % options.ring
            ring = [stages.put(leaf, at, x) for leaf, x in zip(carry.ring, state, strict=True)]
            out = stages.vmapped(forward)(which, state, own)

            # The loss is made where its microbatch is. All devices run one program: each makes one
            # of what it has, of which that in the last stage counts.
            value, (slope, more) = stages.vmapped(loss_of)(*map(stages.ends, (out, its)))
            done = (t >= last) & (t - last < visits) & (ends.repeat == options.repeats - 1)
            counts = done & (jnp.arange(lanes) == lanes - 1)

            # Back: each stage on what it has kept longest.
            kept = [jax.vmap(pick)(leaf, (which_back.turn + ids) % options.ring) for leaf in ring]
            begins = (ids == last) & (which_back.repeat == options.repeats - 1)
            slopes = [
                choose(begins, stages.of_ends(a), stages.moved(b, -1))
                for a, b in zip(slope, carry.slopes, strict=True)
            ]
            slopes, own_slopes = stages.vmapped(back)(which_back, kept, own, slopes)
            is_one = (behind >= 0) & (behind < visits)
            # Zero where the stage has no microbatch, and not skipped: all stages run one program.
            of_own = [
                self.added(total, choose(is_one, s, 0), which_back, one)
                for total, s, one in zip(carry.of_own, own_slopes, alone, strict=True)
            ]
            by_part = [s for s, c in zip(more, cut, strict=True) if c]
            by_all = [s for s, c in zip(more, cut, strict=True) if not c]
            of_whole = [
                total + choose(counts, s, 0)
                for total, s in zip(carry.of_whole, by_all, strict=True)
            ]

            gone = (t >= around + last) & (leaves.repeat == 0)
            of_parts = [
                self.entered(queue, leaves.part, gone, s, 0)
                for queue, s in zip(carry.of_parts, slopes, strict=True)
            ]
            of_cut = [
                self.entered(queue, ends.part, done, stages.of_ends(s), last)
                for queue, s in zip(carry.of_cut, by_part, strict=True)
            ]
            flight = [*out, *its]
            after = _Carry(belt, flight, slopes, ring, of_parts, of_own, of_cut, of_whole)
            return after, jnp.where(counts, value, 0)

        # Whatever a stage without a microbatch runs on, it is a real one.
        blank = [leaf[:, 0] for leaf in queue]
        before = _Carry(
            belt=blank,
            flight=blank,
            slopes=[jnp.zeros_like(leaf) for leaf in floats(blank[:width])],
            ring=[jnp.stack([leaf] * options.ring, 1) for leaf in blank[:width]],
            of_parts=[jnp.zeros_like(leaf) for leaf in floats(queue[:width])],
            of_own=[jnp.zeros_like(leaf) for leaf in floats(own)],
            of_cut=[jnp.zeros_like(leaf) for leaf in floats(queue[width:])],
            of_whole=[
                on_stages(jnp.zeros((lanes, *leaf.shape), leaf.dtype), options.axis)
                for leaf, c in zip(floats(args), cut, strict=True)
                if not c
            ],
        )
        end, values = jax.lax.scan(turn, before, jnp.arange(visits + around + last))

        def in_order(queues: Leaves) -> Leaves:
            return [leaf.reshape(-1, *leaf.shape[2:])[stages.spare :] for leaf in queues]

        by_part, by_all = iter(in_order(end.of_cut)), iter(end.of_whole)
        of_args = [next(by_part) if c else next(by_all).sum(0) for c in cut]
        slopes = [in_order(end.of_parts), end.of_own, of_args]
        both = zip((parts, own, args), slopes, strict=True)
        return jnp.sum(values), [spread(leaves, its) for leaves, its in both]

    def arriving(self, queue: Leaves, belt: Leaves, number: jax.Array, takes: jax.Array) -> Leaves:
        """What goes by each stage on the way to the first one.

        Microbatches lie on all stages, in their order. Each sets out as early as it is far, so that
        they arrive in the first stage one after the other, and none has to be sent to all.

        Args:
          queue: all of them.
          belt: what went by a step before.
          number: the one that arrives now.
          takes: whether one does.
        """
        coming, size = number + self.stages.ids, self.stages.size
        sets_out = coming // size == self.stages.ids
        return [
            jnp.where(
                takes,
                choose(sets_out, jax.vmap(pick)(leaf, coming % size), self.stages.moved(b, -1)),
                b,
            )
            for leaf, b in zip(queue, belt, strict=True)
        ]

    def entered(
        self, queue: jax.Array, number: jax.Array, now: jax.Array, new: jax.Array, at: int
    ) -> jax.Array:
        """A queue of all microbatches after one has come in at its end, the last stage.

        Args:
          queue: whose places move up by one where one comes in, so that the last one is the last.
          number: of the microbatch.
          now: whether one comes in.
          new: by stages.
          at: the stage that has it: the last, or the first, from which it goes around the corner.
        """
        stages, ids = self.stages, self.stages.ids
        column = (number + stages.spare) % stages.size
        old = queue[:, column]
        if at == 0:
            moved = stages.moved(choose(ids == 0, new, old), -1)
        else:
            moved = choose(ids == at, new, stages.moved(old, -1))
        return stages.put(queue, column, jnp.where(now, moved, old))

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
