"""The loop of a pipeline whose stages all lie on one device: one microbatch after the other.

There a schedule has nothing to gain. Stages that run side by side under one `jax.vmap` compute
their bubbles too, and their products become one batched product, which XLA computes slower on a
CPU than one after the other. So what a pipeline equals is what runs here: the loop over
microbatches of the loop over layers, without a queue, a ring or a bubble.

Layers lie in the order in which they run, ``[layers, ...]``, or ``[microbatches, layers, ...]``
where each microbatch has its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from ...pytrees import floats, is_inexact, joined, parted, split_by, spread, with_floats
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
        each, common = split_by([leaf for leaf, _ in fixed], [alone for _, alone in fixed])
        # What is written and no microbatch has for itself goes from one to the next, as statistics
        # do.
        apart = [alone for _, alone in kept]
        own, handed = parted([leaf for leaf, _ in kept], apart)

        def turn(handed: Leaves, given: list[Leaves]) -> tuple[Leaves, list[Leaves]]:
            part, each, own = given
            out, written = visit(part, [*common.filled(each), *joined(own, handed, apart)])
            own, handed = parted(written[: len(kept)], apart)
            return handed, [out, own, written[len(kept) :]]

        handed, (parts, own, results) = jax.lax.scan(turn, handed, [parts, each, own])
        return parts, joined(own, handed, apart), results


@dataclasses.dataclass(eq=False)
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

    visit: Visit
    loss: Callable[[Leaves, Leaves], jax.Array]
    alone: Sequence[bool]
    cut: Sequence[bool]

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
            its, of_all = parted(slopes, by_each)
            return [a + b for a, b in zip(sums, of_all, strict=True)], (value, its)

        _, whole = parted(floats(given), by_each)
        sums, (values, its) = jax.lax.scan(turn, [jnp.zeros_like(leaf) for leaf in whole], each)
        slopes = spread(given, joined(its, sums, by_each))
        return jnp.sum(values), _in_three(slopes, *ends)


def of_floats(leaves: Leaves, said: Sequence[bool]) -> list[bool]:
    """What is said of the leaves by which there are derivatives."""
    return [s for leaf, s in zip(leaves, said, strict=True) if is_inexact(leaf)]


def _in_three(leaves: list[T], first: int, second: int) -> list[list[T]]:
    return [leaves[:first], leaves[first:second], leaves[second:]]
