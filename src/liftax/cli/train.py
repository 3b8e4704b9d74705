"""`liftax train`: trains one of two small models on handwritten digits."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from ..checkpoint.files import save_described
from ..checkpoint.find import stackings_of
from ..module import Module
from ._arguments import count, seed
from ._console import CommandError, Console, Interrupted, require
from ._digits import MODELS, Epoch, count_right, split_digits, train
from ._files import replacing

HELP = "train on 1,797 handwritten digits: parameters, metrics and a picture of their curves"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--model",
        choices=[*sorted(MODELS), "lm"],
        default="stack",
        help="stack: scan over layers x vmap over the batch (default); "
        "lstm: an LSTM cell scanned over the rows of the image; lm: a decoder on text that every "
        "Python carries",
    )
    parser.add_argument("--epochs", type=count, default=40, metavar="N", help="default: 40")
    parser.add_argument(
        "--steps", type=count, default=1000, metavar="N", help="of lm, default: 1000"
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go (default: runs/MODEL)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Trains, tests, and writes `params.safetensors`, `metrics.csv` and `curves.png`.

    Parameters and metrics are written after each epoch, the picture at the end. Ctrl-C between the
    two draws the picture of the epochs there were.
    """
    require(
        "matplotlib.figure", "train"
    )  # missing ones are reported before the training, not after
    if args.model == "lm":
        return _train_lm(args)
    require("safetensors", "train")
    folder = args.out if args.out is not None else Path("runs", args.model)
    # Before the data are read: a folder that cannot be made is told at once.
    _make(folder)

    data = split_digits()
    model = MODELS[args.model]()
    console.line(
        f"digits: {len(data.images) + len(data.test_images):,} images, "
        f"{len(data.images):,} to train on, {len(data.test_images)} held out"
    )
    console.line(f"model: {args.model}, {args.epochs} epochs, seed {args.seed}")

    console.line("compiling the training of one epoch (a few seconds), then training")

    history = _History(args, folder, model)
    try:
        with console.progress(args.epochs, "epoch") as progress:
            for epoch in train(model, data, epochs=args.epochs, seed=args.seed):
                history.add(epoch)
                # After each: a run that is killed leaves what it had.
                history.write()
                progress(
                    loss=f"{epoch.loss:.4f} in training, {epoch.held_out_loss:.4f} held out",
                    accuracy=f"{epoch.accuracy:.4f} in training, {epoch.held_out_accuracy:.4f} "
                    f"held out",
                )
        right = count_right(model, epoch.variables, data.test_images, data.test_labels)
    except KeyboardInterrupt:
        raise Interrupted(history.interrupted()) from None

    tested = right / len(data.test_labels)
    console.line(f"test accuracy: {tested:.2%} ({right} of {len(data.test_labels)} held out)")
    history.draw(f"test accuracy {tested:.2%}")
    console.line(f"wrote {history.parameters}, {history.metrics.name} and {history.picture.name}")
    console.line(f"use it: liftax predict {history.parameters}")
    return 0


def _train_lm(args: argparse.Namespace) -> int:
    require("optax", "train")
    require("orbax.checkpoint", "checkpoints")
    # Later than the rest: nobody else needs what trains in several processes.
    from ..lm.settings import Settings, TrainingError
    from ._lm import train as train_lm

    settings = Settings(args.out or Path("runs", "lm"), steps=args.steps, seed=args.seed)
    try:
        train_lm(settings)
    except TrainingError as error:
        raise CommandError(str(error)) from error
    return 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CommandError(f"{folder}: is a file, not a folder") from None
    except OSError as error:
        raise CommandError(f"{folder}: cannot be made: {error.strerror}") from error


_COLUMNS = ("epoch", "training_loss", "training_accuracy", "held_out_loss", "held_out_accuracy")


class _History:
    """The epochs so far, and the three files that show them."""

    def __init__(self, args: argparse.Namespace, folder: Path, model: Module) -> None:
        self.args = args
        self.folder = folder
        self.parameters = folder / "params.safetensors"
        self.metrics = folder / "metrics.csv"
        self.picture = folder / "curves.png"
        # What `liftax convert` reads in the file: which parameters are stacked.
        self.layout = stackings_of(model, jax.random.key(0), np.zeros((1, 8, 8), np.float32))
        self.rows: list[tuple[float, ...]] = []
        self.last: Epoch | None = None

    def add(self, epoch: Epoch) -> None:
        self.rows.append((epoch.loss, epoch.accuracy, epoch.held_out_loss, epoch.held_out_accuracy))
        self.last = epoch

    def write(self) -> None:
        """The parameters and the metrics of the epochs so far."""
        assert self.last is not None
        about = {"model": self.args.model, "seed": self.args.seed, "epoch": self.last.number}
        tree = jax.tree.map(np.asarray, self.last.variables)
        try:
            save_described(
                self.parameters, tree, self.layout, {k: str(v) for k, v in about.items()}
            )
        except OSError as error:
            why = error.strerror or error
            raise CommandError(f"{self.parameters}: cannot be written: {why}") from error
        # As many digits as float32 has for sure.
        rows = [",".join(f"{value:.6g}" for value in row) for row in self.rows]
        lines = [",".join(_COLUMNS), *(f"{i},{row}" for i, row in enumerate(rows, 1))]
        with replacing(self.metrics) as file:
            file.write(("\n".join(lines) + "\n").encode())

    def interrupted(self) -> str:
        """Makes both files agree on the last epoch that was complete, and says so."""
        if self.last is None:
            return f"interrupted before the first epoch was over; {self.folder} is as it was"
        self.write()
        self.draw(f"interrupted after {self.last.number} epochs")
        return (
            f"interrupted after epoch {self.last.number} of {self.args.epochs}; "
            f"{self.parameters}, {self.metrics.name} and {self.picture.name} are complete and "
            f"show that epoch"
        )

    def draw(self, remark: str) -> None:
        """Loss and accuracy by epoch, on the images trained on and on those held out."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        numbers = range(1, len(self.rows) + 1)
        loss, accuracy, held_out_loss, held_out_accuracy = zip(*self.rows, strict=True)
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        figure.suptitle(f"{self.args.model}, seed {self.args.seed}: {remark}")
        curves = {"loss": (loss, held_out_loss), "accuracy": (accuracy, held_out_accuracy)}
        for axes, (name, both) in zip(figure.subplots(1, 2), curves.items(), strict=True):
            for label, values in zip(("in training", "held out"), both, strict=True):
                # A curve of one point has no line to be seen.
                axes.plot(numbers, values, marker="o" if len(numbers) < 3 else None, label=label)
            axes.legend()
            axes.set_xlabel("epoch")
            axes.set_ylabel(name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        with replacing(self.picture) as file:
            figure.savefig(file, format="png", dpi=120)
