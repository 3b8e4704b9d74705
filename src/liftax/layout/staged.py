"""What a layout knows of a pipeline: which layers each stage runs, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Staged:
    """How the layers of a stack run as a pipeline.

    `layers` are the repeats of the pattern in one visit of a stage, `bubble` is the share of the
    steps in which a stage has nothing to do, `crossing` the bytes that each sends on in a step.
    """

    stages: int
    layers: int
    microbatches: int
    repeats: int
    axis: str
    steps: int
    bubble: float
    crossing: int

    def numbers(self, stage: int) -> str:
        """The repeats of the pattern that a stage runs: `0-1 8-9`."""
        # In a circular pipeline a stage has one group of layers in each repeat, `stages` groups
        # apart.
        starts = [(r * self.stages + stage) * self.layers for r in range(self.repeats)]
        ends = [f"-{start + self.layers - 1}" * (self.layers > 1) for start in starts]
        return " ".join(f"{start}{end}" for start, end in zip(starts, ends, strict=True))
