"""`liftax predict`: what a model that `liftax train` wrote reads in images of digits."""

from __future__ import annotations

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..checkpoint.files import load_checkpoint, open_checkpoint
from ..errors import LiftaxError
from ..module import Module
from ._console import CommandError, Console
from ._digits import MODELS, split_digits
from ._files import check_output, read_batch, replacing

HELP = "read digits with the parameters that `liftax train` wrote"

_PIXELS = 64
_MOST_SHOWN = 10


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "parameters", type=Path, metavar="FILE", help="runs/MODEL/params.safetensors"
    )
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help=".npy or .csv, one image a row: 64 numbers from 0 to 1 (default: the digits that "
        "were held out of the training, with what they are)",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write digit and probability here, as .csv"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints the first predictions, and how many are right where that is known."""
    # Before the model is read: a folder that is missing is told at once.
    if args.output is not None:
        check_output(args.output, ".csv")
    name, variables = _read(args.parameters)
    labels = None
    if args.input is not None:
        images, source = read_batch(args.input), str(args.input)
    else:
        data = split_digits()
        images, labels = data.test_images.reshape(-1, _PIXELS), data.test_labels
        source = "the handwritten digits that were held out"
    if images.shape[1] != _PIXELS:
        raise CommandError(
            f"{source}: has {images.shape[1]} numbers a row; an image has 64, 8 rows of 8 pixels"
        )
    console.line(f"model: {name}, from {args.parameters}")
    console.line(f"input: {source}, {len(images):,} image{'s' * (len(images) != 1)}")
    probabilities = _probabilities(MODELS[name](), variables, images, args.parameters)

    digits, sure = probabilities.argmax(-1), probabilities.max(-1)
    rows = [(str(i), str(digits[i]), f"{sure[i]:.4f}") for i in range(len(images))]
    console.line()
    console.table(("image", "digit", "probability"), rows[:_MOST_SHOWN], right=(0, 1, 2))
    if len(rows) > _MOST_SHOWN:
        console.line(f"... and {len(rows) - _MOST_SHOWN:,} more")
    if labels is not None:
        right = int((digits == labels).sum())
        console.line(f"accuracy: {right / len(labels):.2%} ({right} of {len(labels)} held out)")
    if args.output is not None:
        text = io.StringIO()
        # By itself it would end lines as Windows does.
        csv.writer(text, lineterminator="\n").writerows(
            [("digit", "probability"), *(r[1:] for r in rows)]
        )
        # Whole or not at all: what an earlier run wrote stays until then.
        with replacing(args.output) as file:
            file.write(text.getvalue().encode())
        console.line(f"wrote {args.output}")
    return 0


def _read(path: Path) -> tuple[str, Any]:
    """The name of the model that a file says it is of, and the variables."""
    try:
        name = open_checkpoint(path).metadata.get("model", "")
        if name not in MODELS:
            raise CommandError(
                f"{path}: does not say that it is of {' or '.join(sorted(MODELS))}, as `liftax "
                f"train` does"
            )
        # In either form: what the model needs is the stacked one.
        described = bool(open_checkpoint(path).stackings)
        return name, load_checkpoint(path, form="stacked" if described else None, verify=True)
    except LiftaxError as error:
        raise CommandError(str(error)) from error
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error


def _probabilities(model: Module, variables: object, images: np.ndarray, path: Path) -> np.ndarray:
    shaped = images.reshape(-1, 8, 8)
    try:
        # What liftax refuses here is the file's fault: the models are its own.
        logits = jax.jit(model.apply)(variables, shaped)
    except LiftaxError as error:
        raise CommandError(f"{path}: {' '.join(str(error).split())}") from error
    return np.asarray(jax.nn.softmax(logits))
