"""What is true of a whole call, for a root scope and all below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from .. import jax_private
from .events import recorder
from .filters import DenyList, Filter, in_filter, names_of
from .linen_keys import Log
from .roles import Roles
from .streams import Stream
from .types import Path


class ScopeLike(Protocol):
    """A scope, as far as its call and what refuses need to know it."""

    name: str | None
    path: tuple[str, ...]
    rngs: dict[str, Stream]
    call: Call

    @property
    def parent(self) -> ScopeLike | None:
        """The scope that it lies in, None for a root."""

    def where(self) -> str:
        """Names the place, for messages."""

    def node(self, col: str) -> Mapping[str, object] | None:
        """Returns the scope's part of a collection, None if there is none."""

    def collections(self) -> list[str]:
        """Returns the names of the collections of the call."""

    def is_collection_empty(self, col: str) -> bool:
        """Tells whether the collection has nothing in the scope."""


class Around:
    """A lift in force, as the scopes that were handed to it know it.

    Attributes:
      roles: its table.
      target: what is lifted.
      tops: the scopes that it opened.
      tables: the table of each.
    """

    roles: Roles
    target: object
    tops: Sequence[ScopeLike]
    tables: Sequence[Roles]

    @property
    def label(self) -> str:
        """The lift and what is lifted, for messages."""
        name = getattr(self.target, "__name__", type(self.target).__name__)
        return f"{self.roles.lift} of {name}"


class Call:
    """What is true of a whole call: shared by a root scope and all below it."""

    read_only = False  # a quick word for the usual case
    valid = True
    log: Log | None = None
    # The lift whose body is running now, to which these scopes were handed.
    entered_by: Around | None = None
    # Set by the lifts, on the scopes they make for a body:
    lift: str | None = None  # its name, for messages
    outside: ScopeLike | None = None  # the scope that it opened
    roles: Roles | None = None  # its table for that scope
    on_birth: Callable[[str, Path, object, bool], object] | None = None
    # Whether on_birth is told what a map inside, of variables or of examples, makes as it is made.
    wants_first = False
    hears: Callable[[str], bool] | None = None  # of which collections, if on_birth is there
    late = False  # whether what is written comes out of a lift inside the body
    creating: str | None = None  # the collection being initialised

    def __init__(self, mutable: Filter, flags: Mapping[str, object]):
        self.mutable = mutable
        self._mutable: dict[str, bool] = {}
        if mutable is False:
            self.read_only = True
        self.flags: Mapping[str, Any] = flags
        self.trace = jax_private.current_trace()
        # Whether this is traced to be run in its place, see making/program.py.
        self.is_run = self.trace is not jax_private.EAGER and jax_private.is_run(self.trace)
        self.rec = recorder.get()
        # How many keys were drawn, by path and stream. Lifts hand this on to the scopes
        # they make, so a path goes on counting wherever it is met again.
        self.counters: dict[tuple[str, ...], dict[str, int]] = {}
        # What modules remember of a call: outside modules and their clones in it.
        self.adopted: dict[int, tuple[Any, Any]] = {}
        # The variables that this call made without a lift, to notice ties that a lift cuts.
        self.made_plain: set[tuple[str, tuple[str, ...]]] = set()
        # What the scopes of the call hold of variables and keys; None for one that does not end.
        self.held: list[dict[str, Any]] | None = None

    def end(self) -> None:
        """Ends the call: its scopes let go of all arrays.

        A module and those that its ``setup`` made hold each other, and their scopes, until the
        garbage collector comes.
        """
        self.valid = False
        self.on_birth = None
        self.adopted.clear()
        for held in self.held or ():
            held.clear()
        self.held = None

    def is_mutable(self, col: str) -> bool:
        found = self._mutable.get(col)
        if found is None:
            found = self._mutable[col] = self._may_write(col)
        return found

    def _may_write(self, col: str) -> bool:
        return in_filter(self.mutable, col)

    def filters(self) -> list[Filter]:
        """Returns the filters that tell here which collections may be written."""
        return [self.mutable]

    def spelled(self) -> set[str]:
        """Returns names that stand for all collections, whether anybody has made them yet or not.

        Two collections that no filter of the call and of the lifts around spells out are treated
        alike, so one that nobody uses stands for them.
        """
        names = {"*"}
        for found in self.filters():
            while isinstance(found, DenyList):
                found = found.deny
            names |= names_of(found)
        return names

    def hears_first(self, col: str) -> bool:
        """Tells whether a loop outside wants to hear of a collection as it is made."""
        wants = self.on_birth is not None and self.wants_first
        return wants and self.hears is not None and self.hears(col)

    def hear(self, inside: Call, col: str, path: Path, value: object, late: bool) -> object:
        """Hears of what is made in the body of a lift inside; returns it as that must use it."""
        assert self.on_birth is not None
        creating, self.creating = self.creating, inside.creating
        value = self.on_birth(col, path, value, late)
        self.creating = creating
        return value


class LiftedCall(Call):
    """What is true inside a lift: what is true outside, narrowed by the roles."""

    roles: Roles

    def __init__(self, opening: Around, outside: ScopeLike, roles: Roles):
        self.outer = outer = outside.call
        super().__init__(False, outer.flags)
        self.read_only = outer.read_only
        self.rec = outer.rec
        self.opening = opening
        self.outside = outside
        self.roles = roles
        self.creating = outer.creating
        self.counters = outer.counters
        self.log = outer.log
        self.held = []

    @property
    def lift(self) -> str:  # type: ignore[override]
        return self.opening.label

    def _may_write(self, col: str) -> bool:
        row = self.roles.of(col)
        return row is not None and row.leaves and self.outer.is_mutable(col)

    def filters(self) -> list[Filter]:
        return [*self.outer.filters(), *[row.filter for row in self.roles.rows]]
