"""Which arguments of a stack go through a pipeline with their microbatch, and which to all."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ..core.lift.schedule import Pipeline
from ..errors import MicrobatchError, PipelineError
from ..pytrees import is_array
from ..words import describe
from .arguments import Arguments, Block, Slices, positional


class Batched:
    """The arguments of a call, after the first, by whether they have a batch.

    An argument that the pipeline declares is cut as the batch is. One that it does not declare
    goes whole to every layer; where its first axis is as long as the batch that is refused, since
    nobody can know then what is meant.

    Args:
      pipeline: how the stack runs.
      blocks: the layers of the pattern; the first says what positional arguments are called.
      call: the arguments.
      x: what goes through the layers.
      place: the stack, for messages.
      method: which of the layers' methods is called.

    Attributes:
      going: those that go through the layers beside ``x``, their batch along the first axis.
      moving: for each leaf of those that are sliced by layer, the axis of its batch.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        blocks: Sequence[Block],
        call: Arguments,
        x: object,
        place: str,
        method: str,
    ):
        self.pipeline, self.place = pipeline, place
        sizes = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
        # Leaves that disagree have no batch that can be told; then only what is declared is cut.
        self.size = next(iter(sizes)) if len(sizes) == 1 else None
        _, names = positional(blocks[0], method)
        names += map(str, range(len(names), len(call.args)))
        # Keys of positional arguments are their numbers as text, as in `Slices`; names are for
        # people.
        given = {
            **{str(i): (name, v) for i, (name, v) in enumerate(zip(names, call.args))},  # noqa: B905
            **{name: (name, value) for name, value in call.kwargs.items()},
        }
        self.axes: dict[str, int] = {}
        self.going: Slices = {}
        for key, (name, value) in given.items():
            axis = self._axis(name, value, of_layers=key in call.sliced)
            # One that is sliced by layer has the axis of layers in front, and is cut with the
            # layer's variables; here are those that travel beside x.
            if axis is not None and key not in call.sliced:
                first = functools.partial(self._first, axis=axis, name=name)
                self.axes[key], self.going[key] = axis, jax.tree.map(first, value)
        of_names = {key: pipeline.batch_axis(name) for key, (name, _) in given.items()}
        self.moving = [
            of_names[key]
            for slices in call.xs
            # As JAX flattens a dict, so that the axes come in the order of the leaves.
            for key in sorted(slices)
            for _ in jax.tree.leaves(slices[key])
        ]

    def back(self, going: Slices) -> Slices:
        """Returns those that go along as the layers take them."""
        found: Slices = {}
        for key, value in going.items():
            move = functools.partial(jnp.moveaxis, source=0, destination=self.axes[key])
            found[key] = jax.tree.map(move, value)
        return found

    def _axis(self, name: str, value: object, *, of_layers: bool) -> int | None:
        if name in self.pipeline.microbatched:
            return self.pipeline.microbatched[name]
        for path, leaf in jax.tree_util.tree_leaves_with_path(value):
            shape = leaf.shape[of_layers:] if is_array(leaf) else ()
            # With one microbatch whole and cut are the same, so nobody has to say which is meant.
            if shape[:1] == self.size and self.pipeline.microbatches > 1:
                raise MicrobatchError(
                    f"{self.place}: nothing says whether argument {name!r} has a batch.\n"
                    f"found: {name}{jax.tree_util.keystr(path)}, {describe(leaf)}, as long as the "
                    f"batch\n"
                    f"expected: Pipeline(microbatched={{{name!r}: 0}}) to hand each microbatch its "
                    f"part, or {{{name!r}: None}} to hand it whole to all"
                )
        return None

    def _first(self, value: jax.Array, axis: int, name: str) -> jax.Array:
        value = jnp.asarray(value)
        if not -value.ndim <= axis < value.ndim or (value.shape[axis],) != self.size:
            raise PipelineError(
                f"{self.place}: argument {name!r} is no batch as long as what goes through the "
                f"layers.\n"
                f"found: {describe(value)}, its batch along axis {axis}\n"
                f"expected: {self.size[0] if self.size else 'one size'} along that axis; or "
                f"another axis in microbatched="
            )
        # In front, where x has its batch: what goes through the layers is cut in one way.
        return jnp.moveaxis(value, axis, 0)
