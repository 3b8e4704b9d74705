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
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import compat
from ..errors import InvalidKeyError

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

    def folded(self) -> Key:
        """Returns a base key into which the path is folded."""
        if not self.path:
            return self.key
        number = np.uint32(path_hash(self.path))
        return jax.tree.map(lambda key: jax.random.fold_in(key, number), self.key)


class Draw:
    """A draw whose counter is settled when the loop body that made it has ended."""

    __slots__ = ("collection", "counter", "first", "path", "twin")

    def __init__(self, path: tuple[str | int, ...], counter: int, collection: str | None):
        self.path = path
        self.counter = counter
        self.collection = collection  # whose variable is made of it, None for other uses
        self.twin: Draw | None = None  # the same draw in another trace of the body
        self.first: Draw | None = None  # the draw of Linen's first trace, if this is the second's

    def value(self) -> np.uint32:
        return np.uint32(path_hash((*self.path, self.counter)))


class Drawn(NamedTuple):
    """An entry of a log: a count of a stream at a path, and the draws that have its number.

    There is no draw for a count that one of Linen's traces uses up to no effect.
    ``collection`` is what the key was drawn for: where the variable is there already,
    nothing is drawn.
    """

    counts: dict[str, int]
    stream: str
    draws: tuple[Draw, ...]
    collection: str | None


class Log(list[Drawn]):
    """The draws of a loop body, in order.

    Args:
      hoisted: whether a collection's variables are made before the loop, by the first
        of Linen's traces.
      outer: the log of the body around this one.
    """

    def __init__(self, hoisted: Callable[[str], bool], outer: Log | None):
        self.hoisted = hoisted
        self.outer = outer
        # What a lift inside keeps for as long as the body is traced.
        self.kept: dict[Any, Any] = {}

    def early(self, collection: str) -> bool:
        """Tells whether a first trace makes the collection's variables, here or outside."""
        outer = self.outer
        return self.hoisted(collection) or (outer is not None and outer.early(collection))


class Keys(NamedTuple):
    """A base key that was drawn in a loop body, as Linen's traces of it would have it.

    ``key`` is the last trace's; ``early`` has those that variables of some collections
    are made from, where an earlier trace makes them.
    """

    key: Key
    early: dict[str, Key]


draw_p = compat.Primitive("liftax_draw")
draw_p.def_impl(lambda draw: jax.numpy.asarray(draw.value()))
draw_p.def_abstract_eval(lambda draw: jax.core.ShapedArray((), np.dtype("uint32")))
compat.register_constant(draw_p, lambda draw: draw.value())


def _draw_later(stream: Stream, counter: int, collection: str | None) -> tuple[Key, Draw]:
    draw = Draw(stream.path, counter, collection)
    base = stream.key
    if type(base) is Keys:
        base = base.early.get(collection or "", base.key)
    return jax.random.fold_in(base, draw_p.bind(draw=draw)), draw


def log_draw(
    log: Log,
    stream: Stream,
    counts: dict[str, int],
    name: str,
    collection: str | None,
    bases: Iterable[str] = (),
) -> Key | Keys:
    """Returns the next key of a stream, whose counter is settled when the body has ended.

    Args:
      collection: whose variable is made of it, None for other uses.
      bases: collections whose variables may be made of keys that are drawn from it.
    """
    if bases:
        collection = None
    key, draw = _draw_later(stream, counts[name], collection)
    early = {c: _draw_later(stream, counts[name], c) for c in bases if log.early(c)}
    log.append(Drawn(counts, name, (draw, *(d for _, d in early.values())), collection))
    return Keys(key, {c: k for c, (k, _) in early.items()}) if early else key


def replay(log: Log) -> list[Drawn]:
    """Returns the log of a body as Linen's two traces of it would have made it.

    What is hoisted is made by the first trace; its draws are not repeated by the second.
    All others are made twice: the second's is the draw itself, the first's is in its ``first``.
    """

    def is_early(drawn: Draw | Drawn) -> bool:
        return drawn.collection is not None and log.hoisted(drawn.collection)

    def in_first(draw: Draw) -> Draw:
        if is_early(draw):
            return draw
        draw.first = Draw(draw.path, draw.counter, draw.collection)
        return draw.first

    first = [entry._replace(draws=tuple(map(in_first, entry.draws))) for entry in log]
    second = [
        entry._replace(draws=tuple(d for d in entry.draws if not is_early(d)))
        for entry in log
        if not is_early(entry)
    ]
    return [*first, *second]


def settle(log: Iterable[Drawn]) -> None:
    """Counts the entries of a log, settling their draws."""
    for counts, stream, draws, _ in log:
        counts[stream] = counts.get(stream, 0) + 1
        for draw in draws:
            found: Draw | None = draw
            while found is not None:
                found.counter = counts[stream]
                found = found.twin


def join(log: Iterable[Drawn], later: Iterable[Drawn], apart: Callable[[str], bool]) -> None:
    """Settles the draws of a later trace of a body with those of an earlier one.

    Args:
      log: of the earlier trace, in which variables were made.
      later: of the later trace, in which they are there.
      apart: tells of a collection whether its variables were made and are there.
    """

    def common(entries: Iterable[Drawn]) -> list[Draw]:
        return [d for e in entries for d in e.draws if not (d.collection and apart(d.collection))]

    for draw, twin in zip(common(log), common(later), strict=False):
        twin.counter = draw.counter
        while draw.twin is not None:
            draw = draw.twin
        draw.twin = twin


def rewind(log: Iterable[Drawn]) -> None:
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
    return value.dtype == np.uint32 and value.shape in ((2,), (4,))  # threefry, rbg


def as_streams(rngs: Any, default: str = "params") -> dict[str, Stream]:
    """Reads what a user handed in as random keys.

    Args:
      rngs: None, one key (for the stream ``default``), or a mapping of stream to key.
      default: the stream that a single key is for.

    Raises:
      InvalidKeyError: something in ``rngs`` is no key.

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
            raise InvalidKeyError(
                f"rngs: expected names of streams, e.g. {{'params': jax.random.key(0)}}; found "
                f"the name {name!r} ({type(name).__name__})"
            )
        if not (isinstance(key, Stream) or is_key(key)):
            raise InvalidKeyError(
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
