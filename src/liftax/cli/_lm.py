"""The command line of a run: ``python -m examples.lm``, and ``liftax train --model lm``."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..lm.launch import launch
from ..lm.settings import Settings, TrainingError, parse_mesh
from ..lm.worker import Place, work
from ._console import Console

# Fields of the settings that are options of the same name and kind.
_NUMBERS = ("steps", "seed", "batch", "context", "width", "heads", "depth", "every", "keep", "join")


def parser() -> argparse.ArgumentParser:
    """The arguments."""
    made = argparse.ArgumentParser("python -m examples.lm", description=__doc__)
    fields = {field.name: field.default for field in dataclasses.fields(Settings)}
    for name in (*_NUMBERS, "sample"):
        made.add_argument(f"--{name}", type=int, default=fields[name], help="default: %(default)s")
    made.add_argument("--rate", type=float, default=fields["rate"], help="default: %(default)s")
    made.add_argument("--out", type=Path, default=Path("runs/lm"), help="default: %(default)s")
    made.add_argument("--mesh", default="data=1", help="sizes of the axes, e.g. data=2,stage=2")
    made.add_argument("--processes", type=int, default=1, help="how many there are in all")
    made.add_argument("--coordinator", help="host:port of process 0, where each runs by itself")
    made.add_argument("--process-id", type=int, default=0, help="which one this is")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code."""
    args = parser().parse_args(argv)
    values = {name: getattr(args, name) for name in (*_NUMBERS, "sample", "rate", "out")}
    try:
        settings = Settings(**values, mesh=parse_mesh(args.mesh))
        train(settings, args.processes, args.coordinator, args.process_id)
    except TrainingError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


def train(
    settings: Settings, processes: int = 1, coordinator: str | None = None, process: int = 0
) -> None:
    """Trains, with a progress bar: in this process, in local ones, or as one of several machines.

    Raises:
      TrainingError: it cannot be done.
    """
    console, bar = Console(), None
    with console.progress(settings.steps, "step") as advance:
        reached = 0

        def show(what: str, value: Any, _: object = None) -> None:
            nonlocal reached, bar
            if what == "begin" and value:
                console.line(f"going on after step {value}")
            if what in ("begin", "step"):
                step = value if what == "begin" else value["step"]
                if what == "step":
                    bar = {"loss": f"{value['loss']:.4f}"}
                # After a loss the steps come again: the bar waits for them.
                for _ in range(reached, step):
                    advance(**(bar or {}))
                reached = max(reached, step)

        if processes == 1:
            settings.out.mkdir(parents=True, exist_ok=True)
            # There is nobody to wait for or to start again: the training runs right here.
            work(settings, Place(), show)
        elif coordinator is None:
            launch(settings, processes, show)
        else:
            launch(settings, processes, show, Place(process, processes, coordinator))
    # All machines write to one folder: one of them says so.
    if process == 0:
        console.line(
            f"wrote metrics.jsonl, curves.png, sample.txt and checkpoints in {settings.out}"
        )
