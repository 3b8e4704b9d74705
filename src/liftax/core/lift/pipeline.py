"""A lifted loop as a pipeline: which leaf of the loop's step has a batch, and of which layer.

What is a variable, a key or an argument is settled in the lifted scan, which hands its pure step to
whatever runs it (see `Plan`). Here that is read again from the places in the step's trees.
On several devices `stages.py` runs the steps of a schedule, on one `in_turn.py` the loop that it
equals.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import SequenceKey

from ... import jax_private
from ...errors import MicrobatchError, PipelineError
from ...pytrees import is_inexact, split
from ...words import describe, names_on
from ..roles import loop_roles
from ..types import Fn, Tree
from .in_turn import InTurn
from .interleaved import Loss, Part, interleaved
from .scan import Plan, Scan
from .schedule import NAN, Pipeline
from .stages import Leaves, Stage, Stages, devices_along, on_rows, takes_again

if TYPE_CHECKING:
    import jax.extend.core as jex

Step = Callable[[Any, Any], tuple[Any, Any]]


class _Leaf(NamedTuple):
    """What goes into a step, of all layers.

    ``axis`` is that of the batch, as one layer has it, or None.
    """

    value: jax.Array
    axis: int | None
    name: str
    cut: bool = False  # whether its microbatches have an axis already
    stored: bool = False  # whether its layers may be stored by stages


class _Written(NamedTuple):
    """What comes out of a step for each layer: its number among all that come out, and the leaf
    of what went in that it is the next value of."""

    number: int
    over: int | None
    axis: int | None = None
    stored: bool = False  # as of what goes in


class Objective:
    """The loss of what comes out of a pipeline, made and differentiated in its loop.

    Args:
      loss: of one microbatch, of what came out of the layers and of its part of ``args``.
      args: arguments of the loss, and whether each has an axis of microbatches in front.

    Attributes:
      total: the mean over the microbatches, when the pipeline has run.
    """

    def __init__(self, loss: Loss, args: Sequence[Part]):
        self.loss, self.args = loss, args
        self.total: jax.Array | None = None


class _Layer:
    """One layer, traced, as the layers of a visit are run.

    Args:
      closed: the layer: of what goes through it and what it has, leaf by leaf.
      through: how many leaves go through.
      written: what comes out for each layer.

    Attributes:
      numbers: what it closes over and can be differentiated by: an input here, which the
        derivatives of a bubble must not reach.
      fixed: of what it has, the leaves that it only reads.
      over: those that it writes, with the place of the new value among what comes out.
      out: which of what comes out a visit returns beside what goes through.
    """

    def __init__(self, closed: jex.ClosedJaxpr, through: int, written: Sequence[_Written]):
        self.program, self.through = jax_private.consts_as_inputs(closed), through
        self.numbers, self.rest = split(closed.consts, is_inexact)
        outputs, inputs = self.program.outvars, self.program.invars[len(closed.consts) + through :]
        # A variable that a layer returns as it got it needs no place to be written to.
        self.over = {
            w.over: w.number
            for w in written
            if w.over is not None and outputs[w.number] is not inputs[w.over]
        }
        self.fixed = [k for k in range(len(inputs)) if k not in self.over]
        self.out = [*self.over.values(), *(w.number for w in written if w.over is None)]

    def visit(
        self, loop: Callable[..., tuple[Leaves, Leaves]], state: Leaves, own: Leaves
    ) -> tuple[Leaves, Leaves]:
        """Runs the layers of one visit.

        Args:
          loop: over the layers, as `jax.lax.scan`.
          state: what goes through.
          own: the numbers, what is fixed, what is written over.
        """
        consts = self.rest.filled(own[: len(self.numbers)])
        own = own[len(self.numbers) :]
        of_layers = dict(zip([*self.fixed, *self.over], own, strict=True))

        def layer(state: Leaves, own: Leaves) -> tuple[Leaves, Leaves]:
            out = jax_private.evaluate(self.program, [*consts, *state, *own])
            return out[: self.through], [out[k] for k in self.out]

        return loop(layer, state, [of_layers[k] for k in range(len(own))])


@dataclasses.dataclass(frozen=True)
class Pipelined:
    """A pipeline as what runs the loop of a `Plan`: called as `jax.lax.scan` is.

    Attributes:
      options: the pipeline.
      place: where it stands, for messages.
      loop: what runs the layers of one visit.
      whole: what runs all layers, where no schedule has to.
      again: makes a visit one that is computed again in the backward pass.
      objective: for a pipeline that makes derivatives as it goes, of what.
      moving: for each leaf of the arguments that the loop goes over, the axis of its batch.
      stored: whether the layers of variables lie by stages (see `Groups`), and not as they run.
    """

    options: Pipeline
    place: str = ""
    loop: Callable[..., tuple[Any, Any]] = jax.lax.scan
    whole: Callable[..., tuple[Any, Any]] = jax.lax.scan
    again: Callable[[Stage], Stage] = takes_again
    objective: Objective | None = None
    moving: Sequence[int | None] = ()
    stored: bool = False

    def __call__(
        self,
        step: Step,
        init: Tree,
        xs: Tree,
        *,
        length: int,
        place: str = "",
        **of_jax: Any,
    ) -> tuple[Any, Any]:
        """Runs ``length`` layers.

        Args:
          step: one layer, ``(state, x) -> (state, (ys, variables))``.
          init: the leaves of what goes through the layers, and carried variables.
          xs: arguments, groups of variables and keys, of all layers. The keys have an axis of
            microbatches after that of layers.
          length: the number of layers.
          place: where it stands, if that was not known before.
          **of_jax: further options of the loop, for the layers of a visit.
        """
        if place:
            return dataclasses.replace(self, place=place)(step, init, xs, length=length, **of_jax)
        layers, loop = self.options.layers(length, self.place), self.loop
        stages: Stages | InTurn = Stages(self.options, layers, self.again)
        # The test's mode is there to see bubbles, on one device too.
        if devices_along(self.options.axis) == 1 and self.options.bubbles != NAN:
            stages, layers, loop = InTurn(self.options), length, self.whole
        state, x = list(self._state(init)), list(self._of_layers(xs))
        rows = self.options.axes_of_rows
        parts = [on_rows(self._cut(leaf), rows, leaf.axis or 0) for leaf in state]
        each = [leaf.value if leaf.axis is None else self._cut(leaf, of_layers=True) for leaf in x]
        own = [
            (stages.by_repeat if leaf.axis is None else stages.by_visit)(value, leaf.stored)
            for leaf, value in zip(x, each, strict=True)
        ]

        closed, shape = self._traced(step, (init, xs), parts, each, x)
        written = list(self._written(xs, shape))
        layer = _Layer(closed, len(state), written)
        visit = functools.partial(layer.visit, functools.partial(loop, length=layers, **of_jax))

        # What has a batch differs from microbatch to microbatch, and so does its derivative.
        alone = [leaf.axis is not None for leaf in x]
        have = [(stages.everywhere(number), False) for number in layer.numbers]
        have += [(own[k], alone[k]) for k in layer.fixed]
        if self.objective is not None:
            self._check_nothing(written)
            of = self.objective
            of.total = interleaved(stages, visit, of.loss, parts, have, of.args)
            return init, jax.tree.unflatten(jax.tree.structure(shape[1]), [])
        write = [(own[k], alone[k]) for k in layer.over]
        parts, kept, results = stages.run(visit, parts, have, write)

        # Everything back in its place.
        out = [self._joined(part, leaf.axis) for part, leaf in zip(parts, state, strict=True)]
        made = dict(zip(layer.out, [*kept, *results], strict=True))
        for w in written:
            if w.number in made:
                out.append(self._of_all(stages, w, made[w.number]))
            else:
                assert w.over is not None
                out.append(x[w.over].value)
        return jax.tree.unflatten(jax.tree.structure(shape), out)

    def _traced(
        self, step: Step, given: tuple[Tree, Tree], parts: Leaves, each: Leaves, x: Sequence[_Leaf]
    ) -> tuple[jex.ClosedJaxpr, Any]:
        """Traces the user's layer, once: returns it as a program, and what comes out as shapes.

        Args:
          step: the layer.
          given: the trees that it has its arguments in.
          parts, each: of all layers and microbatches.
          x: whose leaves ``each`` are.
        """
        state_def, x_def = map(jax.tree.structure, given)

        def of_one(parts: Leaves, each: Leaves) -> tuple[Tree, Tree]:
            one = [leaf[0] for leaf in parts]
            both = zip(each, x, strict=True)
            its = [leaf[0] if of.axis is None else leaf[0, 0] for leaf, of in both]
            return jax.tree.unflatten(state_def, one), jax.tree.unflatten(x_def, its)

        shapes = jax.eval_shape(of_one, parts, each)
        closed, shape = jax.make_jaxpr(step, return_shape=True)(*shapes)
        return closed, shape

    def _of_all(self, stages: Stages | InTurn, w: _Written, leaf: jax.Array) -> jax.Array:
        """What came out of the stages at one place, as the loop over layers returns it."""
        if w.over is not None and w.axis is None:
            return stages.from_repeats(leaf, w.stored)
        leaf = stages.from_visits(leaf, w.stored)
        return leaf if w.axis is None else jax.vmap(lambda part: self._joined(part, w.axis))(leaf)

    def _check_nothing(self, written: Sequence[_Written]) -> None:
        """Raises PipelineError where the layers make more than what goes through them."""
        if written:
            raise PipelineError(
                f"{self.place}: the layers write or return something beside x, which a loop that "
                f"runs forward and backward does not hand out.\n"
                f"found: {len(written)} arrays, variables or outputs=\n"
                f"expected: no outputs= and nothing mutable; or schedule='gpipe'"
            )

    # --- who has a batch ------------------------------------------------------

    def _state(self, init: Tree) -> Iterator[_Leaf]:
        """Yields what goes through the layers: the carry, and carried variables."""
        for path, value in jax.tree_util.tree_leaves_with_path(init):
            if path[0].idx == 0:
                strong = jnp.asarray(value, jnp.result_type(value))  # as it comes out
                yield _Leaf(strong, 0, "what goes through the layers")
                continue
            _, col, *_ = place = path[1].key
            axis, name = self.options.batch_axis(col), "/".join(map(str, place[1:]))
            if axis is None:
                raise MicrobatchError(
                    f"{self.place}: a layer hands variable {name} to the next one, which works on "
                    f"another microbatch by then.\n"
                    f"found: variable_carry has {col!r}\n"
                    f"expected: Pipeline(microbatched={{{col!r}: 0}}), if its variables have a "
                    f"batch and go with it; else another run="
                )
            yield _Leaf(value, axis, f"variable {name}")

    def _of_layers(self, xs: Tree) -> Iterator[_Leaf]:
        """Yields what each layer has: arguments, variables, keys."""
        for path, value in jax.tree_util.tree_leaves_with_path(xs):
            part = path[0].idx
            if part == 0:
                axis = self.moving[path[1].idx] if self.moving else None
                yield _Leaf(value, axis, "an argument in per_layer=")
            elif part == 2:
                yield _Leaf(value, 0, "keys", cut=True)
            else:
                names = names_on(path[3:])
                self._check_declared(names)
                axis = self.options.batch_axis(names[0])
                yield _Leaf(value, axis, "/".join(names), stored=self.stored)

    def _check_declared(self, names: Sequence[str]) -> None:
        col = names[0]
        if not self.options.declares(col):
            raise MicrobatchError(
                f"{self.place}: nothing says whether the variables of collection {col!r} have a "
                f"batch.\n"
                f"found: variable {'/'.join(names)}\n"
                f"expected: Pipeline(microbatched={{{col!r}: 0}}) for the axis of the batch in a "
                f"layer's variable, or {{{col!r}: None}} where it has none"
            )

    def _written(self, xs: Tree, shape: Tree) -> Iterator[_Written]:
        """Yields what comes out for each layer: outputs, variables."""
        before = {
            path: (k, leaf)
            for k, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(xs))
        }
        for k, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(shape)):
            if path[0].idx == 0:
                continue
            if path[1].idx == 0:
                yield _Written(k, None)
                continue
            names = names_on(path[4:])
            over, old = before.get((SequenceKey(1), *path[2:]), (None, None))
            axis = self.options.batch_axis(names[0])
            if old is not None:
                self._check_kept(names, old, leaf, axis)
            yield _Written(k, over, axis, self.stored)

    def _check_kept(
        self, names: Sequence[str], old: jax.Array, new: jax.ShapeDtypeStruct, axis: int | None
    ) -> None:
        """Raises MicrobatchError where a variable is not as the next microbatch needs it."""
        shape = list(old.shape[1:])
        if axis is not None:
            shape[axis] //= self.options.microbatches
        if (new.shape, new.dtype) != (tuple(shape), old.dtype):
            raise MicrobatchError(
                f"{self.place}: variable {'/'.join(names)} changes from one microbatch to the "
                f"next.\n"
                f"found: {describe(new)} comes out of a layer\n"
                f"expected: {old.dtype}{shape}, as it went in"
            )

    # --- microbatches ---------------------------------------------------------

    def _cut(self, leaf: _Leaf, of_layers: bool = False) -> jax.Array:
        """Returns the microbatches of a value along a new first axis, or after that of layers."""
        value, axis, name, done, _ = leaf
        if done:
            return value
        count, front = self.options.microbatches, int(of_layers)
        shape = value.shape[front:]
        assert axis is not None
        if not -len(shape) <= axis < len(shape) or shape[axis] % count:
            raise PipelineError(
                f"{self.place}: the batch cannot be cut into {count} equal microbatches.\n"
                f"found: {name}, {value.dtype}{list(shape)}, with its batch along axis {axis}\n"
                f"expected: a multiple of microbatches={count} along that axis"
            )
        axis = axis % len(shape) + front
        parts = (*value.shape[:axis], count, value.shape[axis] // count, *value.shape[axis + 1 :])
        return jnp.moveaxis(value.reshape(parts), axis, front)

    def _joined(self, value: jax.Array, axis: int | None) -> jax.Array:
        """Undoes `_cut` of what has microbatches along its first axis."""
        assert axis is not None
        axis %= value.ndim - 1
        value = jnp.moveaxis(value, 0, axis)
        return value.reshape(*value.shape[:axis], -1, *value.shape[axis + 2 :])


@dataclasses.dataclass(frozen=True, eq=False)
class Piped:
    """`liftax.pipeline` over a function of a scope: a scan whose loop is a pipeline.

    Attributes:
      scan: what is said of variables, keys and arguments.
      pipeline: of the stages.
    """

    scan: Scan
    pipeline: Pipeline

    def __call__(self, fn: Fn) -> Fn:
        of = self.scan
        axes, shared, carried = of.variable_axes, of.variable_broadcast, of.variable_carry
        roles = loop_roles("pipeline", axes, shared, carried, of.split_rngs)
        making, parts = Plan(of, roles), self.pipeline.microbatches
        running = Plan(of, roles, Pipelined(self.pipeline), (), parts)

        def piped(scopes: Tree, /, *args: Tree, **kwargs: object) -> tuple[Any, Any]:
            # Variables are made of the whole batch, as a scan makes them.
            calls = [scope.call for scope in jax.tree.leaves(scopes)]
            initializing = any(call.flags.get("initializing") for call in calls)
            plan = making if initializing else running
            return plan.over(fn)(scopes, *args, **kwargs)

        return piped  # type: ignore[return-value]
