"""`liftax forward`: the composed scan x vmap model on a batch of one's own, or on digits."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import jax
import numpy as np

from .. import recipes
from ..layout import Layout, layout
from ._arguments import count, seed
from ._console import CommandError, Console
from ._digits import load_digits
from ._files import check_output, read_batch, write_npy

HELP = "run the composed scan-over-layers x vmap-over-batch model on a batch"


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument(
        "--input",
        type=Path,
        metavar="FILE",
        help=".npy or .csv, one example a row (default: handwritten digits)",
    )
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: 0")
    parser.add_argument("--layers", type=count, default=3, metavar="N", help="default: 3")
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write the flattened activation here, as .npy"
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Prints where each parameter lies and what came out; writes it where asked."""
    if args.output is not None:
        check_output(args.output, ".npy")
    if args.input is not None:
        batch, source = read_batch(args.input), str(args.input)
    else:
        images, _ = load_digits()
        batch, source = images.reshape(len(images), -1), "handwritten digits (scikit-learn)"
    examples, features = batch.shape
    console.line(f"input: {source}, {examples:,} x {features:,}")

    try:
        # Of shapes alone, so that a model that is too large is told before any memory is taken.
        found = layout(
            recipes.composed_lifts(args.layers, features), jax.random.key(0), batch, None
        )
        # The system would end the process without a word.
        _check_memory(found.bytes)
        _print_layout(found, console)
        activation = np.asarray(
            recipes.composed_lifts_forward(args.seed, batch, args.layers, features)
        )
    except jax.errors.JaxRuntimeError as error:
        # JAX has one class for all that goes wrong at run time.
        if "memory" not in str(error):
            raise
        raise CommandError("out of memory: ask for fewer --layers or a smaller batch") from error
    _print_activation(activation, (examples, features), console)

    if args.output is not None:
        write_npy(args.output, activation)
        console.line(f"wrote {args.output}")
    return 0


def _check_memory(needed: int) -> None:
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > physical:
        raise CommandError(
            f"the parameters would take {needed / 2**30:,.1f} GiB, and this machine has "
            f"{physical / 2**30:,.1f} GiB of memory: ask for fewer --layers"
        )


def _print_layout(layout: Layout, console: Console) -> None:
    rows = []
    for variable in layout:
        origins = []
        for i, axis in enumerate(variable.axes):
            if axis.lift is not None:
                origins.append(f"axis {i} from {layout.lifts[axis.lift].title}")
        rows.append(
            (
                f"{variable.collection}/{variable.name}",
                str(variable.shape),
                ", ".join(origins) or "the layer's own",
                f"{variable.bytes:,}",
            )
        )
    console.line()
    console.table(("parameter", "shape", "axes that a lift added", "bytes"), rows, right=(3,))
    console.line(f"{layout.parameters:,} parameters, {layout.bytes:,} bytes")
    for lift in layout.lifts:
        shared = [name for name, role in lift.roles.items() if role == "shared"]
        if shared:
            console.line(f"{lift.title}: {', '.join(shared)} shared")


def _print_activation(activation: np.ndarray, shape: tuple[int, int], console: Console) -> None:
    # The input is finite, so it is a sum that is not.
    unfit = int(activation.size - np.isfinite(activation).sum())
    if unfit:
        raise CommandError(
            f"{unfit:,} of {activation.size:,} numbers of the activation are not finite: "
            "the input is too large for float32"
        )
    # A mean of many numbers in float32 would be rounded to fewer digits than are printed.
    wide = activation.astype(np.float64)
    numbers = {
        "mean": wide.mean(),
        "std": wide.std(),
        "min": wide.min(),
        "max": wide.max(),
    }
    console.line()
    console.line(f"activation: {shape[0]:,} x {shape[1]:,}, flattened to {activation.shape}")
    console.line("  ".join(f"{name} {value:.6g}" for name, value in numbers.items()))
    console.line(f"{np.mean(activation == 0):.1%} of it is zero")
