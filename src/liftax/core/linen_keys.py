"""Counting draws as Linen's double trace counts them.

Linen runs the body of a loop twice, once to find what it makes and once for the loop, and its
counters of keys go on from the first run to the second: the numbers of a scanned model are those of
the second run. Here a body is traced once. A draw in it is written down as a constant whose value
is open, a `Log` records it, and `Tally` fills in the number when the body has ended.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from .. import jax_private
from .roles import BROADCAST, CARRY, Roles
from .streams import Keys, Stream, path_hash
from .types import Key


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
        self.kept: dict[Hashable, Any] = {}

    def early(self, collection: str) -> bool:
        """Tells whether a first trace makes the collection's variables, here or outside."""
        outer = self.outer
        return self.hoisted(collection) or (outer is not None and outer.early(collection))


draw_p = jax_private.Primitive("liftax_draw")
draw_p.def_impl(lambda draw: jax.numpy.asarray(draw.value()))
draw_p.def_abstract_eval(lambda draw: jax.core.ShapedArray((), np.dtype("uint32")))
jax_private.register_constant(draw_p, lambda draw: draw.value())


def _draw_later(stream: Stream, counter: int, collection: str | None) -> tuple[Key, Draw]:
    draw = Draw(stream.path, counter, collection)
    base = stream.key
    if isinstance(base, Keys):
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
            draw.first = None  # of a loop inside, which knows of its own two traces alone
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


@dataclasses.dataclass(eq=False)
class Tally:
    """The draws of one loop body, which may be traced more than once.

    Args:
      roles: the table of the loop.
      outer: the log of the loop body that the loop stands in.
      keyless: whether the body has no stream at all.
      twice: whether Linen traces this body twice.
      first: the draws of the first iteration, where that ran by itself.
    """

    roles: Roles
    outer: Log | None
    keyless: bool
    twice: bool
    first: list[Drawn] | None = None

    def __post_init__(self) -> None:
        self.drawn: list[Drawn] = []
        self.earlier: list[Drawn] = []
        # Without jit the body runs as Python once an iteration, and the counts go on.
        self.goes_on = jax_private.jit_is_disabled() and self.first is None and self.outer is None

    def begin(self) -> Log | None:
        """Returns a log for a trace of the body; what one before it drew counts no more."""
        # A loop that calls the body again wants the same keys: the log of a loop outside
        # settles the draws of all its calls as one.
        again = self.outer is not None and self.first is None
        self.earlier = self.drawn if again else []
        self.take_back()
        if self.keyless or self.goes_on:
            return None
        return Log(lambda col: self.roles.role(col) == BROADCAST, self.outer)

    def end(self, log: Log | None) -> None:
        """Counts the draws of a trace as Linen's traces of the body would have made them."""
        if log is None or not (log or self.first is not None):
            return
        rewind(log)
        self.drawn = replay(log) if self.twice else log
        if self.first is not None:
            join(self.first, self.drawn, lambda col: self.roles.role(col) in (BROADCAST, CARRY))
            self.drawn = self.first
        settle(self.drawn)
        join(self.drawn, self.earlier, lambda col: False)

    def take_back(self) -> None:
        """Takes back the draws of a trace that another one replaces."""
        rewind(self.drawn)
        self.drawn = []
