"""What a pipeline is told, and what follows from it alone.

Vocabulary
  stage    layers that run on one part of the mesh
  visit    one microbatch in one stage: the layers that the stage has in one repeat
  bubble   a stage that has no microbatch: before its first and after its last

Visit ``v`` of stage ``s`` runs at step ``v + delay * s``; it is microbatch ``v % microbatches`` in
repeat ``v // microbatches``. What comes out of a stage goes into the next one ``delay`` steps
later, and what comes out of the last one goes around to the first. So there are
``repeats * microbatches + delay * (stages - 1)`` steps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...errors import PipelineError
from ...words import shown

STOP, NAN = "stop", "nan"
DECLARED: Mapping[str, int | None] = {"params": None, "batch_stats": None, "lora": None}
"""Collections that every pipeline knows to have no batch; the last are the adapters of `adapt`."""


class Groups(NamedTuple):
    """The order of layers by stages: all groups of the first stage, then those of the next.

    In the order in which they run, the layers are ``[repeats, stages, layers of a visit]``. By
    stages they are ``[stages, repeats, layers of a visit]``, so that an axis of layers in equal
    parts has in each part what one stage runs.
    """

    stages: int
    repeats: int

    def rows(self, depth: int) -> list[int]:
        """The layer, counted as they run, that lies in each row.

        Example:
          >>> Groups(stages=2, repeats=2).rows(8)
          [0, 1, 4, 5, 2, 3, 6, 7]
        """
        stages, repeats = self
        size = depth // (stages * repeats)
        return [
            (r * stages + s) * size + i
            for s in range(stages)
            for r in range(repeats)
            for i in range(size)
        ]

    def running(self, leaf: jax.Array, axis: int) -> jax.Array:
        """An array whose axis has the layers by stages, with the layers in the order they run."""
        return _swapped(leaf, axis, self.stages, self.repeats)

    def by_stage(self, leaf: jax.Array, axis: int) -> jax.Array:
        """Undoes `running`."""
        return _swapped(leaf, axis, self.repeats, self.stages)


def _swapped(leaf: jax.Array, axis: int, outer: int, inner: int) -> jax.Array:
    shape, axis = leaf.shape, axis % leaf.ndim
    if shape[axis] % (outer * inner):
        return leaf  # the variables of another stack, which whoever uses them tells
    size = shape[axis] // (outer * inner)
    leaf = leaf.reshape(*shape[:axis], outer, inner, size, *shape[axis + 1 :])
    return jnp.swapaxes(leaf, axis, axis + 1).reshape(shape)


def _check(fits: bool, option: str, found: object, expected: str) -> None:
    """Raises PipelineError for an option that means nothing."""
    if not fits:
        raise PipelineError(f"Pipeline: {option} expected {expected}; found {shown(found)}")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """How a loop over layers runs as a pipeline, for ``run=`` of `Stack`.

    The batch, the first axis of what goes through the layers, is cut into microbatches, and the
    layers into stages, which work on different microbatches at the same time. What comes out
    equals the loop

    .. code-block:: python

      concatenate([stack(part) for part in split(x, microbatches)])

    With an axis called ``axis`` in the mesh of the context (`jax.set_mesh`) the stages lie along
    it. Where all of them are on one device it is that loop that runs, without a bubble. Axes that
    are explicit are automatic within the pipeline, and what comes out is split as what went in.

    Args:
      stages: how many parts the layers are cut into.
      microbatches: how many parts the batch is cut into.
      repeats: how often a microbatch goes around all stages. With more than one, each stage has
        that many groups of layers (a circular pipeline), and the bubble is that much smaller.
      axis: the name of the mesh's axis.
      bubbles: what a stage without a microbatch runs: ``"stop"``, a real one of whose results and
        derivatives nothing is used; ``"nan"``, numbers that are none, to test that, also on one
        device.
      microbatched: collection -> the axis of its variables, of one layer, that is the batch, or
        None where they have none; and the same for arguments by their names. Parameters and
        ``batch_stats`` are known to have none. Variables without a batch that the layers write
        are handed from one microbatch to the next.
      delay: how many steps after a stage the next one runs. With 2, what crosses to the next
        stage does so while both compute.
      rows: an axis of the mesh, or several, over which the rows of each microbatch are split, so
        that each stage is on several devices which share its work. Without it they all do all of
        it.

    Raises:
      PipelineError: an option means nothing, or the options contradict each other.

    Example:
      >>> import liftax as nn
      >>> run = nn.Pipeline(stages=4, microbatches=16)
      >>> run.steps, run.bubble
      (19, 0.15789473684210525)
      >>> import jax
      >>> stack = nn.Stack(nn.Dense(3), depth=4)
      >>> x = jax.numpy.ones((16, 3))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> y = stack.clone(run=run).apply(variables, x)
      >>> bool(jax.numpy.allclose(y, stack.apply(variables, x), rtol=1e-5))
      True
    """

    stages: int
    microbatches: int
    repeats: int = 1
    axis: str = "stage"
    bubbles: str = STOP
    # A dict has no hash; what is equal hashes alike without it.
    microbatched: Mapping[str, int | None] = dataclasses.field(default_factory=dict, hash=False)
    delay: int = 1
    rows: str | tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("stages", "microbatches", "repeats", "delay"):
            n = getattr(self, name)
            # True is an int, and `stages=True` would be one stage.
            is_number = isinstance(n, int) and not isinstance(n, bool) and n >= 1
            _check(is_number, name, n, "an int, 1 or more")
        _check(self.bubbles in (STOP, NAN), "bubbles", self.bubbles, "'stop' or 'nan'")
        one = "the name of an axis of the mesh"
        _check(isinstance(self.axis, str), "axis", self.axis, one)
        are_names = all(isinstance(name, str) for name in self.axes_of_rows)
        _check(are_names, "rows", self.rows, f"{one}, or a tuple of names")
        given = self.microbatched
        mapping = "a mapping of collection or argument to the axis of its batch, e.g. {'cache': 0}"
        _check(isinstance(given, Mapping), "microbatched", given, mapping)
        for name, axis in given.items():
            fits = axis is None or isinstance(axis, int) and not isinstance(axis, bool)
            option = f"microbatched[{name!r}]"
            _check(fits, option, axis, "an axis, or None for what has no batch")
        # A copy, as the user may go on changing theirs.
        object.__setattr__(self, "microbatched", dict(given))
        # With fewer, stage 0 would want a microbatch again before it has come around.
        if self.repeats > 1 and self.microbatches < self.stages * self.delay:
            around = f"stages={self.stages}" + f" * delay={self.delay}" * (self.delay > 1)
            raise PipelineError(
                f"Pipeline: repeats={self.repeats} with fewer microbatches than it takes to go "
                f"around.\n"
                f"found: microbatches={self.microbatches}, {around}\n"
                f"expected: at least {self.stages * self.delay} microbatches, or repeats=1"
            )

    @property
    def axes_of_rows(self) -> tuple[str, ...]:
        """The axes of the mesh over which the rows of a microbatch are split."""
        return self.rows if isinstance(self.rows, tuple) else (self.rows,)

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.repeats * self.microbatches + self.delay * (self.stages - 1)

    @property
    def bubble(self) -> float:
        """The share of the steps in which a stage has nothing to do."""
        return self.delay * (self.stages - 1) / self.steps

    @property
    def ring(self) -> int:
        """How many microbatches a stage keeps where each step runs forward and backward (1F1B)."""
        return 2 * self.stages * self.repeats - 1

    @property
    def order(self) -> Groups:
        """In which order ``store="circular"`` keeps the layers."""
        return Groups(self.stages, self.repeats)

    def batch_axis(self, name: str) -> int | None:
        """The axis of the batch of a collection's variables, or of an argument."""
        return self.microbatched.get(name, DECLARED.get(name))

    def declares(self, name: str) -> bool:
        """Tells whether it is said of a collection or argument if it has a batch."""
        return name in self.microbatched or name in DECLARED

    def layers(self, depth: int, place: str) -> int:
        """Returns how many steps of a loop make one visit.

        Raises:
          PipelineError: they don't come out even.
        """
        visits = self.stages * self.repeats
        # Unequal stages would wait for the longest one in each step; layers that are left over can
        # stand outside.
        if depth % visits:
            more = f" * repeats={self.repeats}" if self.repeats > 1 else ""
            raise PipelineError(
                f"{place}: the layers cannot be cut into equal stages.\n"
                f"found: {depth} repeats of the pattern, stages={self.stages}{more}\n"
                f"expected: a multiple of {visits}; give the remainder as before= or after=, or "
                f"change stages="
            )
        return depth // visits
