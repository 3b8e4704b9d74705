"""Interleaved timing: every case once a round, in an order that turns, medians of the rounds.

CPython keeps its frames in chunks, which it maps when a call crosses a chunk's end and unmaps when
the call returns. Code whose busy calls happen to lie at an end pays for that thousands of times,
up to half its time, and one frame more or less below it, anywhere, moves the ends. So each round
stands at another depth of the stack, the same for all cases.
"""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

FRAMES = 90  # of `once` in a chunk, or a few more

CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """How long to measure, by which clock, and which peers."""

    rounds: int = 11
    min_sample: float = 0.01
    clock: str = "wall"
    peers: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}, expected 1 or more")
        if self.clock not in CLOCKS:
            raise ValueError(f"clock is {self.clock!r}, expected one of {', '.join(CLOCKS)}")


@dataclasses.dataclass(frozen=True)
class Sample:
    """Seconds a call took in each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half the distance between the quartiles."""
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = statistics.quantiles(self.seconds, n=4, method="inclusive")
        return (high - low) / 2

    def ratio(self, base: Sample) -> float:
        """Median over the rounds of this time by that of the same round, so that a slow spell
        of the machine, which hits both, cancels out."""
        pairs = zip(self.seconds, base.seconds, strict=True)
        return statistics.median(mine / other for mine, other in pairs)


def interleave(
    cases: Mapping[str, Callable[[], Any]],
    settings: Settings,
    *,
    warm_up: int = 2,
    wall: bool = False,
) -> dict[str, Sample]:
    """Time all cases in the same rounds.

    A call too short for the clock is repeated within its sample until ``min_sample`` is reached.
    The garbage collector runs between samples and not within. ``wall=True`` overrides the
    clock, for calls whose work happens on other threads.
    """
    clock = CLOCKS["wall" if wall else settings.clock]
    loops: dict[str, int] = {}
    for name, call in cases.items():
        for _ in range(warm_up):
            call()
        start = clock()
        call()
        loops[name] = max(1, round(settings.min_sample / max(clock() - start, 1e-7)))

    seconds: dict[str, list[float]] = {name: [] for name in cases}
    names = list(cases)
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()  # what is alive now need not be looked at before every sample
    try:
        for index in range(settings.rounds):
            frames = index * FRAMES // settings.rounds
            turn = index % max(len(names), 1)
            for name in names[turn:] + names[:turn]:
                gc.collect()
                gc.disable()
                seconds[name].append(once(cases[name], loops[name], clock, frames))
                if enabled:
                    gc.enable()
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
    return {name: Sample(tuple(values)) for name, values in seconds.items()}


def once(call: Callable[[], Any], loops: int, clock: Callable[[], float], frames: int) -> float:
    """Seconds of one call, made from ``frames`` frames further up the stack."""
    if frames:
        return once(call, loops, clock, frames - 1)
    start = clock()
    for _ in range(loops):
        call()
    return (clock() - start) / loops
