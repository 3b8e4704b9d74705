"""Files that a command reads and writes: checked when read, replaced whole when written."""

from __future__ import annotations

import contextlib
import csv
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from .. import files
from ._console import CommandError

# What float() reads, less its underscores between digits; "nan" and "inf" are refused later,
# with their place.
_NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|nan|inf(inity)?)", re.IGNORECASE)


def read_batch(path: Path) -> np.ndarray:
    """Reads a batch of rows of numbers from a `.npy` or `.csv` file, as float32.

    Raises:
      CommandError: the file is missing, malformed or empty, has other than two axes, or holds a
        number that is not finite in float32.
    """
    readers = {".npy": _read_npy, ".csv": _read_csv}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CommandError(f"{path}: a batch is read from a .npy or a .csv file")
    try:
        if path.is_dir():
            raise CommandError(f"{path}: is a folder, not a file")
        if path.stat().st_size == 0:
            raise CommandError(f"{path}: the file is empty")
        found = reader(path)
    except OSError as error:
        raise CommandError(f"{path}: {error.strerror or error}") from error
    if found.ndim != 2:
        raise CommandError(
            f"{path}: has shape {found.shape}; a batch has two axes, (examples, features)"
        )
    if found.size == 0:
        raise CommandError(f"{path}: has shape {found.shape}, which is empty")
    # What is too large becomes infinite, and is told below with its place.
    with np.errstate(over="ignore"):
        batch = found.astype(np.float32)
    unfit = ~np.isfinite(batch)
    if unfit.any():
        row, column = (int(i) for i in np.argwhere(unfit)[0])
        value = found[row, column]
        why = "too large for float32" if np.isfinite(value) else "not finite"
        raise CommandError(f"{path}: row {row + 1}, column {column + 1} is {value}, {why}")
    return batch


def _read_npy(path: Path) -> np.ndarray:
    try:
        # Mapped, so that a header that promises more than the file holds allocates nothing.
        found = np.lib.format.open_memmap(path, mode="r")
    except OSError:
        raise
    except Exception as error:
        # numpy's header reader lets all kinds of errors through on damaged bytes.
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CommandError(f"{path}: not a whole .npy file of numbers ({why})") from error
    if found.dtype.kind not in "fiub":
        raise CommandError(f"{path}: holds {found.dtype}, not real numbers")
    expected = found.offset + found.nbytes
    if found.size and path.stat().st_size != expected:
        raise CommandError(
            f"{path}: has {path.stat().st_size} bytes where its header says {expected}"
        )
    return np.array(found)


def _read_csv(path: Path) -> np.ndarray:
    rows: list[list[float]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    rows.append(_csv_row(path, reader.line_num, cells))
                    if len(rows[-1]) != len(rows[0]):
                        raise CommandError(
                            f"{path}: line {reader.line_num} has {len(rows[-1])} numbers, "
                            f"the lines before it {len(rows[0])}"
                        )
    except UnicodeDecodeError as error:
        raise CommandError(f"{path}: not a text file in UTF-8") from error
    except csv.Error as error:
        raise CommandError(f"{path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise CommandError(f"{path}: holds no numbers")
    return np.array(rows, np.float64)


def _csv_row(path: Path, line: int, cells: list[str]) -> list[float]:
    numbers = []
    for column, cell in enumerate(map(str.strip, cells)):
        if _NUMBER.fullmatch(cell) is None:
            hint = "; a header line has to go" if line == 1 else ""
            shown = cell if len(cell) <= 40 else cell[:37] + "..."
            raise CommandError(
                f"{path}: line {line}, column {column + 1}: {shown!r} is not a number{hint}"
            )
        numbers.append(float(cell))
    return numbers


def check_output(path: Path, suffix: str) -> None:
    """Makes sure, before any work is done, that ``path`` can be written.

    Raises:
      CommandError: it has another suffix, is a folder, or its folder is missing or read-only.
    """
    if path.suffix.lower() != suffix:
        raise CommandError(f"{path}: the output is a {suffix} file")
    try:
        # What is_dir() says nothing of: a name that is too long, a loop of links.
        with contextlib.suppress(FileNotFoundError):
            path.stat()
    except OSError as error:
        raise CommandError(f"{str(path)[:200]}: cannot be written: {error.strerror}") from error
    if path.is_dir():
        raise CommandError(f"{path}: is a folder, not a file")
    if path.exists() and not path.is_file():
        raise CommandError(f"{path}: is there and is no file")
    if not path.parent.is_dir():
        raise CommandError(f"{path}: the folder {path.parent} does not exist")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise CommandError(f"{path}: the folder {path.parent} cannot be written to")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """As `liftax.files.replacing`, with a line for the user where the file cannot be written.

    Raises:
      CommandError: the disk is full, the folder is read-only, and the like.
    """
    try:
        with files.replacing(path) as (file, _):
            yield file
    except OSError as error:
        raise CommandError(f"{path}: cannot be written: {error.strerror or error}") from error


def write_npy(path: Path, array: np.ndarray) -> None:
    """Writes an array, whole or not at all."""
    with replacing(path) as file:
        np.lib.format.write_array(file, array, allow_pickle=False)
