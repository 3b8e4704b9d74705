"""Writes Linen's msgpack checkpoints, such that `flax.serialization` and `read_msgpack` read them.

The format has no place for what a file says of itself. But Linen takes an array that is cut into
chunks from a map, of which it reads two entries and leaves the others alone. So the first array is
written in that way, however small, with what liftax knows of the file beside its chunks.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from typing import BinaryIO

import numpy as np

from ..errors import CheckpointError
from ..stack.arrays import Lazy
from ..stack.stacking import name_of
from .msgpack import ARRAY, CHUNKED, COMPLEX, TOLD
from .tensors import BY_NAME, raw_bytes

_CHUNK = 2**30
Step = Callable[[str, int], None]


class _Writer:
    """Writes one tree."""

    def __init__(self, file: BinaryIO, told: str, step: Step):
        self.file, self.told, self.step = file, told.encode(), step
        self.told_at = 0  # where it was written; 0 for not yet

    def head(self, size: int, forms: tuple[tuple[int, int, str], ...]) -> None:
        """The first bytes of what has a size: forms are (most, first byte, code of the size)."""
        for most, first, code in forms:
            if size <= most:
                # Without a code the size lies in the first byte itself.
                self.file.write(bytes([first | size]) if not code else bytes([first]))
                if code:
                    self.file.write(struct.pack(code, size))
                return
        raise CheckpointError(f"{size:,} parts are more than msgpack can hold")

    def map(self, size: int) -> None:
        self.head(size, ((15, 0x80, ""), (2**16 - 1, 0xDE, ">H"), (2**32 - 1, 0xDF, ">I")))

    def text(self, text: bytes) -> None:
        short, forms = (31, 0xA0, ""), ((255, 0xD9, ">B"), (2**16 - 1, 0xDA, ">H"))
        self.head(len(text), (short, *forms, (2**32 - 1, 0xDB, ">I")))
        self.file.write(text)

    def node(self, node: object, path: tuple[str, ...]) -> None:
        if isinstance(node, Mapping):
            self.map(len(node))
            for name, part in node.items():
                self.text(str(name).encode())
                self.node(part, (*path, str(name)))
        elif isinstance(node, Lazy):
            self.leaf(node, path)
        else:
            self.file.write(_plain(node, path))

    def leaf(self, leaf: Lazy, path: tuple[str, ...]) -> None:
        if leaf.dtype.newbyteorder("=").name not in BY_NAME:
            raise CheckpointError(f"{name_of(path)} is {leaf.dtype}, which Linen's files lack")
        # The first array is in chunks whatever its size, for the place beside them.
        if self.told_at and leaf.nbytes <= _CHUNK:
            self.array(leaf.shape, leaf.dtype, leaf.nbytes, leaf.chunks())
        else:
            self.chunked(leaf)
        self.step("/".join(path), leaf.nbytes)

    def chunked(self, leaf: Lazy) -> None:
        first = not self.told_at
        self.map(3 + first)
        self.text(CHUNKED.encode())
        self.file.write(b"\xc3")
        self.text(b"shape")
        self.map(len(leaf.shape))
        for i, size in enumerate(leaf.shape):
            self.text(str(i).encode())
            self.file.write(_plain(size, ()))
        if first:
            self.text(TOLD.encode())
            self.text(self.told)
            self.told_at = self.file.tell() - len(self.told)
        self.text(b"chunks")
        count, most = math.prod(leaf.shape), max(1, _CHUNK // leaf.dtype.itemsize)
        # An array without elements has a chunk as well, an empty one.
        self.map(max(1, -(-count // most)))
        values = leaf.read().reshape(-1)
        for i in range(max(1, -(-count // most))):
            part = values[i * most : (i + 1) * most]
            self.text(str(i).encode())
            self.array(part.shape, leaf.dtype, part.nbytes, [part])

    def array(self, shape: tuple[int, ...], dtype: np.dtype, size: int, chunks: object) -> None:
        """An array as an extension: shape, name of the dtype, bytes."""
        name = dtype.newbyteorder("=").name.encode()
        head = b"\x93" + _list(shape) + bytes([0xA0 | len(name)]) + name
        # Sizes in four bytes always: a chunk is short enough for that.
        head += b"\xc6" + struct.pack(">I", size)
        self.file.write(b"\xc9" + struct.pack(">Ib", len(head) + size, ARRAY) + head)
        # Counted: a file that is read here may be cut short meanwhile, and all that follows would
        # shift.
        written = 0
        for chunk in chunks:  # type: ignore[attr-defined]
            written += self.file.write(raw_bytes(chunk))
        if written != size:
            raise CheckpointError(f"read {written} bytes of an array, expected {size}")


def write_msgpack(
    file: BinaryIO, tree: object, told: str, step: Step = lambda name, size: None
) -> int:
    """Writes nested dicts of arrays and plain values.

    Args:
      file: open for writing.
      tree: the nested dicts; arrays are read when their turn comes.
      told: what the file says of itself.
      step: called after each array with its name and its bytes.

    Returns:
      Where ``told`` begins; 0 where there is no array to carry it.

    Raises:
      CheckpointError: a leaf is nothing that Linen writes. The message names it.
    """
    writer = _Writer(file, told, step)
    writer.node(tree, ())
    return writer.told_at


def _list(shape: tuple[int, ...]) -> bytes:
    head = (
        bytes([0x90 | len(shape)]) if len(shape) < 16 else b"\xdc" + struct.pack(">H", len(shape))
    )
    return head + b"".join(_plain(size, ()) for size in shape)


def _plain(value: object, path: tuple[str, ...]) -> bytes:
    """A value that is no array."""
    if value is None:
        return b"\xc0"
    # Before the whole numbers: True is one to Python.
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int) and -(2**63) <= value < 2**64:
        if 0 <= value < 128:
            return bytes([value])
        return struct.pack(">BQ", 0xCF, value) if value >= 0 else struct.pack(">Bq", 0xD3, value)
    if isinstance(value, float):
        return struct.pack(">Bd", 0xCB, value)
    if isinstance(value, complex):
        parts = b"\x92" + _plain(value.real, path) + _plain(value.imag, path)
        return struct.pack(">BBb", 0xC7, len(parts), COMPLEX) + parts
    if isinstance(value, str) and len(value.encode()) < 2**32:
        text = value.encode()
        return b"\xdb" + struct.pack(">I", len(text)) + text
    raise CheckpointError(f"{name_of(path)} is {type(value).__name__}, which Linen's files lack")
