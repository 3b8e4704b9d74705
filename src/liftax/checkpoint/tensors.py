"""Trees of arrays as files have them: named tensors, their dtypes, names and checksums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.boxes import is_axis_metadata
from ..errors import CheckpointError
from ..stack.arrays import Lazy, is_array
from ..stack.stacking import name_of
from ..words import described

# The dtypes that a file may have, under the names of the safetensors format. Nothing else is ever
# made from the name that stands in a file.
CODES: dict[str, np.dtype] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "I16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "I32": np.dtype(np.int32),
    "U64": np.dtype(np.uint64),
    "I64": np.dtype(np.int64),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(jnp.bfloat16),
    "F32": np.dtype(np.float32),
    "F64": np.dtype(np.float64),
    "C64": np.dtype(np.complex64),
    "F8_E5M2": np.dtype(jnp.float8_e5m2),
    "F8_E4M3": np.dtype(jnp.float8_e4m3fn),
    "F8_E5M2FNUZ": np.dtype(jnp.float8_e5m2fnuz),
    "F8_E4M3FNUZ": np.dtype(jnp.float8_e4m3fnuz),
    "F8_E8M0": np.dtype(jnp.float8_e8m0fnu),
}
CODE_OF = {dtype: code for code, dtype in CODES.items()}
BY_NAME = {dtype.name: dtype for dtype in (*CODES.values(), np.dtype(np.complex128))}


_MOST_AXES = 64  # numpy has no more


def check_shape(shape: Any, dtype: np.dtype, name: str) -> tuple[int, ...]:
    """The shape that stands in a file, if an array can have it.

    Raises:
      CheckpointError: it has too many axes, or sizes that no array has.
    """
    if len(shape) > _MOST_AXES:
        raise CheckpointError(f"{name}: an array with {len(shape)} axes; there are at most 64")
    # As numpy counts: an empty array must not be too large but for its empty axes.
    if math.prod(max(size, 1) for size in shape) * dtype.itemsize >= 2**63:
        raise CheckpointError(f"{name}: an array of {list(shape)} is larger than any memory")
    return tuple(shape)


class Keep:
    """The last array that was read: slices of one array are taken one after the other."""

    def __init__(self) -> None:
        self._owner: Lazy | None = None
        self._array: np.ndarray | None = None

    def get(self, owner: Lazy, read: Any) -> np.ndarray:
        """What `read` returns, from memory where the same array was asked for last."""
        if self._owner is not owner or self._array is None:
            self._owner = self._array = None  # before another one is made
            self._array = read()
            self._owner = owner
        return self._array


class Mapped(Lazy):
    """An array in a memory map: `read` is a view."""

    def __init__(self, data: np.ndarray, start: int, dtype: np.dtype, shape: tuple[int, ...]):
        self.data, self.start, self.dtype, self.shape = data, start, dtype, shape
        self.order = (start,)

    def read(self) -> np.ndarray:
        """A read-only view of the file."""
        raw = self.data[self.start : self.start + self.nbytes]
        return raw.view(self.dtype).reshape(self.shape)


class InMemory(Lazy):
    """An array that is in memory already, on whatever device."""

    def __init__(self, array: Any, number: int, keep: Keep):
        self.array, self.order, self.keep = array, (number,), keep
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")

    def read(self) -> np.ndarray:
        """The array on the host."""
        if isinstance(self.array, np.ndarray):
            return self.array.astype(self.dtype, copy=False)
        return self.keep.get(self, lambda: np.asarray(self.array))


class Summed(Lazy):
    """An array whose checksum is known once it has been read."""

    def __init__(self, base: Lazy):
        self.base, self.shape, self.dtype, self.order = base, base.shape, base.dtype, base.order
        self.digest: str | None = None

    def read(self) -> np.ndarray:
        """The array, its checksum taken on the way."""
        array = np.asarray(self.base.read(), order="C")
        digest = _digest_of(self)
        digest.update(_bytes_of(array))
        self.digest = digest.hexdigest()
        return array

    def chunks(self) -> Iterator[np.ndarray]:
        """The pieces of the array, its checksum taken on the way."""
        digest = _digest_of(self)
        for chunk in self.base.chunks():
            chunk = np.asarray(chunk, order="C")
            digest.update(_bytes_of(chunk))
            yield chunk
        self.digest = digest.hexdigest()

    def checksum(self) -> str:
        """The checksum; reads the array where that has not been done."""
        if self.digest is None:
            for _ in self.chunks():
                pass
        assert self.digest is not None
        return self.digest


def _digest_of(lazy: Lazy) -> Any:
    """A checksum begun with what the bytes mean."""
    digest = hashlib.blake2b(digest_size=8)
    digest.update(f"{lazy.dtype.name}{list(lazy.shape)}".encode())
    return digest


def _bytes_of(array: np.ndarray) -> memoryview:
    flat_bytes: Any = array.reshape(-1).view(np.uint8)
    return memoryview(flat_bytes)


def raw_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array in C order, little-endian, without a copy where they lie like that."""
    array = np.asarray(array, order="C")
    return _bytes_of(array.astype(array.dtype.newbyteorder("<"), copy=False))


def combined(checksums: Mapping[str, str]) -> str:
    """One checksum of several variables."""
    lines = "".join(f"{name} {checksums[name]}\n" for name in sorted(checksums))
    return hashlib.blake2b(lines.encode(), digest_size=8).hexdigest()


# --- names --------------------------------------------------------------------


def escape(name: str) -> str:
    """A name without slashes, so that slashes can stand between names.

    Example:
      >>> escape("a/b"), unescape(escape("a/b"))
      ('a%2Fb', 'a/b')
    """
    return name.replace("%", "%25").replace("/", "%2F")


def unescape(name: str) -> str:
    """Undoes `escape`."""
    return name.replace("%2F", "/").replace("%25", "%")


def children(node: Any) -> list[tuple[str, Any]] | None:
    """The named parts of one node of a pytree, None for a leaf.

    Boxes are taken off: a file has the array, the model has the names of its axes.

    Raises:
      CheckpointError: a mapping has a key that is no string.
    """
    if isinstance(node, Mapping):
        for key in node:
            if not isinstance(key, str):
                raise CheckpointError(
                    f"the key {key!r} of a mapping is {type(key).__name__}, not a string; names of "
                    f"variables are strings"
                )
        return list(node.items())
    if node is None or is_array(node) or isinstance(node, (str, bytes)):
        return None
    found = _one_level(node)
    if len(found) == 1 and found[0][1] is node:
        return None
    return [(jax.tree_util.keystr(keys[-1:], simple=True), part) for keys, part in found]


def unboxed(node: Any) -> Any:
    """What is in a box, as it is stored; anything else as it is."""
    while is_axis_metadata(node):
        parts = [part for _, part in _one_level(node)]
        node = parts[0] if len(parts) == 1 else dict(enumerate(parts))
    return node


def _one_level(node: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)[0]


def to_plain(tree: Any, at: tuple[str, ...] = ()) -> Any:
    """A pytree as nested dicts: tuples and dataclasses by the names of their parts, no boxes.

    Example:
      >>> to_plain({"a": (1, 2.0)})
      {'a': {'0': 1, '1': 2.0}}
    """
    tree = unboxed(tree)
    parts = children(tree)
    if parts is None:
        return tree
    return {name: to_plain(part, (*at, name)) for name, part in parts}


def flat(tree: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The leaves of nested dicts by name; an empty dict is a leaf."""
    if isinstance(tree, Mapping) and tree:
        for name, part in tree.items():
            yield from flat(part, (*at, escape(name)))
    else:
        yield "/".join(at), tree


def nested(leaves: Mapping[str, Any]) -> Any:
    """Nested dicts from named leaves: the inverse of `flat`.

    Raises:
      CheckpointError: a name is that of a leaf and of a mapping.

    Example:
      >>> nested({"a/b": 1, "a/c": 2})
      {'a': {'b': 1, 'c': 2}}
    """
    if "" in leaves:
        if len(leaves) > 1:
            raise CheckpointError("a variable has no name")
        return leaves[""]
    tree: dict[str, Any] = {}
    for name, leaf in leaves.items():
        *above, last = map(unescape, name.split("/"))
        node = tree
        for part in above:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                break
        if not isinstance(node, dict) or last in node:
            raise CheckpointError(
                f"{name_of(name)} lies inside of another variable, or has two values"
            )
        node[last] = leaf
    return tree


def read_all(tree: Any) -> Any:
    """Nested dicts with every array read: mapped where it lies in a file as it is."""
    if isinstance(tree, Mapping):
        return {name: read_all(part) for name, part in tree.items()}
    return tree.read() if isinstance(tree, Lazy) else tree


def filled(like: Any, tree: Any, at: tuple[str, ...] = ()) -> Any:
    """A pytree with the structure of `like` and the leaves of nested dicts.

    Args:
      like: arrays, `jax.ShapeDtypeStruct` or plain values, in boxes or not.
      tree: nested dicts, as `to_plain` makes them.
      at: the path, for messages.

    Raises:
      CheckpointError: a variable is missing, is one too many, or has another shape or dtype. The
        message names the first.
    """
    if is_axis_metadata(like):
        leaves, treedef = jax.tree.flatten(like)
        if len(leaves) != 1:
            raise CheckpointError(f"{_name(at)}: a box around {len(leaves)} arrays")
        return jax.tree.unflatten(treedef, [filled(leaves[0], tree, at)])
    parts = children(like)
    if parts is None:
        return _leaf(like, tree, at)
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{_name(at)} is {described(tree)}, expected {len(parts)} variables")
    for name, part in parts:
        if name not in tree and jax.tree.leaves(part):
            raise CheckpointError(f"{_name((*at, name))} is missing from the checkpoint")
    for name, part in tree.items():
        if name not in dict(parts) and jax.tree.leaves(part):
            first = next(iter(flat(part, (*at, name))))[0]
            raise CheckpointError(f"{name_of(first)} is in the checkpoint, but not in like=")
    made = [filled(part, tree.get(name, {}), (*at, name)) for name, part in parts]
    if isinstance(like, Mapping):
        return dict(zip(like, made, strict=True))
    _, treedef = jax.tree.flatten(like, is_leaf=lambda x: x is not like)
    return jax.tree.unflatten(treedef, made)


def _leaf(like: Any, found: Any, at: tuple[str, ...]) -> Any:
    if isinstance(found, Mapping) and is_array(like) and found.keys() == {"value"}:
        found = found["value"]  # a box of Linen, as Linen writes it
    if isinstance(found, Mapping) and found:
        raise CheckpointError(f"{_name(at)} is a mapping in the checkpoint, not {described(like)}")
    if not is_array(like):
        if like is not None and isinstance(found, Mapping):
            raise CheckpointError(f"{_name(at)} is empty in the checkpoint, not {described(like)}")
        return None if like is None else _as_kind(like, found)
    if not is_array(found):
        found = np.asarray(found)
    if tuple(found.shape) != tuple(like.shape) or found.dtype != like.dtype:
        raise CheckpointError(
            f"{_name(at)} is {described(found)} in the checkpoint, expected {described(like)}"
        )
    return found


def _as_kind(like: Any, found: Any) -> Any:
    """A plain value; files have some of them as arrays without axes."""
    if is_array(found) and found.ndim == 0 and isinstance(like, (bool, int, float, complex)):
        found = found.read() if isinstance(found, Lazy) else found
        return type(like)(found[()])
    return found


def _name(at: tuple[str, ...]) -> str:
    return name_of(at) if at else "the checkpoint"
