"""The keys that a loop body draws, counted as Linen counts them."""

from __future__ import annotations

from ... import jax_private
from ..linen_keys import Drawn, Log, join, replay, rewind, settle
from ..roles import BROADCAST, CARRY
from .crossing import Opening


class Tally:
    """The draws of one loop body, which may be traced more than once.

    Args:
      opening: the call of the loop.
      twice: whether Linen traces this body twice.
      first: the draws of the first iteration, where that ran by itself.
    """

    def __init__(self, opening: Opening, twice: bool, first: list[Drawn] | None = None):
        self.opening = opening
        self.twice = twice
        self.first = first
        self.drawn: list[Drawn] = []
        self.earlier: list[Drawn] = []
        # Without jit the body runs as Python once an iteration, and the counts go on.
        self.goes_on = jax_private.jit_is_disabled() and first is None and opening.log is None

    def begin(self) -> Log | None:
        """Returns a log for a trace of the body; what one before it drew counts no more."""
        # A loop that calls the body again wants the same keys: the log of a loop outside
        # settles the draws of all its calls as one.
        again = self.opening.log is not None and self.first is None
        self.earlier = self.drawn if again else []
        self.take_back()
        roles = self.opening.roles
        if self.opening.keyless or self.goes_on:
            return None
        return Log(lambda col: roles.role(col) == BROADCAST, self.opening.log)

    def end(self, log: Log | None) -> None:
        """Counts the draws of a trace as Linen's traces of the body would have made them."""
        if log is None or not (log or self.first is not None):
            return
        rewind(log)
        self.drawn = replay(log) if self.twice else log
        if self.first is not None:
            roles = self.opening.roles
            join(self.first, self.drawn, lambda col: roles.role(col) in (BROADCAST, CARRY))
            self.drawn = self.first
        settle(self.drawn)
        join(self.drawn, self.earlier, lambda col: False)

    def take_back(self) -> None:
        """Takes back the draws of a trace that another one replaces."""
        rewind(self.drawn)
        self.drawn = []
