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
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..stack.arrays import Lazy
from ..stack.stacking import name_of
from .tensors import BY_NAME, Keep, Mapped, check_shape

_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3
_CHUNKED = "__msgpack_chunked_array__"
_DEEPEST = 100
_MOST_PLAIN = 100_000  # each takes a hundred times the memory that it takes in the file
# First byte -> how many bytes the length takes, by kind.
_MAPS = {0xDE: 2, 0xDF: 4}
_LISTS = {0xDC: 2, 0xDD: 4}
_STRINGS = {0xD9: 1, 0xDA: 2, 0xDB: 4}
_BINARIES = {0xC4: 1, 0xC5: 2, 0xC6: 4}
_EXTENSIONS = {0xC7: 1, 0xC8: 2, 0xC9: 4}
_FIXED_EXTENSIONS = {0xD4: 1, 0xD5: 2, 0xD6: 4, 0xD7: 8, 0xD8: 16}
_NUMBERS = {
    0xCA: ">f",
    0xCB: ">d",
    0xCC: ">B",
    0xCD: ">H",
    0xCE: ">I",
    0xCF: ">Q",
    0xD0: ">b",
    0xD1: ">h",
    0xD2: ">i",
    0xD3: ">q",
}
_CONSTANTS = {0xC0: None, 0xC2: False, 0xC3: True}


def looks_like_msgpack(head: bytes) -> bool:
    """Whether a file that begins with `head` may be a map in this format."""
    return bool(head) and (0x80 <= head[0] <= 0x8F or head[0] in _MAPS)


def read_msgpack(data: np.ndarray) -> Any:
    """The tree of a checkpoint, with arrays that are not read yet.

    Args:
      data: the bytes, as a vector of `uint8`: in memory, or mapped.

    Raises:
      CheckpointError: the bytes are damaged or cut short, or hold something that no checkpoint
        of Linen has.
    """
    scanner = _Scanner(data)
    if len(data) == 0:
        raise CheckpointError("it is empty")
    tree = scanner.value(())
    if scanner.at != len(data):
        raise CheckpointError(
            f"{len(data) - scanner.at:,} bytes follow the end of the checkpoint: not msgpack"
        )
    if not isinstance(tree, (dict, Lazy)):
        raise CheckpointError(f"it holds {type(tree).__name__}, not variables")
    return tree


class Chunked(Lazy):
    """An array that the file has in chunks."""

    def __init__(self, parts: list[Lazy], shape: tuple[int, ...], keep: Keep):
        self.parts, self.shape, self.keep = parts, shape, keep
        self.dtype, self.order = parts[0].dtype, parts[0].order

    def read(self) -> np.ndarray:
        """A copy in one piece."""
        return self.keep.get(self, self._join)

    def _join(self) -> np.ndarray:
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
        self.keep = Keep()
        self.depth = 0
        self.plain = self.arrays = 0

    def skip(self, count: int, path: tuple[str, ...]) -> int:
        """Where the next `count` bytes start; they are behind then."""
        start = self.at
        if count > self.end - start:
            raise CheckpointError(
                f"{_name(path)}: cut short, {count:,} bytes should follow where "
                f"{self.end - start:,} are left"
            )
        self.at += count
        return start

    def take(self, count: int, path: tuple[str, ...]) -> bytes:
        start = self.skip(count, path)
        return self.data[start : start + count].tobytes()

    def length(self, width: int, path: tuple[str, ...]) -> int:
        return int.from_bytes(self.take(width, path), "big")

    def value(self, path: tuple[str, ...]) -> Any:
        """The next value, an array as a `Lazy`."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise CheckpointError(f"{_name(path[:3])}: nested deeper than {_DEEPEST} levels")
        found = self.kinds(path)
        self.depth -= 1
        return found

    def kinds(self, path: tuple[str, ...]) -> Any:
        kind = self.take(1, path)[0]
        if kind <= 0x7F:
            return kind
        if kind >= 0xE0:
            return kind - 0x100
        if kind in _CONSTANTS:
            return _CONSTANTS[kind]
        if kind in _NUMBERS:
            form = _NUMBERS[kind]
            return struct.unpack(form, self.take(struct.calcsize(form), path))[0]
        if 0x80 <= kind <= 0x8F or kind in _MAPS:
            return self.map(kind & 0x0F if kind <= 0x8F else self.length(_MAPS[kind], path), path)
        if 0x90 <= kind <= 0x9F or kind in _LISTS:
            return self.list(kind & 0x0F if kind <= 0x9F else self.length(_LISTS[kind], path), path)
        if 0xA0 <= kind <= 0xBF or kind in _STRINGS:
            size = kind & 0x1F if kind <= 0xBF else self.length(_STRINGS[kind], path)
            try:
                return self.take(size, path).decode()
            except UnicodeDecodeError:
                raise CheckpointError(f"{_name(path)}: a string is not UTF-8") from None
        if kind in _EXTENSIONS or kind in _FIXED_EXTENSIONS:
            fixed = kind in _FIXED_EXTENSIONS
            size = _FIXED_EXTENSIONS[kind] if fixed else self.length(_EXTENSIONS[kind], path)
            return self.extension(size, path)
        raise CheckpointError(
            f"{_name(path)}: byte {kind:#04x} begins nothing that a checkpoint of Linen has"
        )

    def map(self, count: int, path: tuple[str, ...]) -> Any:
        made: dict[str, Any] = {}
        for _ in range(count):
            key = self.value(path)
            if not isinstance(key, str):
                raise CheckpointError(
                    f"{_name(path)}: a name is {type(key).__name__}, not a string"
                )
            if key in made:
                raise CheckpointError(f"{_name((*path, key))}: occurs twice")
            made[key] = self.part((*path, key))
        return self.chunked(made, path) if _CHUNKED in made else made

    def list(self, count: int, path: tuple[str, ...]) -> dict[str, Any]:
        # As states of optimizers are written: a tuple is a map from numbers.
        return {str(i): self.part((*path, str(i))) for i in range(count)}

    def part(self, path: tuple[str, ...]) -> Any:
        """The next value, one of a map or a list."""
        found = self.value(path)
        if isinstance(found, Lazy):
            self.arrays += 1
        else:
            self.plain += 1
            if self.plain > _MOST_PLAIN + 10 * self.arrays:
                raise CheckpointError(
                    f"{_name(path[:-1])}: {self.plain:,} values that are in no array: not a "
                    f"checkpoint of Linen"
                )
        return found

    def chunked(self, made: dict[str, Any], path: tuple[str, ...]) -> Lazy:
        shape, chunks = made.get("shape"), made.get("chunks")
        if not isinstance(shape, dict) or not isinstance(chunks, dict) or not chunks:
            raise CheckpointError(f"{_name(path)}: an array in chunks lacks its shape or chunks")
        sizes = self.shape([shape.get(str(i)) for i in range(len(shape))], path)
        parts = [chunks.get(str(i)) for i in range(len(chunks))]
        good = [part for part in parts if isinstance(part, Lazy) and len(part.shape) == 1]
        if len(good) != len(parts) or len({part.dtype for part in good}) != 1:
            raise CheckpointError(f"{_name(path)}: the chunks of an array do not fit together")
        held = sum(part.shape[0] for part in good)
        if held != math.prod(sizes):
            raise CheckpointError(
                f"{_name(path)}: its chunks hold {held:,} elements, its shape {list(sizes)} has "
                f"{math.prod(sizes):,}"
            )
        return Chunked(good, check_shape(sizes, good[0].dtype, _name(path)), self.keep)

    def extension(self, size: int, path: tuple[str, ...]) -> Any:
        """An array, a numpy scalar or a complex number."""
        code = self.take(1, path)[0]
        start = self.skip(size, path)
        outer, self.at, self.end = self.end, start, start + size
        try:
            if code in (_ARRAY, _SCALAR):
                found: Any = self.array(path)
            elif code == _COMPLEX:
                found = self.complex(path)
            else:
                raise CheckpointError(f"{_name(path)}: extension type {code} is none of Linen's")
            if self.at != self.end:
                raise CheckpointError(f"{_name(path)}: {self.end - self.at:,} bytes too many")
        finally:
            self.at, self.end = start + size, outer
        return found

    def fields(self, count: int, path: tuple[str, ...]) -> None:
        kind = self.take(1, path)[0]
        if kind != 0x90 + count:
            raise CheckpointError(f"{_name(path)}: expected a list of {count} parts")

    def array(self, path: tuple[str, ...]) -> Lazy:
        self.fields(3, path)
        kind = self.take(1, path)[0]
        if not 0x90 <= kind <= 0x9F and kind != 0xDC:
            raise CheckpointError(f"{_name(path)}: an array has no shape")
        rank = kind & 0x0F if kind <= 0x9F else self.length(2, path)
        shape = self.shape([self.value(path) for _ in range(rank)], path)
        name = self.value(path)
        dtype = BY_NAME.get(name) if isinstance(name, str) else None
        if dtype is None:
            raise CheckpointError(f"{_name(path)}: the dtype {str(name)[:40]!r} is not known")
        kind = self.take(1, path)[0]
        if kind not in _BINARIES:
            raise CheckpointError(f"{_name(path)}: an array has no bytes")
        size = self.length(_BINARIES[kind], path)
        start = self.skip(size, path)
        if size != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(
                f"{_name(path)}: {size:,} bytes for {dtype.name}{list(shape)}, which takes "
                f"{math.prod(shape) * dtype.itemsize:,}"
            )
        return Mapped(self.data, start, dtype, check_shape(shape, dtype, _name(path)))

    def complex(self, path: tuple[str, ...]) -> complex:
        self.fields(2, path)
        real, imaginary = self.value(path), self.value(path)
        if not isinstance(real, (int, float)) or not isinstance(imaginary, (int, float)):
            raise CheckpointError(f"{_name(path)}: not a complex number")
        return complex(real, imaginary)

    def shape(self, sizes: Any, path: tuple[str, ...]) -> tuple[int, ...]:
        for size in sizes:
            if not isinstance(size, int) or isinstance(size, bool) or size < 0:
                raise CheckpointError(f"{_name(path)}: an array has a size that is no count")
        return tuple(sizes)


def _name(path: tuple[str, ...]) -> str:
    return name_of(part[:100] for part in path) if path else "the checkpoint"
