"""What Python remembers of scopes, and a program that is found again does not do.

`jax.jit` and `jax.custom_vjp` keep what they traced. The draws that a body made while it was traced
are counted in Python, below the scopes that the lift opened; so the counts leave the trace as data,
are part of what makes two calls equal, and are set again where no Python runs.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from ..cache_keys import typed
from ..linen_keys import Drawn
from ..scope import Scope
from ..types import Path
from .crossing import Opening

Counted = tuple[dict[Path, dict[str, int]], ...]
"""For each opened scope: path below it -> stream -> how many keys were drawn."""

Entry = tuple[int, Path, Drawn]
"""Which opened scope, the path below it, and what was drawn there."""


def _below(top: Scope) -> Iterator[tuple[Path, dict[str, int]]]:
    """Yields the paths in a scope, relative to it, with their counts by stream."""
    here = len(top.path)
    for path, streams in top.call.counters.items():
        if path[:here] == top.path:
            yield path[here:], streams


def fingerprint(opening: Opening) -> Hashable:
    """Returns what makes the scopes of one call stand for those of another.

    Paths are left out: equal modules at different places are one program.
    """
    tops = []
    for top in opening.tops:
        root = top.call
        counts = frozenset(
            (path, stream, n) for path, streams in _below(top) for stream, n in streams.items()
        )
        # Which collections there are is in the arguments of the program, which may not be
        # written is not.
        writable = frozenset((col, root.is_mutable(col)) for col in root.spelled())
        flags = frozenset((k, typed(v)) for k, v in root.flags.items())
        tops.append((counts, writable, flags, tuple(top.rngs)))
    return tuple(tops), tuple(opening.places), opening.tree


def counted(opening: Opening) -> Counted:
    """Returns how many keys were drawn below the scopes."""
    return tuple({path: dict(streams) for path, streams in _below(top)} for top in opening.tops)


def set_counters(opening: Opening, counts: Counted) -> None:
    """Goes on counting from what `counted` returned."""
    for top, counters in zip(opening.tops, counts, strict=True):
        for path, streams in _below(top):
            if path not in counters:
                streams.clear()
        for path, streams in counters.items():
            # In place: the log of a loop outside holds on to these.
            found = top.call.counters.setdefault((*top.path, *path), {})
            found.clear()
            found.update(streams)


def drawn_since(opening: Opening, start: int) -> list[Entry] | None:
    """Returns the entries of the log from ``start`` on.

    None where one was counted for no path, in a rewound scope.
    """
    assert opening.log is not None
    at = {
        id(streams): (i, path)
        for i, top in reversed(list(enumerate(opening.tops)))
        for path, streams in _below(top)
    }
    entries = opening.log[start:]
    if not all(id(entry.counts) in at for entry in entries):
        return None
    return [(*at[id(entry.counts)], entry) for entry in entries]


def draw_again(opening: Opening, entries: Iterable[Entry]) -> None:
    """Counts what an equal call drew, as `drawn_since` tells; the draws are that call's."""
    assert opening.log is not None
    for i, path, entry in entries:
        top = opening.tops[i]
        counts = top.call.counters.setdefault((*top.path, *path), {})
        opening.log.append(entry._replace(counts=counts, draws=()))
