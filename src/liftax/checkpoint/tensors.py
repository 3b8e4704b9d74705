"""Trees of arrays as files have them: named tensors, their dtypes, names and checksums."""

from __future__ import annotations

import abc
import hashlib
import math
import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from ..core.boxes import is_axis_metadata
from ..core.types import Path
from ..errors import CheckpointError
from ..stack.arrays import InMemory, Lazy, Shape, is_array
from ..stack.stacking import name_of
from ..stack.trees import Level, mapped, opened
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


def check_shape(shape: Sequence[int], dtype: np.dtype, name: str) -> Shape:
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


class Kept(Lazy):
    """An array that takes long to read: `keep` has it until another one is read."""

    keep: Keep

    @abc.abstractmethod
    def load(self) -> np.ndarray:
        """The array, in memory."""

    def read(self) -> np.ndarray:
        """The array, from memory where it was the last one read."""
        return self.keep.get(self)


class Keep:
    """The last array that was read: slices of one array are taken one after the other."""

    def __init__(self) -> None:
        self._last: tuple[Kept, np.ndarray] | None = None

    def get(self, owner: Kept) -> np.ndarray:
        """The array of its owner."""
        if self._last is None or self._last[0] is not owner:
            self._last = None  # before another one is made: two may not fit
            self._last = (owner, owner.load())
        return self._last[1]


class Mapped(Lazy):
    """An array in a memory map: `read` is a view."""

    def __init__(self, data: np.ndarray, start: int, dtype: np.dtype, shape: Shape):
        self.data, self.start, self.dtype, self.shape = data, start, dtype, shape
        self.order, self.in_file = (start,), True

    def read(self) -> np.ndarray:
        """A read-only view of the file.

        Raises:
          CheckpointError: the file was cut short since it was opened. To touch a map behind its
            end would end the process.
        """
        mapped = self.data.base
        if isinstance(mapped, mmap.mmap) and mapped.size() < self.start + self.nbytes:
            raise CheckpointError(
                f"the file was cut short while it was read: to {mapped.size():,} bytes, where an "
                f"array ends at byte {self.start + self.nbytes:,}"
            )
        raw = self.data[self.start : self.start + self.nbytes]
        return raw.view(self.dtype).reshape(self.shape)


class ToSave(Kept):
    """An array that is in memory already, on whatever device."""

    def __init__(self, array: InMemory, number: int, keep: Keep):
        self.array, self.order, self.keep = array, (number,), keep
        self.shape = tuple(array.shape)
        self.dtype = np.dtype(array.dtype).newbyteorder("=")

    def load(self) -> np.ndarray:
        """The array on the host."""
        return np.asarray(self.array)

    def read(self) -> np.ndarray:
        """The array on the host."""
        if isinstance(self.array, np.ndarray):  # there already: it needs no place in `keep`
            return self.array.astype(self.dtype, copy=False)
        return super().read()


class Digest(Protocol):
    """What `hashlib` returns."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Adds bytes."""

    def hexdigest(self) -> str:
        """The checksum of all that was added."""


class Summing:
    """Takes checksums beside what else is done, on a few threads.

    What is to be summed in order follows what came before; arrays apart go at the same time.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[Future[None]] = deque()

    def later(self, digest: Digest, data: memoryview, before: Future[None] | None) -> Future[None]:
        """Adds bytes to a checksum after those before; waits where too many are to be added."""
        while len(self._waiting) >= _THREADS:
            self._waiting.popleft().result()
        # Those that wait for others were given in later: there is always one that does not.
        self._pool = self._pool or ThreadPoolExecutor(_THREADS)
        self._waiting.append(self._pool.submit(_update, digest, data, before))
        return self._waiting[-1]


_THREADS = 8


def _update(digest: Digest, data: memoryview, before: Future[None] | None) -> None:
    if before is not None:
        before.result()
    digest.update(data)


class Checksum(NamedTuple):
    """How checksums are made.

    Attributes:
      prefix: what they begin with.
      new: begins one.
    """

    prefix: str
    new: Callable[[], Digest]

    @property
    def length(self) -> int:
        """The length of a checksum, which each has 16 digits of."""
        return len(self.prefix) + 16


# Processors have instructions for it: it takes half of the other's time.
SHA256 = Checksum("sha256:", lambda: hashlib.sha256(usedforsecurity=False))
BLAKE2 = Checksum("", lambda: hashlib.blake2b(digest_size=8, usedforsecurity=False))
"""That of files which do not name theirs, the first ones."""


def kind_of(sums: Mapping[str, object]) -> Checksum:
    """How the checksums that a file has were made; those to be made, where it has none."""
    named = [str(value).startswith(SHA256.prefix) for value in sums.values()]
    return SHA256 if all(named) else BLAKE2


class Summed(Lazy):
    """An array whose checksum is known once it has been read."""

    def __init__(self, base: Lazy, summing: Summing, kind: Checksum = SHA256):
        self.base, self.shape, self.dtype, self.order = base, base.shape, base.dtype, base.order
        self.summing, self.kind = summing, kind
        self._digest: Digest | None = None
        self._last: Future[None] | None = None

    def read(self) -> np.ndarray:
        """The array, its checksum taken on the way."""
        (array,) = self._summed([self.base.read()])
        return array

    def chunks(self) -> Iterator[np.ndarray]:
        """The pieces of the array, its checksum taken on the way."""
        return self._summed(self.base.chunks())

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array by rows, its checksum taken on the way."""
        return self._summed(self.base.blocks(rows))

    def _summed(self, chunks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        # The same bytes mean something else under another dtype or shape, so these count too.
        digest = self.kind.new()
        digest.update(f"{self.dtype.name}{list(self.shape)}".encode())
        last = None
        for chunk in chunks:
            chunk = np.asarray(chunk, order="C")
            last = self.summing.later(digest, _bytes_of(chunk), last)
            yield chunk
        if last is not None and not self.base.in_file:
            last.result()  # it is in memory: another one may not fit beside it
        self._digest, self._last = digest, last

    def begin(self) -> None:
        """Reads the array where that has not been done; the checksum may take longer."""
        if self._digest is None:
            for _ in self.chunks():
                pass

    def checksum(self) -> str:
        """The checksum; reads the array where that has not been done."""
        self.begin()
        if self._last is not None:
            self._last.result()
        assert self._digest is not None
        return self.kind.prefix + self._digest.hexdigest()[:16]

    def same_as(self, other: Summed) -> bool:
        """Whether another array has the same shape, dtype and bytes; both are read for that."""
        if (self.shape, self.dtype) != (other.shape, other.dtype):
            return False
        return all(map(_same, self.base.chunks(), other.base.chunks()))


def checksums(variables: Mapping[str, Summed]) -> dict[str, str]:
    """The checksum of each; what is slices of one array is read one after the other."""
    for name in sorted(variables, key=lambda name: variables[name].order):
        variables[name].begin()
    return {name: leaf.checksum() for name, leaf in variables.items()}


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    # As numbers of eight bytes where they come out even: a comparison writes down each result.
    one, other = (np.asarray(x, order="C").reshape(-1).view(np.uint8) for x in (a, b))
    whole = len(one) // 8 * 8
    return np.array_equal(one[:whole].view(np.uint64), other[:whole].view(np.uint64)) and (
        np.array_equal(one[whole:], other[whole:])
    )


def summed(tree: object, kind: Checksum = SHA256) -> object:
    """Nested dicts with every array's checksum known once it is read."""
    summing = Summing()
    return mapped(
        lambda leaf: Summed(leaf, summing, kind) if isinstance(leaf, Lazy) else leaf, tree
    )


def read_all(tree: object) -> object:
    """A tree with every array read: mapped where it lies in a file as it is."""
    return mapped(lambda leaf: leaf.read() if isinstance(leaf, Lazy) else leaf, tree)


def _bytes_of(array: np.ndarray) -> memoryview:
    # Not `array.data`: the dtypes of ml_dtypes, bfloat16 among them, have no buffer of their own.
    return memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]


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


def children(node: object) -> Level | None:
    """One node of a pytree with its named parts, None for a leaf, and for None itself.

    Raises:
      CheckpointError: a mapping has a key that is no string.
    """
    for key in node if isinstance(node, Mapping) else ():
        if not isinstance(key, str):
            raise CheckpointError(
                f"the key {key!r} of a mapping is {type(key).__name__}, not a string; names of "
                f"variables are strings"
            )
    return None if node is None else opened(node)


def unboxed(node: object) -> object:
    """What is in a box, as it is stored; anything else as it is."""
    # A file has the array, the model has the names of its axes.
    while is_axis_metadata(node):
        level = opened(node)
        parts = [part for _, part in level.parts] if level is not None else []
        node = parts[0] if len(parts) == 1 else dict(enumerate(parts))
    return node


def _as_it_is(leaf: object, at: Path) -> object:
    return leaf


def to_plain(
    tree: object, fn: Callable[[object, Path], object] = _as_it_is, at: Path = ()
) -> object:
    """A pytree as nested dicts: tuples and dataclasses by the names of their parts, no boxes.

    Args:
      tree: the pytree.
      fn: makes the new leaf, from the old one and its path.
      at: the path of the tree.

    Example:
      >>> to_plain({"a": (1, 2.0)})
      {'a': {'0': 1, '1': 2.0}}
    """
    tree = unboxed(tree)
    level = children(tree)
    if level is None:
        return fn(tree, at)
    return {name: to_plain(part, fn, (*at, name)) for name, part in level.parts}


def flat(tree: object, at: Path = ()) -> Iterator[tuple[str, object]]:
    """The leaves of nested dicts by name; an empty dict is a leaf."""
    if isinstance(tree, Mapping) and tree:
        for name, part in tree.items():
            yield from flat(part, (*at, escape(name)))
    else:
        yield "/".join(at), tree


def nested(leaves: Mapping[str, object]) -> object:
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
    tree: dict[str, object] = {}
    for name, leaf in leaves.items():
        *above, last = map(unescape, name.split("/"))
        node: object = tree
        for part in above:
            if isinstance(node, dict):
                node = node.setdefault(part, {})
        if not isinstance(node, dict) or last in node:
            raise CheckpointError(
                f"{name_of(name)} lies inside of another variable, or has two values"
            )
        node[last] = leaf
    return tree


def filled(like: object, tree: object, at: Path = ()) -> object:
    """A pytree with the structure of ``like`` and the leaves of nested dicts.

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
    level = children(like)
    if level is None:
        return _leaf(like, tree, at)
    parts = dict(level.parts)
    if not isinstance(tree, Mapping):
        raise CheckpointError(f"{_name(at)} is {described(tree)}, expected {len(parts)} variables")
    # What holds no array, as an empty state, need not be in a file and may be there.
    for name, part in parts.items():
        if name not in tree and jax.tree.leaves(part):
            raise CheckpointError(f"{_name((*at, name))} is missing from the checkpoint")
    for name, part in tree.items():
        if name not in parts and jax.tree.leaves(part):
            first = next(iter(flat(part, (*at, name))))[0]
            raise CheckpointError(f"{name_of(first)} is in the checkpoint, but not in like=")
    return level.rebuilt(
        filled(part, tree.get(name, {}), (*at, name)) for name, part in parts.items()
    )


def _leaf(like: object, found: object, at: Path) -> object:
    if isinstance(found, Mapping) and is_array(like) and found.keys() == {"value"}:
        found = found["value"]  # a box of Linen, as Linen writes it
    if isinstance(found, Mapping) and found:
        raise CheckpointError(f"{_name(at)} is a mapping in the checkpoint, not {described(like)}")
    if like is None:
        return None
    if not is_array(like):
        if isinstance(found, Mapping):
            raise CheckpointError(f"{_name(at)} is empty in the checkpoint, not {described(like)}")
        return _as_kind(like, found)
    array = found if is_array(found) else np.asarray(found)
    if tuple(array.shape) != tuple(like.shape) or array.dtype != like.dtype:
        raise CheckpointError(
            f"{_name(at)} is {described(array)} in the checkpoint, expected {described(like)}"
        )
    return array


def _as_kind(like: object, found: object) -> object:
    """A plain value; files have some of them as arrays without axes."""
    if is_array(found) and not found.shape and isinstance(like, (bool, int, float, complex)):
        return type(like)(np.asarray(found.read() if isinstance(found, Lazy) else found)[()])
    return found


def _name(at: Path) -> str:
    return name_of(at) if at else "the checkpoint"
