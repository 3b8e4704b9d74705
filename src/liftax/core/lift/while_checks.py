"""What a while loop refuses: its condition, its number of steps, variables that its body makes."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax

from ...errors import ConditionError, LiftOptionError, ScopeVariableNotFoundError
from ...words import kind_of, shown
from ..call import Call
from ..scope import Scope
from ..types import Path
from .crossing import Opening


def checked_condition(opening: Opening, result: object) -> bool | jax.Array:
    """Returns what ``cond_fn`` returned, if it is one bool."""
    if isinstance(result, bool):
        return result
    # By what it has and not by its class: a tracer counts as an array, and so does numpy's bool.
    if getattr(result, "dtype", None) == "bool" and getattr(result, "shape", None) == ():
        return result  # type: ignore[return-value]
    raise ConditionError(
        f"{opening.place}: cond_fn must return one bool.\n"
        f"found: {kind_of(result)}\n"
        f"expected: bool[], e.g. x.sum() < 9, or by .all() or .any()"
    )


def checked_steps(opening: Opening, max_steps: int | None) -> int | None:
    """Returns the most steps that there may be, None where nothing bounds them."""
    # True is an int to Python, and no number of steps.
    wrong = isinstance(max_steps, bool) or not isinstance(max_steps, int) or max_steps < 1
    if max_steps is not None and wrong:
        raise LiftOptionError(
            f"{opening.place}: max_steps expected an int, 1 or more; found {shown(max_steps)}"
        )
    return max_steps


class Unborn:
    """The variables that a body makes, which have no value for a loop that never runs."""

    def __init__(self, opening: Opening):
        self.opening = opening
        # Told when the body has ended, so that one message can name all of them.
        self.made: list[str] = []

    def listen(self, inner: Sequence[Scope]) -> None:
        """Hears of what is made in scopes from now on."""
        for top, scope in zip(self.opening.tops, inner, strict=True):
            scope.call.on_birth = functools.partial(self._hear, top, scope.call)

    def _hear(
        self, top: Scope, call: Call, col: str, path: Path, value: object, late: bool
    ) -> object:
        names = path[len(top.path) :]
        # What no initializer makes is part of a value that grows.
        if late or call.creating is not None or len(names) == 1:
            self.made.append("/".join((col, *names)))
        return value

    def check(self) -> None:
        """Raises ScopeVariableNotFoundError where the body has made one."""
        if self.made:
            raise ScopeVariableNotFoundError(
                f"{self.opening.place}: the body makes variables ({', '.join(self.made[:4])}), but "
                f"a while loop may run zero times. Make them before the loop: call the body once "
                f"on the initial carry where self.is_initializing()"
            )
