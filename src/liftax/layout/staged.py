"""What a layout knows of a pipeline: which layers each stage runs, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Staged:
    """How the layers of a stack run as a pipeline.

    `layers` are the repeats of the pattern in one visit of a stage, `bubble` is the share of the
    steps in which a stage has nothing to do, `crossing` the bytes that each sends on in a step,
    `delay` the steps that a stage begins after the one before it.
    """

    stages: int
    layers: int
    microbatches: int
    repeats: int
    axis: str
    steps: int
    bubble: float
    crossing: int
    delay: int = 1

    @property
    def visits(self) -> int:
        """The steps in which a stage has a microbatch."""
        return self.repeats * self.microbatches

    def group(self, stage: int, repeat: int) -> str:
        """The repeats of the pattern that a stage runs the n-th time around: `8-9`."""
        # In a circular pipeline a stage has one group of layers in each repeat, `stages` groups
        # apart.
        start = (repeat * self.stages + stage) * self.layers
        return f"{start}" + f"-{start + self.layers - 1}" * (self.layers > 1)

    def numbers(self, stage: int) -> str:
        """The repeats of the pattern that a stage runs: `0-1 8-9`."""
        return " ".join(self.group(stage, repeat) for repeat in range(self.repeats))
