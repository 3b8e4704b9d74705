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

    __slots__ = (
        "_mutable",
        "counters",
        "adopted",
        "boxed",
        "creating",
        "entered_by",
        "flags",
        "late",
        "lift",
        "log",
        "made_plain",
        "mutable",
        "read_only",
        "on_birth",
        "outside",
        "rec",
        "roles",
        "trace",
        "valid",
    )

    def __init__(self, mutable: Filter, flags: Mapping[str, Any]):
        self.mutable = mutable
        self.read_only = mutable is False  # a quick word for the usual case
        self._mutable: dict[str, bool] = {}
        self.flags = flags
        self.trace = compat.current_trace()
        self.valid = True
        self.rec = recorder.get()
        self.boxed = False  # whether any variable is in a metadata box
        # How many keys were drawn, by path and stream. Lifts hand this on to the scopes
        # they make, so a path goes on counting wherever it is met again.
        self.counters: dict[tuple[str, ...], dict[str, int]] = {}
        self.log: Log | None = None
        # The lift whose body is running now, to which these scopes were handed.
        self.entered_by: Opening | None = None
        # What modules remember of a call: outside modules and their clones in it.
        self.adopted: dict[int, tuple[Any, Any]] = {}
        # Set by the lifts, on the scopes they make for a body:
        self.lift: str | None = None  # its name, for messages
        self.outside: Scope | None = None  # the scope that it opened
        self.roles: Roles | None = None  # its table for that scope
        self.on_birth: Callable[[str, tuple[str, ...], Any, bool], Any] | None = None
        # The variables that this call made without a lift, to notice ties that a lift cuts.
        self.made_plain: set[tuple[str, tuple[str, ...]]] = set()
        self.late = False  # whether what is written comes out of a lift inside the body
        self.creating: str | None = None  # the collection being initialised

    def is_mutable(self, col: str) -> bool:
        found = self._mutable.get(col)
        if found is None:
            found = self._mutable[col] = in_filter(self.mutable, col)
        return found
