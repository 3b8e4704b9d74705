"""What the body of a lift makes: marked where it is made, and heard by the loop outside of it.

A scope tells its call of each variable that it makes (`Call.on_birth`), and goes on with the value
that it gets back. Here that is the value with a mark on, by which it is found in the program that
the body is traced to.
"""

from __future__ import annotations

import enum
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from ... import jax_private
from ..roles import Role
from ..scope import Scope
from ..types import Group, Path
from .places import Place, Variables, flat, nested

# Our own, and not `checkpoint_name`: what that gives is the user's to save or to offload, and
# JAX changes how it is written down.
mark_p = jax_private.identity("liftax_mark")


class Kind(enum.Enum):
    """Who has a variable that a body makes, and so where its value comes in."""

    SHARED = "all iterations"
    CARRIED = "one iteration after the other"
    EACH = "each iteration one of its own, and a loop outside all of them"


class Birth(NamedTuple):
    """A variable that the body made.

    Attributes:
      kind: who has it.
      marks: one for each leaf of its value.
      treedef: the structure of its value.
      first: its value, marked; None when the trace has ended.
      late: whether a lift inside the body made it: then the value is what that lift
        left of it, not its first one.
      came_in: whether it was there before, and the body may write it.
    """

    kind: Kind
    marks: list[str]
    treedef: PyTreeDef
    first: object
    late: bool
    came_in: bool = False


Births = Mapping[Place, Birth]


class Marks:
    """The marks that one trace of a body leaves in its jaxpr, and the births they stand for."""

    def __init__(self) -> None:
        self.births: dict[Place, Birth] = {}
        self._number = itertools.count()
        self._heard: list[Callable[[str], bool]] = []

    def listen(
        self, inner: Sequence[Scope], kinds: Mapping[Role, Kind], tops: Sequence[Scope]
    ) -> None:
        """Marks what is made in scopes from now on.

        Args:
          kinds: role -> who has its variables; other roles are left alone, and so is what
            each iteration has, where no loop outside hears of it.
          tops: the scopes outside.
        """
        self._heard = [top.call.hears_first for top in tops]
        for i, (scope, hears) in enumerate(zip(inner, self._heard, strict=True)):
            self._listen(i, scope, kinds, hears)

    def _listen(
        self, top: int, scope: Scope, kinds: Mapping[Role, Kind], hears: Callable[[str], bool]
    ) -> None:
        call, depth = scope.call, len(scope.path)
        roles = call.roles
        assert roles is not None

        def kind_of(col: str) -> Kind | None:
            role = roles.role(col)
            kind = None if role is None else kinds.get(role)
            return None if kind is Kind.EACH and not hears(col) else kind

        def on_birth(col: str, path: Path, value: object, late: bool) -> object:
            kind = kind_of(col)
            return (
                value if kind is None else self._mark((top, col, *path[depth:]), kind, value, late)
            )

        call.on_birth, call.hears = on_birth, lambda col: kind_of(col) is not None

    def of(self, *kinds: Kind) -> dict[Place, Birth]:
        """Returns the births of some kinds, in the order of these."""
        return {p: b for kind in kinds for p, b in self.births.items() if b.kind is kind}

    def are_heard(self, collections: Iterable[str]) -> bool:
        """Tells whether a loop outside hears of all these collections."""
        return all(any(hears(col) for hears in self._heard) for col in collections)

    def came_in(self, group: Group, may_write: Callable[[int, str], bool]) -> Group:
        """Marks variables that are there already, as if the body made them.

        Linen's first trace writes them, and the second goes on from there.

        Args:
          may_write: ``(which scope, collection)`` -> whether the body may.
        """
        marked = {
            place: self._mark(place, Kind.SHARED, value, False, came_in=True)
            if may_write(place[0], place[1])
            else value
            for place, value in flat(group).items()
        }
        return nested(marked, len(group))

    def _mark(
        self, place: Place, kind: Kind, value: object, late: bool, came_in: bool = False
    ) -> object:
        if isinstance(value, dict):  # what a lift inside the body made, all at once
            return {k: self._mark((*place, k), kind, v, late, came_in) for k, v in value.items()}
        leaves, treedef = jax.tree.flatten(value)
        # A nested loop leaves its own marks in the same jaxpr: tell them apart.
        marks = [f"{id(self)}:{next(self._number)}" for _ in leaves]
        marked = [mark_p.bind(jnp.asarray(x), mark=n) for x, n in zip(leaves, marks, strict=True)]
        value = jax.tree.unflatten(treedef, marked)
        self.births[place] = Birth(kind, marks, treedef, value, late, came_in)
        return value

    @property
    def values(self) -> Variables:
        """What was marked, as it was: the body has written what is another value."""
        return {place: birth.first for place, birth in self.births.items()}

    def end(self) -> None:
        """Forgets the values of a trace that has ended: JAX holds on to what it traced."""
        self.births = {place: b._replace(first=None) for place, b in self.births.items()}
