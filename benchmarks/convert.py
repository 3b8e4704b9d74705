"""``liftax convert`` beside ``cp``: rate and memory, for a checkpoint of one stacked tensor.

Each case converts the file that another one left, verified as always: what is written is read back
and compared before it takes its place.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.table import Cell, Table
from benchmarks.timing import Settings, interleave

LAYERS, WIDTH = 8, 2048  # 128 MiB of float32
COLUMN, SYNCED = "liftax", "cp, synced"
CASES = {
    "stacked to layers": ("stacked", "--layout", "layers"),
    "layers to stacked": ("layers", "--layout", "stacked"),
    "layers to axis 1": ("layers", "--layout", "stacked", "--axis", "1"),
    "axis 1 to layers": ("axis_1", "--layout", "layers"),
}


def run(settings: Settings, width: int = WIDTH) -> list[Table]:
    """MB/s and the most memory that the program takes besides its mapped files."""
    table = Table("convert", "liftax convert beside cp", [COLUMN, SYNCED, "cp"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = files(folder, width)
        calls: dict[str, Callable[[], object]] = {case: caller(folder, case) for case in CASES}
        calls["cp"] = lambda: copied(folder)
        calls[SYNCED] = lambda: copied(folder, synced=True)
        samples = interleave(calls, settings, warm_up=1, wall=True)
        rates = {case: size / sample.median / 1e6 for case, sample in samples.items()}
        for case in CASES:
            share = rates[case] / rates[SYNCED]
            table.put(case, COLUMN, Cell(f"{rates[case]:,.0f} MB/s ({share:.2f}x)", rates[case]))
            for peer in (SYNCED, "cp"):
                table.put(case, peer, Cell(f"{rates[peer]:,.0f} MB/s", rates[peer]))
            tracemalloc.start()
            calls[case]()
            peak = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            table.put(f"{case}, memory", COLUMN, Cell(f"{peak:,.0f} MiB", peak))
    table.targets = dict.fromkeys(CASES, ">= 0.5x")
    table.note(
        f"one tensor of {size / 2**20:,.0f} MiB, float32; checksums on other threads. The ratio is "
        f"to a copy that is on the disk, as what liftax wrote is when it says so"
    )
    return [table]


def copied(folder: Path, synced: bool = False) -> None:
    made = folder / "copy"
    shutil.copyfile(folder / "stacked.safetensors", made)
    if synced:
        with made.open("rb+") as file:
            os.fsync(file.fileno())


def files(folder: Path, width: int) -> int:
    """Makes the three files; returns the bytes of their tensor."""
    import liftax as nn

    draw = np.random.default_rng(0)
    tensor = draw.standard_normal((LAYERS, width, width), np.float32)
    stacked = nn.Stacking.of("blocks", LAYERS)
    tree = {"params": {"blocks": {"w": tensor}}}
    nn.save_checkpoint(folder / "stacked.safetensors", tree, layout=stacked)
    for case in ("stacked to layers", "layers to axis 1"):
        caller(folder, case)()
    return tensor.nbytes


def caller(folder: Path, case: str) -> Callable[[], object]:
    from liftax.cli import main

    source, *options = CASES[case]
    made = case.rpartition(" to ")[2].replace(" ", "_")
    paths = [str(folder / f"{name}.safetensors") for name in (source, made)]

    def call() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            code = main(["convert", *paths, *options])
        if code:
            raise RuntimeError(f"{case}: exit code {code} in {os.getcwd()}")

    return call
