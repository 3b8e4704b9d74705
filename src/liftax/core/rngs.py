"""Named random streams: keys derived from a stream, a path and a counter.

Vocabulary
  stream    a base key and the path of the scope that draws from it
  draw      one key: the base key folded with a hash of (path, counter)
  log       the draws that a loop body made

Invariants
  A key depends on the stream, the path and the number of draws made before it
  at that path, and on nothing else. Splitting along a new axis splits the base
  key; the path is folded in afterwards, inside the loop.

The hash is the one that Linen uses, so that keys agree bit for bit. Linen
traces the body of a scan twice and its counters go on from one trace to the
next. liftax traces once and reproduces the numbers: a draw in such a body is
staged as a constant that is filled in when the body has ended (see `replay`).
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import compat
from ..errors import InvalidRngError

Key = Any


@functools.lru_cache(maxsize=8192)
def path_hash(path: tuple[str | int, ...]) -> int:
    """Hashes a path of names and counters to 32 bits.

    Example:
      >>> 0 <= path_hash(('Dense_0', 1)) < 2**32
      True
    """
    digest = hashlib.sha1()
    for part in path:
        if isinstance(part, str):
            digest.update(part.encode("utf-8"))
        else:
            digest.update(part.to_bytes((part.bit_length() + 7) // 8, byteorder="big"))
    return int.from_bytes(digest.digest()[:4], byteorder="big")


class Stream(NamedTuple):
    """A base key and the path below the scope at which the key was given."""

    key: Key
    path: tuple[str | int, ...] = ()

    def at(self, name: str) -> Stream:
        """Returns the stream of the child scope ``name``."""
        return Stream(self.key, (*self.path, name))

    def draw(self, counter: int) -> Key:
        """Returns draw number ``counter``; the first is 1."""
        return jax.random.fold_in(self.key, np.uint32(path_hash((*self.path, counter))))

    def folded(self) -> Stream:
        """Returns a stream of the same path's keys whose path is folded in already."""
        if not self.path:
            return self
        return Stream(jax.random.fold_in(self.key, np.uint32(path_hash(self.path))))


class Draw:
    """A draw whose counter is settled when the loop body that made it has ended."""

    __slots__ = ("counter", "path", "twin")

    def __init__(self, path: tuple[str | int, ...], counter: int):
        self.path = path
        self.counter = counter
        self.twin: Draw | None = None  # the same draw in another trace of the body

    def value(self) -> np.uint32:
        return np.uint32(path_hash((*self.path, self.counter)))


class Drawn(NamedTuple):
    """An entry of a log: counts of the path, stream, draw, and collection it was made for.

    ``draw`` is None for a count that one of Linen's traces uses up to no effect;
    ``again`` says that the second trace counts it though the first made its variable.
    """

    counts: dict[str, int]
    stream: str
    draw: Draw | None
    collection: str | None
    again: bool = False


draw_p = compat.Primitive("liftax_draw")
draw_p.def_impl(lambda draw: jax.numpy.asarray(draw.value()))
draw_p.def_abstract_eval(lambda draw: jax.core.ShapedArray((), np.dtype("uint32")))
compat.register_constant(draw_p, lambda draw: draw.value())


def draw_later(stream: Stream, draw: Draw) -> Key:
    """Returns the key of a draw whose counter is not settled yet."""
    return jax.random.fold_in(stream.key, draw_p.bind(draw=draw))


def replay(log: list[Drawn], hoisted: Callable[[str], bool]) -> list[Drawn]:
    """Returns the log of a body as Linen's two traces of it would have made it.

    Args:
      log: the draws of one trace.
      hoisted: whether a collection's variables are made before the loop, by the
        first trace; their draws are not repeated by the second.
    """

    def early(entry: Drawn) -> bool:
        return entry.collection is not None and hoisted(entry.collection)

    first = [entry if early(entry) else entry._replace(draw=None) for entry in log]
    second = [
        entry._replace(draw=None) if early(entry) else entry
        for entry in log
        if entry.again or not early(entry)
    ]
    return first + second


def settle(log: list[Drawn]) -> None:
    """Counts the entries of a log, settling their draws."""
    for counts, stream, draw, *_ in log:
        counts[stream] = counts.get(stream, 0) + 1
        while draw is not None:
            draw.counter = counts[stream]
            draw = draw.twin


def join(log: list[Drawn], earlier: list[Drawn]) -> None:
    """Settles the draws of an earlier trace of a body with those of a later one."""
    later = [entry.draw for entry in log if entry.draw is not None]
    before = [entry.draw for entry in earlier if entry.draw is not None]
    for draw, twin in zip(later, before, strict=False):
        while draw.twin is not None:
            draw = draw.twin
        draw.twin = twin


def rewind(log: list[Drawn]) -> None:
    """Takes the counts of a log back."""
    for counts, stream, *_ in log:
        counts[stream] -= 1


def is_key(value: Any) -> bool:
    """Tells whether a value is one key: typed, or an array of uint32 words.

    Example:
      >>> import jax
      >>> is_key(jax.random.key(0)), is_key(jax.random.PRNGKey(0)), is_key(3)
      (True, True, False)
    """
    if not isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return False
    if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        return value.shape == ()
    return value.dtype == np.uint32 and value.ndim == 1


def as_streams(rngs: Any, default: str = "params") -> dict[str, Stream]:
    """Reads what a user handed in as random keys.

    Args:
      rngs: None, one key (for the stream ``default``), or a mapping of stream to key.
      default: the stream that a single key is for.

    Raises:
      InvalidRngError: something in ``rngs`` is no key.

    Example:
      >>> import jax
      >>> sorted(as_streams({'params': jax.random.key(0), 'dropout': jax.random.key(1)}))
      ['dropout', 'params']
    """
    if rngs is None:
        return {}
    if not isinstance(rngs, Mapping):
        rngs = {default: rngs}
    for name, key in rngs.items():
        if not isinstance(name, str):
            raise InvalidRngError(
                f"rngs: expected names of streams, e.g. {{'params': jax.random.key(0)}}; found "
                f"the name {name!r} ({type(name).__name__})"
            )
        if not (isinstance(key, Stream) or is_key(key)):
            raise InvalidRngError(
                f"rngs: expected one key for stream {name!r}, as made by jax.random.key(0); "
                f"found {describe(key)}"
            )
    return {n: key if isinstance(key, Stream) else Stream(key) for n, key in rngs.items()}


def describe(value: Any) -> str:
    """Names a value by type, dtype and shape, never by its contents.

    Example:
      >>> describe(np.zeros((2, 3)))
      'float64[2,3]'
    """
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return type(value).__name__
    return f"{dtype}[{','.join(map(str, shape))}]"
