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
from collections.abc import Mapping
from typing import NamedTuple, TypeGuard

import jax
import numpy as np

from ..errors import InvalidKeyError
from ..words import describe
from .types import Key


class Keys(NamedTuple):
    """A base key that was drawn in a loop body, as Linen's traces of it would have it.

    ``key`` is the last trace's; ``early`` has those that variables of some collections
    are made from, where an earlier trace makes them.
    """

    key: Key
    early: dict[str, Key]


Base = Key | Keys
"""What the keys of a stream are derived from."""

Rngs = Mapping[str, object] | jax.typing.ArrayLike | None
"""What a user hands in: stream -> key, one key for the stream ``params``, or none."""

Keyed = tuple[dict[str, Base], ...]
"""For each opened scope, in their order: stream -> base key."""


@functools.lru_cache(maxsize=8192)
def path_hash(path: tuple[str | int, ...]) -> int:
    """Hashes a path of names and counters to 32 bits.

    Example:
      >>> 0 <= path_hash(('Dense_0', 1)) < 2**32
      True
    """
    # Byte for byte what Linen feeds it: a counter in as few bytes as it needs.
    digest = hashlib.sha1()
    for part in path:
        if isinstance(part, str):
            digest.update(part.encode("utf-8"))
        else:
            digest.update(part.to_bytes((part.bit_length() + 7) // 8, byteorder="big"))
    return int.from_bytes(digest.digest()[:4], byteorder="big")


class Stream(NamedTuple):
    """A base key and the path below the scope at which the key was given."""

    key: Base
    path: tuple[str | int, ...] = ()

    def at(self, name: str) -> Stream:
        """Returns the stream of the child scope ``name``."""
        return Stream(self.key, (*self.path, name))

    def draw(self, counter: int) -> Key:
        """Returns draw number ``counter``; the first is 1."""
        # One key: `Keys` are the base of scopes whose draws are logged, see linen_keys.log_draw.
        return jax.random.fold_in(self.key, np.uint32(path_hash((*self.path, counter))))  # type: ignore[arg-type]

    def folded(self) -> Base:
        """Returns a base key into which the path is folded."""
        if not self.path:
            return self.key
        number = np.uint32(path_hash(self.path))
        return jax.tree.map(lambda key: jax.random.fold_in(key, number), self.key)


def is_key(value: object) -> TypeGuard[Key]:
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


def as_streams(rngs: Rngs) -> dict[str, Stream]:
    """Reads what a user handed in as random keys.

    Args:
      rngs: None, one key (for the stream ``params``), or a mapping of stream to key.

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
        rngs = {"params": rngs}
    found: dict[str, Stream] = {}
    key: object
    for name, key in rngs.items():
        if not isinstance(name, str):
            raise InvalidKeyError(
                f"rngs: expected names of streams, e.g. {{'params': jax.random.key(0)}}; found "
                f"the name {name!r} ({type(name).__name__})"
            )
        if isinstance(key, Stream):
            found[name] = key
        elif is_key(key):
            found[name] = Stream(key)
        else:
            raise InvalidKeyError(
                f"rngs: expected one key for stream {name!r}, as made by jax.random.key(0); "
                f"found {describe(key)}"
            )
    return found
