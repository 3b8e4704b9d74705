"""The safetensors format: read as a memory map, written one tensor after the other.

A file is a header in JSON and then the bytes of the tensors. The safetensors library checks the
header (sizes, overlaps, gaps, and that the file is whole) before anything here looks at it.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..errors import CheckpointError
from ..installed import needed
from ..stack.arrays import Lazy
from ..stack.stacking import name_of
from .tensors import CODE_OF, CODES, Mapped, check_shape, flat, nested, raw_bytes

KEY = "liftax"
"""Under this key the metadata of a file have what liftax knows of it, as JSON."""


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of ``size`` bytes that begins with ``head`` may be in this format."""
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    # A file that was cut short is shorter than its header says, and to be called by its name.
    return head[8:9] == b"{" and 2 <= length <= max(size, 100_000_000)


def read_safetensors(path: Path) -> tuple[Any, dict[str, str]]:
    """The tree of a file, with arrays that are not read yet, and the metadata.

    Raises:
      CheckpointError: the file is damaged or cut short, or has tensors of a dtype that numpy lacks.
      MissingExtraError: the package safetensors is not installed.
    """
    said = "safetensors files need the package safetensors"
    library = needed("safetensors", "checkpoints", said)
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = dict(file.metadata() or {})
    except library.SafetensorError as error:
        raise CheckpointError(_reason(path, str(error))) from error
    # The library has checked the header. It is read again here, since the library would copy each
    # array, and has no bfloat16 for numpy.
    data = np.memmap(path, np.uint8, mode="r")
    (length,) = struct.unpack("<Q", data[:8].tobytes())
    header = json.loads(data[8 : 8 + length].tobytes())
    header.pop("__metadata__", None)
    leaves: dict[str, Any] = {}
    for name, entry in header.items():
        dtype = CODES.get(entry["dtype"])
        if dtype is None:
            raise CheckpointError(
                f"{path}: {name_of(name)} has the dtype {entry['dtype']}, not one of numpy"
            )
        start = 8 + length + entry["data_offsets"][0]
        shape = check_shape(entry["shape"], dtype, f"{path}: {name_of(name)}")
        leaves[name] = Mapped(data, start, dtype, shape)
    try:
        return nested(leaves), metadata
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _reason(path: Path, text: str) -> str:
    """What the library said, and the first variable that the file is too short for."""
    text = text.removeprefix("Error while deserializing header: ").splitlines()[0]
    if "not fully covered" in text:
        text = "the file has more bytes than its header speaks of"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length)) if length < size else {}
        header.pop("__metadata__", None)
        ends = sorted((8 + length + e["data_offsets"][1], name) for name, e in header.items())
        past = [(end, name) for end, name in ends if end > size]
    except (ValueError, LookupError, TypeError, AttributeError, struct.error, RecursionError):
        past = []
    if past:
        end, name = past[0]
        text = f"{name_of(name)} ends at byte {end:,}, but the file at {size:,}: it was cut short"
    return f"{path}: not a whole safetensors file: {name_of(text)}"


def header_of(tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """The first bytes of a file, and the order in which the tensors follow.

    Wide dtypes come first, so that every tensor is aligned; else they follow in the order in which
    they are read.

    Raises:
      CheckpointError: a tensor has a dtype that the format lacks.
    """
    for name, tensor in tensors.items():
        if tensor.dtype.newbyteorder("=") not in CODE_OF:
            raise CheckpointError(
                f"{name_of(name)} is {tensor.dtype}, which safetensors files cannot hold"
            )
    # The widest first, so that each tensor begins at a multiple of its numbers' size.
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, tensors[name].order))
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name in order:
        tensor = tensors[name]
        header[name] = {
            "dtype": CODE_OF[tensor.dtype.newbyteorder("=")],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the tensors begin at a multiple of their size
    return struct.pack("<Q", len(text)) + text, order


def write_safetensors(
    file: BinaryIO,
    tensors: Mapping[str, Lazy],
    metadata: Mapping[str, str],
    step: Callable[[str, int], None] = lambda name, size: None,
) -> None:
    """Writes tensors one after the other; each is read when its turn comes.

    Args:
      file: open for writing.
      tensors: by name.
      metadata: strings by name.
      step: called after each tensor with its name and its bytes.
    """
    head, order = header_of(tensors, metadata)
    file.write(head)
    for name in order:
        # Counted: an array that is not as long as it says would shift all that follow.
        written = 0
        for chunk in tensors[name].chunks():
            written += file.write(raw_bytes(chunk))
        if written != tensors[name].nbytes:
            raise CheckpointError(
                f"{name_of(name)}: read {written} bytes, expected {tensors[name].nbytes}"
            )
        step(name, written)


def file_size(tensors: Mapping[str, Lazy], metadata: Mapping[str, str]) -> int:
    """The bytes that `write_safetensors` would write."""
    return len(header_of(tensors, metadata)[0]) + sum(t.nbytes for t in tensors.values())


def tensors_of(tree: Any) -> tuple[dict[str, Lazy], dict[str, Any]]:
    """Nested dicts as tensors by name, and what is no tensor by name."""
    leaves = dict(flat(tree))
    tensors = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, Lazy)}
    return tensors, {name: leaf for name, leaf in leaves.items() if name not in tensors}
