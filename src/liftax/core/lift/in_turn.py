"""The loop of a pipeline whose stages all lie on one device: one microbatch after the other.

There a schedule has nothing to gain. Stages that run side by side under one `jax.vmap` compute
their bubbles too, and their products become one batched product, which XLA computes slower on a
CPU than one after the other. So what a pipeline equals is what runs here: the loop over
microbatches of the loop over layers, without a queue, a ring or a bubble.

Layers lie in the order in which they run, ``[layers, ...]``, or ``[microbatches, layers, ...]``
where each microbatch has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...pytrees import floats, is_inexact, split_by, spread, with_floats
from .schedule import Pipeline
from .stages import Leaves, Own, Visit

T = TypeVar("T")
Slopes = list[list[jax.Array | None]]
"""Derivatives by the microbatches, by what the layers have, and by the loss's arguments."""


class InTurn:
    """Microbatches one after the other, each through all layers: the methods are those of `Stages`.

    Args:
      options: the pipeline.
    """

    def __init__(self, options: Pipeline):
        self.options = options

    def by_repeat(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """``[layers, ...]`` in the order in which they run.

        Args:
          leaf: of all layers.
          stored: whether it is stored by stages.
        """
        return self.options.order.running(leaf, 0) if stored else leaf

    def from_repeats(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """Undoes `by_repeat`."""
        return self.options.order.by_stage(leaf, 0) if stored else leaf

    def by_visit(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """``[layers, microbatches, ...]`` as ``[microbatches, layers, ...]``."""
        return jnp.swapaxes(self.by_repeat(leaf, stored), 0, 1)

    def from_visits(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """Undoes `by_visit`."""
        return self.from_repeats(jnp.swapaxes(leaf, 0, 1), stored)

    def everywhere(self, leaf: ArrayLike) -> jax.Array:
        """What all layers share."""
        return jnp.asarray(leaf)

    def run(
        self, visit: Visit, parts: Leaves, fixed: Own, kept: Own
    ) -> tuple[Leaves, Leaves, Leaves]:
        """Runs all microbatches through all layers.

        Args:
          visit: all layers; the first of what they write is what becomes of ``kept``.
          parts: the microbatches, along the first axis.
          fixed: what the layers have.
          kept: what they have and write.

        Returns:
          the microbatches; ``kept``; and what else the layers wrote for each.
        """
        own, alone = [leaf for leaf, _ in (*fixed, *kept)], [one for _, one in (*fixed, *kept)]
        each, common = split_by(own, alone)
        # What no microbatch has for itself goes from one to the next, as statistics do.
        at = [k for k in range(len(fixed), len(own)) if not alone[k]]
        first, handed = len(fixed), [own[k] for k in at]

        def turn(handed: Leaves, given: list[Leaves]) -> tuple[Leaves, list[Leaves]]:
            part, each = given
            now = common.filled(each)
            for k, leaf in zip(at, handed, strict=True):
                now[k] = leaf
            out, written = visit(part, now)
            after = [written[k - first] for k in at]
            return after, [out, [w for k, w in enumerate(written, first) if k not in at]]

        after, (parts, written) = jax.lax.scan(turn, handed, [parts, each])
        ends, apart = iter(after), iter(written)
        kept_after = [next(apart) if one else next(ends) for one in alone[first:]]
        return parts, kept_after, list(apart)


class Accumulated:
    """The loss of what comes out, and its derivatives: ``(parts, own, args) -> (loss, slopes)``.

    Each microbatch goes forward and back before the next one, so that what is stored is of one
    microbatch, and nothing is computed twice.

    Args:
      visit: all layers; they write nothing.
      loss: of one microbatch, and of its arguments.
      alone: whether each microbatch has its own, of what the layers have.
      cut: the same of the loss's arguments.
    """

    def __init__(
        self,
        visit: Visit,
        loss: Callable[[Leaves, Leaves], jax.Array],
        alone: Sequence[bool],
        cut: Sequence[bool],
    ):
        self.visit, self.loss, self.alone, self.cut = visit, loss, alone, cut

    def __call__(self, parts: Leaves, own: Leaves, args: Leaves) -> tuple[jax.Array, Slopes]:
        count, ends = parts[0].shape[0], (len(parts), len(parts) + len(own))
        given, apart = [*parts, *own, *args], [*(True for _ in parts), *self.alone, *self.cut]
        each, common = split_by(given, apart)
        by_each = of_floats(given, apart)

        def turn(sums: Leaves, each: Leaves) -> tuple[Leaves, tuple[jax.Array, Leaves]]:
            now = common.filled(each)

            def lost(some: Leaves) -> jax.Array:
                part, own, args = _in_three(with_floats(now, some), *ends)
                return self.loss(self.visit(part, own)[0], args) / count

            # By floats alone: integers have no derivative that a loop could carry.
            value, pull = jax.vjp(lost, floats(now))
            (slopes,) = pull(jnp.ones_like(value))
            its = [s for s, one in zip(slopes, by_each, strict=True) if one]
            of_all = [s for s, one in zip(slopes, by_each, strict=True) if not one]
            return [a + b for a, b in zip(sums, of_all, strict=True)], (value, its)

        whole = [leaf for leaf, one in zip(floats(given), by_each, strict=True) if not one]
        zeros = [jnp.zeros_like(leaf) for leaf in whole]
        sums, (values, its) = jax.lax.scan(turn, zeros, each)
        moving, still = iter(its), iter(sums)
        slopes = [next(moving) if one else next(still) for one in by_each]
        return jnp.sum(values), _in_three(spread(given, slopes), *ends)


def of_floats(leaves: Leaves, said: Sequence[bool]) -> list[bool]:
    """What is said of the leaves by which there are derivatives."""
    return [s for leaf, s in zip(leaves, said, strict=True) if is_inexact(leaf)]


def _in_three(leaves: list[T], first: int, second: int) -> list[list[T]]:
    return [leaves[:first], leaves[first:second], leaves[second:]]
