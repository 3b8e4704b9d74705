"""`liftax train`: trains one of two small models on handwritten digits."""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import numpy as np

from ._arguments import count, seed
from ._console import CommandError, Console, Interrupted, require
from ._digits import MODELS, Epoch, count_right, split_digits, train
from ._files import replacing, write_safetensors

HELP = "train on 1,797 handwritten digits: loss, accuracy, a picture and the parameters"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--model",
        choices=sorted(MODELS),
        default="stack",
        help="stack: scan over layers x vmap over the batch (default); "
        "lstm: an LSTM cell scanned over the rows of the image",
    )
    parser.add_argument("--epochs", type=count, default=40, metavar="N", help="default: 40")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="where the files go (default: runs/MODEL)"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Trains, tests, and writes `params.safetensors` and `curves.png`.

    The parameters are written after each epoch, the picture at the end. Ctrl-C between the two
    draws the picture of the epochs there were.
    """
    require("matplotlib", "train")  # missing ones are reported before the training, not after
    require("safetensors", "train")
    folder = args.out if args.out is not None else Path("runs", args.model)
    _make(folder)

    data = split_digits()
    model = MODELS[args.model]()
    console.line(
        f"digits: {len(data.images) + len(data.test_images):,} images, "
        f"{len(data.images):,} to train on, {len(data.test_images)} held out"
    )
    console.line(f"model: {args.model}, {args.epochs} epochs, seed {args.seed}")

    history = _History(args, folder)
    try:
        with console.progress(args.epochs, "epoch") as progress:
            for epoch in train(model, data, epochs=args.epochs, seed=args.seed):
                history.add(epoch)
                # After each: a run that is killed leaves what it had.
                history.write_parameters()
                progress(loss=f"{epoch.loss:.4f}", accuracy=f"{epoch.accuracy:.4f}")
        right = count_right(model, epoch.variables, data.test_images, data.test_labels)
    except KeyboardInterrupt:
        raise Interrupted(history.interrupted()) from None

    tested = right / len(data.test_labels)
    console.line(f"test accuracy: {tested:.2%} ({right} of {len(data.test_labels)} held out)")
    history.draw(f"test accuracy {tested:.2%}")
    console.line(f"wrote {history.parameters} and {history.picture}")
    return 0


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise CommandError(f"{folder}: is a file, not a folder") from None
    except OSError as error:
        raise CommandError(f"{folder}: cannot be made: {error.strerror}") from error


class _History:
    """The epochs so far, and the two files that show them."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args = args
        self.folder = folder
        self.parameters = folder / "params.safetensors"
        self.picture = folder / "curves.png"
        self.loss: list[float] = []
        self.accuracy: list[float] = []
        self.last: Epoch | None = None

    def add(self, epoch: Epoch) -> None:
        self.loss.append(epoch.loss)
        self.accuracy.append(epoch.accuracy)
        self.last = epoch

    def write_parameters(self) -> None:
        assert self.last is not None
        leaves, _ = jax.tree.flatten_with_path(self.last.variables)
        # Under the paths of the variables, which `liftax convert` reads.
        arrays = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in leaves
        }
        about = {"model": self.args.model, "seed": self.args.seed, "epoch": self.last.number}
        write_safetensors(self.parameters, arrays, {k: str(v) for k, v in about.items()})

    def interrupted(self) -> str:
        """Makes both files agree on the last epoch that was complete, and says so."""
        if self.last is None:
            return f"interrupted before the first epoch was over; {self.folder} is as it was"
        self.write_parameters()
        self.draw(f"interrupted after {self.last.number} epochs")
        return (
            f"interrupted after epoch {self.last.number} of {self.args.epochs}; "
            f"{self.parameters} and {self.picture.name} are complete and show that epoch"
        )

    def draw(self, remark: str) -> None:
        """Loss and accuracy on the images trained on, by epoch."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        numbers = range(1, len(self.loss) + 1)
        figure = Figure(figsize=(8, 3.6), layout="constrained")
        figure.suptitle(f"{self.args.model}, seed {self.args.seed}: {remark}")
        curves = {"loss": self.loss, "accuracy": self.accuracy}
        for axes, (name, values) in zip(figure.subplots(1, 2), curves.items(), strict=True):
            # A curve of one point has no line to be seen.
            axes.plot(numbers, values, marker="o" if len(numbers) < 3 else None)
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"{name} in training")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        with replacing(self.picture) as file:
            figure.savefig(file, format="png", dpi=120)
