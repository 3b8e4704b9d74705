"""What one run is: its model, its training, its mesh, its folder."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path


# No LiftaxError: it is about a run on this machine, and no page of findings explains it.
class TrainingError(Exception):
    """What stops a run and cannot be helped by starting it again: one line for the user."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a run; the same command goes on with it.

    Attributes:
      out: the folder of checkpoints, metrics, picture and sample.
      steps: how many steps of training.
      seed: of the first parameters, the batches and the sample.
      batch: texts in a batch, of all processes together.
      context, width, heads, depth: of the model.
      rate: the learning rate.
      every: steps from one checkpoint to the next, and from one held-out loss to the next.
      keep: how many checkpoints are kept.
      mesh: sizes of the mesh axes, ``data`` and maybe ``stage``.
      join: seconds that all processes have to find each other.
      sample: bytes of text to sample in the end; 0 for none.
    """

    # Plain values alone: the same settings are pickled to every process.
    out: Path
    steps: int = 1000
    seed: int = 0
    batch: int = 16
    context: int = 128
    width: int = 128
    heads: int = 4
    depth: int = 6
    rate: float = 1e-3
    every: int = 100
    keep: int = 3
    mesh: tuple[tuple[str, int], ...] = (("data", 1),)
    join: int = 60
    sample: int = 400

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return math.prod(size for _, size in self.mesh)

    def axis(self, name: str) -> int:
        """The size of a mesh axis, 1 for one that the mesh has not."""
        return dict(self.mesh).get(name, 1)


def parse_mesh(text: str) -> tuple[tuple[str, int], ...]:
    """Reads ``data=2,stage=2``.

    Raises:
      TrainingError: it cannot be read, or names an axis that the model has no use for.

    Example:
      >>> parse_mesh("data=2,stage=2")
      (('data', 2), ('stage', 2))
    """
    axes = []
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        # `isdecimal`, since int() takes a sign, spaces and underscores too.
        if name not in ("data", "stage") or not size.isdecimal() or int(size) < 1:
            raise TrainingError(
                f"--mesh expected sizes of data and stage, e.g. data=2,stage=2; found {text!r}"
            )
        axes.append((name, int(size)))
    if len(dict(axes)) != len(axes):
        raise TrainingError(f"--mesh: an axis is there twice; found {text!r}")
    return tuple(axes)
