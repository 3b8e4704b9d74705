"""The pure loop of a pipeline: every step is one `jax.vmap` over the stages.

Layers lie in the order of the loop ``[repeats, stages, layers of a visit]``, and are brought to
``[stages, repeats, ...]``, or to ``[stages, visits, ...]`` where each microbatch has its own; what
is stored by stages lies so already, and stays on its part of the mesh. All
that has an axis of stages is split along it over the mesh. In a step each stage hands what it made
to its neighbour, the queue of microbatches moves up by one, and all else stays where it is: of that
the compiler makes permutes between neighbours and nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import AxisType, PartitionSpec
from jax.typing import ArrayLike

from .schedule import NAN, Pipeline

T = TypeVar("T")
Leaves = list[jax.Array]
Visit = Callable[[Leaves, Leaves], tuple[Leaves, Leaves]]
"""The layers of one visit: what goes through them, and what they have. Returns what went through
them, and what they wrote."""
Stage = Callable[[jax.Array, jax.Array, Leaves, Leaves, Leaves], tuple[Leaves, Leaves]]
"""A visit in its stage: whether it is one, its number, and what the whole stage has."""
Own = Sequence[tuple[jax.Array, bool]]
"""What the layers have, by stages, and whether each microbatch has its own."""
_Carry = tuple[Leaves, tuple[Leaves, ...], Leaves, Leaves]


def takes_again(stage: Stage) -> Stage:
    """Stores all that a visit makes, but not what it takes of the layers' own."""
    return jax.checkpoint(stage, policy=_made, prevent_cse=False)


def _made(primitive: Primitive, *_: object, **__: object) -> bool:
    return primitive.name not in ("dynamic_slice", "gather")


class Stages:
    """The stages of one pipeline.

    Args:
      options: the pipeline.
      layers: how many layers a visit has.
      again: makes a visit one that is computed again in the backward pass. What a visit takes of
        what the layers have is another part in each step, and is not to be stored for each.
    """

    def __init__(
        self, options: Pipeline, layers: int, again: Callable[[Stage], Stage] = takes_again
    ):
        self.options, self.layers, self.again = options, layers, again
        self.visits = options.repeats * options.microbatches
        self.ids = jnp.arange(options.stages)
        self.lanes = devices_along(options.axis)
        # A queue of all microbatches, in order, the first ones in the first slot.
        self.size = -(-options.microbatches // options.stages)
        self.spare = self.size * options.stages - options.microbatches

    # --- layers as stages -----------------------------------------------------

    def by_repeat(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """``[layers, ...]`` as ``[stages, repeats, layers of a visit, ...]``.

        Args:
          leaf: of all layers.
          stored: whether it is stored by stages, and not in the order in which they run.
        """
        options, rest = self.options, leaf.shape[1:]
        if stored:
            leaf = leaf.reshape(options.stages, options.repeats, self.layers, *rest)
        else:
            leaf = leaf.reshape(options.repeats, options.stages, self.layers, *rest)
            leaf = jnp.swapaxes(leaf, 0, 1)
        return self.laid(leaf)

    def from_repeats(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """Undoes `by_repeat`."""
        leaf = leaf if stored else jnp.swapaxes(leaf, 0, 1)
        return leaf.reshape(-1, *leaf.shape[3:])

    def by_visit(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """``[layers, microbatches, ...]`` as ``[stages, visits, layers of a visit, ...]``."""
        leaf = jnp.swapaxes(self.by_repeat(leaf, stored), 2, 3)
        return leaf.reshape(leaf.shape[0], self.visits, *leaf.shape[3:])

    def from_visits(self, leaf: jax.Array, stored: bool = False) -> jax.Array:
        """Undoes `by_visit`."""
        options = self.options
        leaf = leaf.reshape(leaf.shape[0], options.repeats, options.microbatches, *leaf.shape[2:])
        return self.from_repeats(jnp.swapaxes(leaf, 2, 3), stored)

    def everywhere(self, leaf: ArrayLike) -> jax.Array:
        """What all layers share, as if each stage had its own: each has derivatives of its own."""
        leaf = jnp.asarray(leaf)
        return self.laid(jnp.broadcast_to(leaf, (self.options.stages, 1, *leaf.shape)))

    # --- the loop -------------------------------------------------------------

    def run(
        self, visit: Visit, parts: Leaves, fixed: Own, kept: Own
    ) -> tuple[Leaves, Leaves, Leaves]:
        """Runs all microbatches through all stages.

        Args:
          visit: the layers of one visit.
          parts: the microbatches, along the first axis.
          fixed: what the layers have.
          kept: what they have and write; the first results of a visit are what becomes of it.

        Returns:
          the microbatches; ``kept``; and the other results of all visits, by stages.
        """
        options, count = self.options, self.options.microbatches
        last, circular = options.stages - 1, options.repeats > 1

        fixed_leaves, kept_leaves = [leaf for leaf, _ in fixed], [leaf for leaf, _ in kept]
        stages = self._stages(visit, [alone for _, alone in fixed], [alone for _, alone in kept])

        size, spare = self.size, self.spare
        queue = [self.slots(leaf) for leaf in parts]
        # What went around all stages waits until the first one has had all microbatches.
        wait = count - options.delay * options.stages if circular else 0
        empty = [leaf[:, 0] for leaf in queue]
        around = [jnp.stack([leaf] * wait, 1) for leaf in empty] if wait else []

        def turn(carry: _Carry, t: jax.Array) -> tuple[_Carry, Leaves]:
            queue, flight, around, kept = carry
            number = t - options.delay * self.ids
            valid = (0 <= number) & (number < self.visits)

            # Stage 0 takes from the queue, and then what went around; all others from their
            # neighbour. A bubble takes what waits in its own slot.
            waiting = [leaf[:, t % size] for leaf in queue]
            arrived = [self.moved(leaf, 1) for leaf in flight[0]]
            first = waiting
            if circular:
                back = [leaf[:, t % wait] for leaf in around] if wait else arrived
                first = [jnp.where(t < count, a, b) for a, b in zip(waiting, back, strict=True)]
            state = [
                choose(valid, choose(self.ids == 0, f, a), self._filling(w))
                for f, a, w in zip(first, arrived, waiting, strict=True)
            ]
            number = jnp.clip(number, 0, self.visits - 1)
            out, kept, results = stages(valid, number, state, fixed_leaves, kept)

            # What the last stage makes goes to the end of the queue, which moves up.
            moved = [
                choose(self.ids == last, o, self.moved(w, -1))
                for o, w in zip(out, waiting, strict=True)
            ]
            queue = [self.put(leaf, t % size, m) for leaf, m in zip(queue, moved, strict=True)]
            if wait:
                around = [
                    self.put(leaf, t % wait, a) for leaf, a in zip(around, arrived, strict=True)
                ]
            out, kept = list(map(self.laid, out)), list(map(self.laid, kept))
            return (queue, (*flight[1:], out), around, kept), results

        before = queue, (empty,) * options.delay, around, kept_leaves
        (queue, _, _, kept_leaves), results = jax.lax.scan(turn, before, jnp.arange(options.steps))

        # The last microbatch went in last, and lies at the end; how often the queue has moved says
        # where within a slot the first one is.
        turns = (self.visits - count - spare + options.delay * last) % size
        done = [jnp.roll(leaf, -turns, 1).reshape(-1, *leaf.shape[2:])[spare:] for leaf in queue]
        return done, kept_leaves, [self._visits(leaf) for leaf in results]

    def _stages(
        self, visit: Visit, fixed_alone: Sequence[bool], kept_alone: Sequence[bool]
    ) -> Callable[..., tuple[Leaves, Leaves, Leaves]]:
        """What all stages do in a step: a visit each, and what it writes is put where it was.

        Args:
          visit: the layers of one visit.
          fixed_alone, kept_alone: of what layers have, and of what they write too, whether each
            microbatch has its own.
        """

        def numbers(number: jax.Array, alone: Sequence[bool]) -> Leaves:
            return [number if one else number // self.options.microbatches for one in alone]

        def layers(
            valid: jax.Array, number: jax.Array, state: Leaves, fixed: Leaves, now: Leaves
        ) -> tuple[Leaves, Leaves]:
            own = [*map(pick, fixed, numbers(number, fixed_alone)), *now]
            return visit(state, [guarded(valid, leaf) for leaf in own])

        def stage(
            valid: jax.Array, number: jax.Array, state: Leaves, fixed: Leaves, kept: Leaves
        ) -> tuple[Leaves, Leaves, Leaves]:
            at = numbers(number, kept_alone)
            before = list(map(pick, kept, at))
            out, results = self.again(layers)(valid, number, state, fixed, before)
            # A bubble leaves no trace in what the layers have.
            after = [jnp.where(valid, new, old) for new, old in zip(results, before, strict=False)]
            return out, list(map(_put, kept, after, at)), results[len(kept) :]

        return self.vmapped(stage)

    def vmapped(self, fn: Callable[..., T]) -> Callable[..., T]:
        """What all stages do in a step, from what one does."""
        return jax.vmap(fn, spmd_axis_name=_automatic(self.options.axis))

    def slots(self, leaf: jax.Array) -> jax.Array:
        """``[microbatches, ...]`` as ``[stages, queue, ...]``; at the end, what nobody takes."""
        if self.spare:
            leaf = jnp.concatenate([leaf, *[leaf[:1]] * self.spare])
        return self.laid(leaf.reshape(self.options.stages, -1, *leaf.shape[1:]))

    def ends(self, leaves: Leaves) -> Leaves:
        """``[devices, ...]`` of ``[stages, ...]``: what the last stage of each device has."""
        return [leaf.reshape(self.lanes, -1, *leaf.shape[1:])[:, -1] for leaf in leaves]

    def of_ends(self, leaf: jax.Array) -> jax.Array:
        """Hands what the last stage of each device has to all stages there."""
        return self.laid(jnp.repeat(leaf, self.options.stages // self.lanes, axis=0))

    def _visits(self, leaf: jax.Array) -> jax.Array:
        """``[steps, stages, ...]`` as ``[stages, visits, ...]``, without the bubbles."""
        starts = self.options.delay * self.ids

        def visits(leaf: jax.Array, start: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(leaf, start, self.visits)

        return jax.vmap(visits, in_axes=(1, 0))(leaf, starts)

    def moved(self, leaf: jax.Array, by: int) -> jax.Array:
        """Each slot's part in the slot ``by`` further on."""
        return self.laid(jnp.roll(leaf, by, 0))

    def laid(self, leaf: jax.Array) -> jax.Array:
        """Lays what stages have, or devices, along the first axis, where they are in the mesh."""
        return on_stages(leaf, self.options.axis)

    def put(self, leaf: jax.Array, at: jax.Array, value: jax.Array) -> jax.Array:
        """Sets what each slot has at one place along the second axis."""
        return self.laid(jax.lax.dynamic_update_index_in_dim(leaf, value, at, 1))

    def _filling(self, leaf: jax.Array) -> jax.Array:
        """What a bubble runs."""
        if self.options.bubbles == NAN and jnp.issubdtype(leaf.dtype, jnp.inexact):
            return jnp.full_like(leaf, jnp.nan)
        return jax.lax.stop_gradient(leaf)


@jax.custom_jvp
def guarded(valid: jax.Array, leaf: jax.Array) -> jax.Array:
    """A value whose derivatives are zero where ``valid`` is False, whatever they are.

    A bubble's results are used nowhere, so the derivatives that reach what it read are zero times
    its own, which may be infinite.
    """
    return leaf


@guarded.defjvp
def _(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    valid, leaf = primals
    return leaf, jnp.where(valid, tangents[1], jnp.zeros_like(tangents[1]))


def pick(leaf: jax.Array, at: jax.Array | int) -> jax.Array:
    if leaf.shape[0] == 1:
        return leaf[0]
    return jax.lax.dynamic_index_in_dim(leaf, at, 0, keepdims=False)


def _put(leaf: jax.Array, value: jax.Array, at: jax.Array) -> jax.Array:
    if leaf.shape[0] == 1:
        return value[None]
    return jax.lax.dynamic_update_index_in_dim(leaf, value, at, 0)


def choose(which: jax.Array, a: jax.Array, b: ArrayLike) -> jax.Array:
    """Slot by slot, one of two values."""
    return jnp.where(which.reshape(-1, *(1,) * (a.ndim - 1)), a, b)


def devices_along(axis: str) -> int:
    """On how many devices the mesh of the context lays stages along ``axis``."""
    return jax.sharding.get_abstract_mesh().shape[axis] if _automatic(axis) else 1


def _automatic(axis: str) -> str | None:
    """The axis, where the mesh of the context has it and JAX splits along it by itself."""
    return axis if type_of(axis) == AxisType.Auto else None


def type_of(axis: str) -> AxisType | None:
    """What kind of axis the mesh of the context has, None where it has none of that name."""
    mesh = jax.sharding.get_abstract_mesh()
    return dict(zip(mesh.axis_names, mesh.axis_types, strict=True)).get(axis)


def on_rows(leaf: jax.Array, axes: Sequence[str], batch: int) -> jax.Array:
    """Lays the rows of each microbatch along axes of the mesh, where there are some.

    Args:
      leaf: all microbatches, along a first axis.
      axes: of the mesh.
      batch: which axis of one microbatch has its rows.
    """
    there = tuple(name for name in axes if _automatic(name))
    if not there:
        return leaf
    # A batch that comes in split has whole microbatches on each device: here every device gets
    # some rows of each one.
    spec: list[Any] = [None, *(PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)]
    spec[batch % (leaf.ndim - 1) + 1] = there
    return jax.lax.with_sharding_constraint(leaf, PartitionSpec(*spec))


def on_stages(leaf: jax.Array, axis: str) -> jax.Array:
    """Lays the first axis of an array along ``axis`` of the mesh, where there is one."""
    if _automatic(axis):
        free = (PartitionSpec.UNCONSTRAINED,) * (leaf.ndim - 1)
        return jax.lax.with_sharding_constraint(leaf, PartitionSpec(axis, *free))
    return leaf
