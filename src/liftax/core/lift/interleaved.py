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

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...pytrees import floats, joined, parted, split_by, spread, with_floats
from .in_turn import Accumulated, InTurn, Slopes, of_floats
from .stages import Leaves, Own, Stages, Visit, choose, pick

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

    def run(parts: Leaves, own: Leaves, args: Leaves) -> tuple[jax.Array, Slopes]:
        if isinstance(stages, InTurn):
            return Accumulated(visit, loss, alone, cut)(parts, own, args)
        return _Both(stages, visit, loss, alone, cut, parts, own, args).run()

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


@dataclasses.dataclass(eq=False)
class _Both:
    """The loop of one call: the loss, and its derivatives by what it is made of.

    Args:
      stages, visit, loss, parts: as of `interleaved`.
      own, args: what the layers have, and the loss's arguments.
      alone, cut: of each of those whether a microbatch has its own.
    """

    stages: Stages
    visit: Visit
    loss: Loss
    alone: Sequence[bool]
    cut: Sequence[bool]
    parts: Leaves
    own: Leaves
    args: Leaves

    def __post_init__(self) -> None:
        stages, options = self.stages, self.stages.options
        self.last = options.stages - 1
        # The last stage works back on a microbatch as soon as it has come to it the last time.
        self.around = options.stages * options.repeats - 1
        # An argument that is cut is needed in the last stage; it goes there with its microbatch.
        each, self.whole = split_by(self.args, self.cut)
        self.queue = [stages.slots(leaf) for leaf in (*self.parts, *each)]
        # Of what there are derivatives by: whether it is cut, whether each microbatch has its own.
        self.floats_cut = of_floats(self.args, self.cut)
        self.floats_alone = of_floats(self.own, self.alone)

    def run(self) -> tuple[jax.Array, Slopes]:
        """Runs all steps."""
        steps = jnp.arange(self.stages.visits + self.around + self.last)
        end, values = jax.lax.scan(self.turn, self.before(), steps)

        def in_order(queues: Leaves) -> Leaves:
            return [leaf.reshape(-1, *leaf.shape[2:])[self.stages.spare :] for leaf in queues]

        of_whole = [leaf.sum(0) for leaf in end.of_whole]
        of_args = joined(in_order(end.of_cut), of_whole, self.floats_cut)
        slopes = [in_order(end.of_parts), end.of_own, of_args]
        both = zip((self.parts, self.own, self.args), slopes, strict=True)
        return jnp.sum(values), [spread(leaves, its) for leaves, its in both]

    def before(self) -> _Carry:
        """What the first step gets: zeros, for derivatives."""
        options, lanes, width = self.stages.options, self.stages.lanes, len(self.parts)
        # Whatever a stage without a microbatch runs on, it is a real one.
        blank = [leaf[:, 0] for leaf in self.queue]
        _, whole = parted(floats(self.args), self.floats_cut)
        return _Carry(
            belt=blank,
            flight=blank,
            slopes=[jnp.zeros_like(leaf) for leaf in floats(blank[:width])],
            ring=[jnp.stack([leaf] * options.ring, 1) for leaf in blank[:width]],
            of_parts=[jnp.zeros_like(leaf) for leaf in floats(self.queue[:width])],
            of_own=[jnp.zeros_like(leaf) for leaf in floats(self.own)],
            of_cut=[jnp.zeros_like(leaf) for leaf in floats(self.queue[width:])],
            of_whole=[
                self.stages.laid(jnp.zeros((lanes, *leaf.shape), leaf.dtype)) for leaf in whole
            ],
        )

    def turn(self, carry: _Carry, t: jax.Array) -> tuple[_Carry, jax.Array]:
        """One step of all stages; its part of the loss."""
        stages, options, last = self.stages, self.stages.options, self.last
        belt, came_in = self.arrived(carry, t)
        state, its = came_in[: len(self.parts)], came_in[len(self.parts) :]
        # What lay here has been worked back on by now, by the size of the ring.
        at = t % options.ring
        ring = [stages.put(leaf, at, x) for leaf, x in zip(carry.ring, state, strict=True)]
        out = stages.vmapped(self.forward)(self.which(t - stages.ids), state, self.own)

        # The loss is made where its microbatch is. All devices run one program: each makes one
        # of what it has, of which that in the last stage counts.
        value, (slope, more) = stages.vmapped(self.lost)(*map(stages.ends, (out, its)))
        ends = self.which(t - last)
        done = (t >= last) & (t - last < stages.visits) & (ends.repeat == options.repeats - 1)
        counts = done & (jnp.arange(stages.lanes) == stages.lanes - 1)
        slopes, of_own = self.worked_back(carry, ring, slope, t)

        # The derivatives of the microbatches that are done, to where those lie.
        by_part, by_all = parted(more, self.floats_cut)
        of_whole = [
            total + choose(counts, s, 0) for total, s in zip(carry.of_whole, by_all, strict=True)
        ]
        leaves = self.which(t - self.around - last, back=True)
        gone = (t >= self.around + last) & (leaves.repeat == 0)
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

    # --- what one stage does --------------------------------------------------

    def forward(self, which: _Which, state: Leaves, own: Leaves) -> Leaves:
        """One visit."""
        return self.visit(state, self.taken(own, which))[0]

    def lost(self, y: Leaves, its: Leaves) -> tuple[jax.Array, list[Leaves]]:
        """The loss of a microbatch, and its derivatives by what came out and by its arguments."""
        args = self.whole.filled(its)

        def loss_of(some: list[Leaves]) -> jax.Array:
            loss = self.loss(with_floats(y, some[0]), with_floats(args, some[1]))
            return loss / self.stages.options.microbatches

        return jax.value_and_grad(loss_of)([floats(y), floats(args)])

    def back(self, which: _Which, state: Leaves, own: Leaves, slope: Leaves) -> list[Leaves]:
        """One visit backward: the derivatives by what went in, and by what the layers have."""
        now = self.taken(own, which)

        def again(some: list[Leaves]) -> Leaves:
            return floats(self.visit(with_floats(state, some[0]), with_floats(now, some[1]))[0])

        # By floats alone: integers have no derivative that a loop could carry.
        (slopes,) = jax.vjp(again, [floats(state), floats(now)])[1](slope)
        found: list[Leaves] = slopes
        return found

    # --- what all stages do ---------------------------------------------------

    def arrived(self, carry: _Carry, t: jax.Array) -> tuple[Leaves, Leaves]:
        """What goes by the stages on its way to the first one, and what each has come to run on.

        Microbatches lie on all stages, in their order. Each sets out as early as it is far, so that
        they arrive in the first stage one after the other, and none has to be sent to all.
        """
        # Of the stages at the ends what is known is counted, here and in `turn`: what they have by
        # stages would be sent.
        stages, ids, enters = self.stages, self.stages.ids, self.which(t)
        comes_in = (t < stages.visits) & (enters.repeat == 0)
        coming = enters.part + ids
        sets_out = coming // stages.size == ids
        belt = [
            jnp.where(
                comes_in,
                choose(sets_out, jax.vmap(pick)(leaf, coming % stages.size), stages.moved(b, -1)),
                b,
            )
            for leaf, b in zip(self.queue, carry.belt, strict=True)
        ]
        first = (ids == 0) & (enters.repeat == 0)
        return belt, [
            choose(first, b, stages.moved(a, 1)) for b, a in zip(belt, carry.flight, strict=True)
        ]

    def worked_back(
        self, carry: _Carry, ring: Leaves, slope: Leaves, t: jax.Array
    ) -> tuple[Leaves, Leaves]:
        """Each stage's visit backward, on what it has kept longest.

        Args:
          carry: of the step.
          ring: what each stage has kept.
          slope: derivatives by what came out of the last stage.
          t: the step.

        Returns:
          derivatives by what each stage has worked back on, and the sums of those by what the
          layers have.
        """
        stages, ids, options = self.stages, self.stages.ids, self.stages.options
        behind = t - self.around - self.last + ids
        which = self.which(behind, back=True)
        kept = [jax.vmap(pick)(leaf, (which.turn + ids) % options.ring) for leaf in ring]
        begins = (ids == self.last) & (which.repeat == options.repeats - 1)
        slopes = [
            choose(begins, stages.of_ends(a), stages.moved(b, -1))
            for a, b in zip(slope, carry.slopes, strict=True)
        ]
        slopes, own_slopes = stages.vmapped(self.back)(which, kept, self.own, slopes)
        is_one = (behind >= 0) & (behind < stages.visits)
        # Zero where the stage has no microbatch, and not skipped: all stages run one program.
        of_own = [
            self.added(total, choose(is_one, s, 0), which, alone)
            for total, s, alone in zip(carry.of_own, own_slopes, self.floats_alone, strict=True)
        ]
        return slopes, of_own

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
            return self.stages.laid(total + slope[:, None])
        number = which.repeat * self.stages.options.microbatches + which.part
        at = number if alone else which.repeat
        return self.stages.laid(jax.vmap(lambda leaf, s, at: leaf.at[at].add(s))(total, slope, at))
