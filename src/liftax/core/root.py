"""What is true of a whole call, for a root scope and all below it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import compat
from .filters import Filter, in_filter
from .record import recorder
from .rngs import Log

if TYPE_CHECKING:
    from .pack import Opening
    from .roles import Roles
    from .scope import Scope


class Root:
    """What is true of a whole call: shared by a root scope and all below it."""

    read_only = False  # a quick word for the usual case
    valid = True
    boxed = False  # whether any variable is in a metadata box
    log: Log | None = None
    # The lift whose body is running now, to which these scopes were handed.
    entered_by: Opening | None = None
    # Set by the lifts, on the scopes they make for a body:
    lift: str | None = None  # its name, for messages
    outside: Scope | None = None  # the scope that it opened
    roles: Roles | None = None  # its table for that scope
    on_birth: Callable[[str, tuple[str, ...], Any, bool], Any] | None = None
    # Whether on_birth is told what a map of variables inside makes before it is mapped.
    wants_first = False
    late = False  # whether what is written comes out of a lift inside the body
    creating: str | None = None  # the collection being initialised

    def __init__(self, mutable: Filter, flags: Mapping[str, Any]):
        self.mutable = mutable
        self._mutable: dict[str, bool] = {}
        if mutable is False:
            self.read_only = True
        self.flags = flags
        self.trace = compat.current_trace()
        # Whether this is traced to be run in its place, see staged.py.
        self.is_run = self.trace is not compat.EAGER and compat.is_run(self.trace)
        self.rec = recorder.get()
        # How many keys were drawn, by path and stream. Lifts hand this on to the scopes
        # they make, so a path goes on counting wherever it is met again.
        self.counters: dict[tuple[str, ...], dict[str, int]] = {}
        # What modules remember of a call: outside modules and their clones in it.
        self.adopted: dict[int, tuple[Any, Any]] = {}
        # The variables that this call made without a lift, to notice ties that a lift cuts.
        self.made_plain: set[tuple[str, tuple[str, ...]]] = set()

    def is_mutable(self, col: str) -> bool:
        found = self._mutable.get(col)
        if found is None:
            found = self._mutable[col] = self._may_write(col)
        return found

    def _may_write(self, col: str) -> bool:
        return in_filter(self.mutable, col)


class InnerRoot(Root):
    """What is true inside a lift: what is true outside, narrowed by the roles."""

    roles: Roles

    def __init__(self, opening: Opening, outside: Scope, roles: Roles):
        self.outer = outer = outside._root
        super().__init__(False, outer.flags)
        self.read_only = outer.read_only
        self.opening = opening
        self.outside = outside
        self.roles = roles
        self.creating = outer.creating
        self.counters = outer.counters
        self.log = outer.log
        self.boxed = outer.boxed

    @property
    def lift(self) -> str:  # type: ignore[override]
        return self.opening.label

    def _may_write(self, col: str) -> bool:
        row = self.roles.of(col)
        return row is not None and row.leaves and self.outer.is_mutable(col)
