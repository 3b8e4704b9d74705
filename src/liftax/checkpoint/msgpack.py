"""Linen's msgpack checkpoints, as `flax.serialization.to_bytes` writes them.

The file is scanned once for where its arrays lie; the arrays stay in the memory map until they
are read. The scanner knows the part of msgpack that such files are made of, holds every length
against what is left of the file before anything is made of it, and runs no code of the file.

Arrays are extension type 1, numpy scalars type 3: a list of shape, dtype and bytes. Complex
numbers are type 2. Arrays of more than a gigabyte are cut into chunks, in a map.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator

import numpy as np

from ..errors import CheckpointError
from ..stack.arrays import Lazy
from ..stack.stacking import name_of
from .tensors import BY_NAME, Keep, Kept, Mapped, check_shape

ARRAY, COMPLEX, _SCALAR = 1, 2, 3
CHUNKED = "__msgpack_chunked_array__"
TOLD = "liftax"
"""In the map of one array's chunks: what liftax says of a file that it has written."""
# Each level takes several frames of Python's stack, and a damaged file may nest without end.
_DEEPEST = 100
_MOST_PLAIN = 100_000  # each takes a hundred times the memory that it takes in the file
_NUMBERS = {0xCA + i: f">{code}" for i, code in enumerate("fdBHIQbhiq")}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}
# First byte -> what follows, its size where that is in the byte, else in how many bytes it follows.
_SIZED: dict[int, tuple[str, int, int]] = {
    **{0x80 + size: ("map", size, 0) for size in range(16)},
    **{0x90 + size: ("list", size, 0) for size in range(16)},
    **{0xA0 + size: ("string", size, 0) for size in range(32)},
    **{0xC4 + i: ("bytes", 0, 2**i) for i in range(3)},
    **{0xC7 + i: ("extension", 0, 2**i) for i in range(3)},
    **{0xD4 + i: ("extension", 2**i, 0) for i in range(5)},
    **{0xD9 + i: ("string", 0, 2**i) for i in range(3)},
    **{0xDC + i: ("list", 0, 2 * 2**i) for i in range(2)},
    **{0xDE + i: ("map", 0, 2 * 2**i) for i in range(2)},
}


def looks_like_msgpack(head: bytes) -> bool:
    """Whether a file that begins with ``head`` may be a map in this format."""
    return bool(head) and _SIZED.get(head[0], ("",))[0] == "map"


def read_msgpack(data: np.ndarray) -> tuple[object, str | None]:
    """The tree of a checkpoint, with arrays that are not read yet, and what liftax says of it.

    Args:
      data: the bytes, as a vector of `uint8`: in memory, or mapped.

    Raises:
      CheckpointError: the bytes are damaged or cut short, or hold something that no checkpoint
        of Linen has.
    """
    scanner = _Scanner(data)
    if len(data) == 0:
        raise CheckpointError("it is empty")
    tree = scanner.value()
    if scanner.at != len(data):
        raise CheckpointError(
            f"{len(data) - scanner.at:,} bytes follow the end of the checkpoint: not msgpack"
        )
    if not isinstance(tree, (dict, Lazy)):
        raise CheckpointError(f"it holds {type(tree).__name__}, not variables")
    return tree, scanner.told


class Chunked(Kept):
    """An array that the file has in chunks."""

    def __init__(self, parts: list[Lazy], shape: tuple[int, ...], keep: Keep):
        self.parts, self.shape, self.keep = parts, shape, keep
        self.dtype, self.order = parts[0].dtype, parts[0].order

    def load(self) -> np.ndarray:
        """A copy in one piece."""
        return np.concatenate([part.read() for part in self.parts]).reshape(self.shape)

    def chunks(self) -> Iterator[np.ndarray]:
        """Chunk by chunk."""
        for part in self.parts:
            yield part.read()


class _Scanner:
    """Walks over the bytes once."""

    def __init__(self, data: np.ndarray):
        self.data = data
        self.at = 0
        self.end = len(data)
        self.path: tuple[str, ...] = ()
        self.keep = Keep()
        self.depth = 0
        self.plain = self.arrays = 0
        self.told: str | None = None

    @property
    def name(self) -> str:
        """Where the scanner is; a damaged file may have names of any length."""
        return name_of(part[:100] for part in self.path) if self.path else "the checkpoint"

    def wrong(self, text: str) -> CheckpointError:
        """The error for what stands where the scanner is."""
        return CheckpointError(f"{self.name}: {text}")

    def skip(self, count: int) -> int:
        """Where the next ``count`` bytes start; they are behind then."""
        start = self.at
        if count > self.end - start:
            raise self.wrong(
                f"cut short, {count:,} bytes should follow where {self.end - start:,} are left"
            )
        self.at += count
        return start

    def take(self, count: int) -> bytes:
        start = self.skip(count)
        return self.data[start : start + count].tobytes()

    def sized(self, kind: int) -> tuple[str, int]:
        """What a byte begins, and its size; an empty text for a number and the like."""
        what, size, width = _SIZED.get(kind, ("", 0, 0))
        return what, int.from_bytes(self.take(width), "big") if width else size

    def value(self) -> object:
        """The next value, an array as a `Lazy`."""
        self.depth += 1
        if self.depth > _DEEPEST:
            # A message with a hundred names would not say more than one with three.
            self.path = self.path[:3]
            raise self.wrong(f"nested deeper than {_DEEPEST} levels")
        kind = self.take(1)[0]
        what, size = self.sized(kind)
        found: object
        if what == "map":
            found = self.map(size)
        elif what == "list":
            # As states of optimizers are written: a tuple is a map from numbers.
            found = {str(i): self.part(str(i)) for i in range(size)}
        elif what == "string":
            try:
                found = self.take(size).decode()
            except UnicodeDecodeError:
                raise self.wrong("a string is not UTF-8") from None
        elif what == "extension":
            found = self.extension(size)
        elif kind in _NUMBERS:
            form = _NUMBERS[kind]
            (found,) = struct.unpack(form, self.take(struct.calcsize(form)))
        elif kind in _CONSTANTS:
            found = _CONSTANTS[kind]
        elif 0x7F < kind < 0xE0:
            raise self.wrong(f"byte {kind:#04x} begins nothing that a checkpoint of Linen has")
        else:
            # Small numbers are a byte of their own, the negative ones from 0xE0 on.
            found = kind if kind <= 0x7F else kind - 0x100
        self.depth -= 1
        return found

    def map(self, count: int) -> object:
        made: dict[str, object] = {}
        for _ in range(count):
            key = self.value()
            if not isinstance(key, str):
                raise self.wrong(f"a name is {type(key).__name__}, not a string")
            if key in made:
                self.path = (*self.path, key)
                raise self.wrong("occurs twice")
            made[key] = self.part(key)
        if CHUNKED in made:
            return self.chunked(made)
        # One whose mark is damaged would pass for a mapping of variables.
        if "chunks" in made and made.keys() & {"shape", TOLD}:
            raise self.wrong("an array in chunks is not called as one: it is damaged")
        return made

    def part(self, name: str) -> object:
        """The next value, one of a map or a list."""
        above, self.path = self.path, (*self.path, name)
        found = self.value()
        self.path = above
        if isinstance(found, Lazy):
            self.arrays += 1
            return found
        self.plain += 1
        if self.plain > _MOST_PLAIN + 10 * self.arrays:
            raise self.wrong(
                f"{self.plain:,} values that are in no array: not a checkpoint of Linen"
            )
        return found

    def chunked(self, made: dict[str, object]) -> Lazy:
        shape, chunks, told = made.get("shape"), made.get("chunks"), made.get(TOLD)
        if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
            raise self.wrong("an array in chunks lacks its shape or chunks")
        # Nothing but what liftax writes there: an entry too many would be lost without a word.
        if TOLD in made or made.keys() != {CHUNKED, "shape", "chunks"}:
            if made.keys() != {CHUNKED, "shape", "chunks", TOLD} or not isinstance(told, str):
                raise self.wrong("an array in chunks has parts that are none of its own")
            if self.told is not None:
                raise self.wrong("a second array says what the file holds")
            self.told = told
        sizes = self.shape([shape.get(str(i)) for i in range(len(shape))])
        parts = [chunks.get(str(i)) for i in range(len(chunks))]
        good = [part for part in parts if isinstance(part, Lazy) and len(part.shape) == 1]
        if len(good) != len(parts) or len({part.dtype for part in good}) != 1:
            raise self.wrong("the chunks of an array do not fit together")
        held = sum(part.shape[0] for part in good)
        if held != math.prod(sizes):
            raise self.wrong(
                f"its chunks hold {held:,} elements, its shape {list(sizes)} has "
                f"{math.prod(sizes):,}"
            )
        return Chunked(good, check_shape(sizes, good[0].dtype, self.name), self.keep)

    def extension(self, size: int) -> object:
        """An array, a numpy scalar or a complex number."""
        code = self.take(1)[0]
        start = self.skip(size)
        # Nothing in it may go on behind it, whatever the lengths in it say.
        outer, self.at, self.end = self.end, start, start + size
        try:
            if code not in (ARRAY, _SCALAR, COMPLEX):
                raise self.wrong(f"extension type {code} is none of Linen's")
            found = self.complex() if code == COMPLEX else self.array()
            if self.at != self.end:
                raise self.wrong(f"{self.end - self.at:,} bytes too many")
        finally:
            self.at, self.end = start + size, outer
        return found

    def fields(self, count: int) -> None:
        # A list of fewer than 16 parts begins with 0x90 and their number.
        if self.take(1)[0] != 0x90 + count:
            raise self.wrong(f"expected a list of {count} parts")

    def array(self) -> Lazy:
        self.fields(3)
        what, rank = self.sized(self.take(1)[0])
        if what != "list":
            raise self.wrong("an array has no shape")
        # Of no more than a byte each: what a file can hold, however many axes it says there are.
        shape = self.shape([self.value() for _ in range(rank)])
        name = self.value()
        dtype = BY_NAME.get(name) if isinstance(name, str) else None
        if dtype is None:
            raise self.wrong(f"the dtype {str(name)[:40]!r} is not known")
        what, size = self.sized(self.take(1)[0])
        if what != "bytes":
            raise self.wrong("an array has no bytes")
        start = self.skip(size)
        if size != math.prod(shape) * dtype.itemsize:
            raise self.wrong(
                f"{size:,} bytes for {dtype.name}{list(shape)}, which takes "
                f"{math.prod(shape) * dtype.itemsize:,}"
            )
        return Mapped(self.data, start, dtype, check_shape(shape, dtype, self.name))

    def complex(self) -> complex:
        self.fields(2)
        real, imaginary = self.value(), self.value()
        if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
            raise self.wrong("not a complex number")
        return complex(real, imaginary)

    def shape(self, sizes: list[object]) -> tuple[int, ...]:
        counts = [n for n in sizes if isinstance(n, int) and not isinstance(n, bool) and n >= 0]
        if len(counts) != len(sizes):
            raise self.wrong("an array has a size that is no count")
        return tuple(counts)
