"""Lifts of one's own over functions of a scope, from a transformation of pure functions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from ...errors import LiftOptionError, LostWritesError
from ...words import kind_of, shown
from .. import boxes
from ..events import Told
from ..filters import Filter, in_filter
from ..roles import In, Out, Role, Roles, Row
from ..streams import Keyed
from ..types import Function, Group, Metadata, Tree
from .axes import named, unnamed
from .checks import check_arguments
from .crossing import Opening
from .options import Options
from .places import Place, flat, name_of

__all__ = ["lift"]

Transform = Callable[..., tuple[Any, Any]]
"""The user's: ``(body, variables, keys, *args, **kwargs) -> (y, written)``."""


class _OwnRoles(Roles):
    """The table of such a lift."""

    advice = "{0!r} in variables="


@dataclasses.dataclass(frozen=True, eq=False)
class Lift(Options):
    """`liftax.lift` over functions of a scope: its result is a lift of them.

    Example:
      >>> from liftax.core import apply, lift
      >>> def twice(body, variables, keys, x):
      ...     y, written = body(variables, keys, x)
      ...     return body(variables, keys, y)
      >>> layer = lift.lift(twice)(lambda scope, x: scope.get_variable('params', 'w') * x)
      >>> apply(layer)({'params': {'w': 2.0}}, 3.0)
      12.0
    """

    transform: Transform
    variables: Filter | Mapping[str, Filter | In[Filter] | Out[Filter]] = True
    rngs: Filter | Mapping[str, Filter] = True
    axes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    size: int | None = None
    metadata_params: Metadata = dataclasses.field(default_factory=dict)
    first: Callable[..., tuple[object, ...]] | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        # One axis may be of variables, of keys, or of both, but two roles along one axis could not
        # be told apart in a table.
        known = {*_by_role(self.variables), *_by_role(self.rngs)}
        wrong = [role for role in self.axes if role not in known]
        if wrong or len(set(self.axes.values())) < len(self.axes):
            raise self.refusal(
                "axes does not fit the roles.",
                f"axes={shown(dict(self.axes))} with the roles {', '.join(map(repr, known))}",
                "roles of variables= and rngs=, each with an axis of its own",
            )
        if self.axes and self.size is None:
            raise self.refusal(
                "an axis needs a length.",
                "size=None",
                "size=, the length of the axis that variables and keys have",
            )
        if self.roles.axes and self.first is not None:
            raise self.refusal(
                "first= calls the body without the lift, so what it makes has no axis.",
                f"first= and axes={shown(dict(self.axes))}",
                "one of the two",
            )
        super().__post_init__()

    def refusal(self, what: str, found: str, expected: str) -> LiftOptionError:
        return LiftOptionError(f"{self.lift}: {what}\nfound: {found}\nexpected: {expected}")

    @property
    def lift(self) -> str:  # type: ignore[override]
        """The lift's name."""
        return self.name or str(getattr(self.transform, "__name__", "lift"))

    @functools.cached_property
    def roles(self) -> Roles:
        """The table: a role that has an axis is that axis there, as in the lifts that have one."""
        rows = []
        for role, which in _by_role(self.variables).items():
            # In and Out hold a filter here, as they hold the axis in a lift that has one.
            named: Any = which.axis if isinstance(which, (In, Out)) else which
            enters, leaves = not isinstance(which, Out), not isinstance(which, In)
            rows.append(Row(named, self.axes.get(role, role), "variables", enters, leaves))
        streams = [(which, role in self.axes) for role, which in _by_role(self.rngs).items()]
        return _OwnRoles(self.lift, rows, streams)

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs the user's transformation of a function over what the scopes hold."""
        opening = Opening(self.roles, scopes, fn)
        check_arguments(opening)
        # Before the transformation: what the loop of it needs is there when the body is traced.
        if self.first is not None and opening.initializing:
            opening.call_without(fn, scopes, self.first(*args, **kwargs), {})
        return _OwnCall(self, opening, fn).run(args, kwargs)


lift = Lift


class _OwnCall:
    """One call of such a lift.

    Attributes:
      inside: the roles of what goes in, by the user's names.
      outside: those of what comes out.
      wrote: what the body has written, by role.
    """

    def __init__(self, options: Lift, opening: Opening, fn: Function):
        self.options, self.opening = options, opening
        names = dict(zip(_by_role(options.variables), opening.roles.rows, strict=True))
        self.inside = {name: row.role for name, row in names.items() if row.enters}
        self.outside = {name: row.role for name, row in names.items() if row.leaves}
        # Noted at each call of the body, and compared with what is handed back: a transformation
        # that forgets a group would lose writes without a word.
        self.wrote: dict[str, set[Place]] = {name: set() for name in self.outside}
        named = options.metadata_params.get(boxes.PARTITION_NAME)
        told: Told = {"size": options.size, "axis_name": named} if options.size else {}
        self.pure = opening.body(fn, list(self.outside.values()), **told)

    def run(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Any:
        """Calls the transformation; writes what the body wrote, and returns the rest."""
        opening, options = self.opening, self.options
        values = opening.sorted_values(list(self.inside.values()))
        variables = {
            name: self.renamed(unnamed, role, values[role]) for name, role in self.inside.items()
        }
        out = options.transform(
            self.body,
            _shown(variables, options.variables),
            _shown(self.keys(), options.rngs),
            *args,
            **kwargs,
        )
        if not isinstance(out, tuple) or len(out) != 2:
            raise self.refusal(f"it returns {kind_of(out)}")
        y, returned = out
        written = _read(returned, options.variables)
        groups = []
        for name, role in self.outside.items():
            group = tuple(written.get(name, ()))
            lost = sorted(map(name_of, self.wrote[name] - flat(group).keys()))
            if lost:
                raise self.refusal(f"{', '.join(lost[:4])} would be lost")
            # A role that nobody wrote under may be left out of what is handed back.
            groups.append(self.renamed(named, role, group) if group else opening.empty())
        opening.write_back(*groups)
        return y

    def renamed(self, change: Any, role: Role, group: Group) -> Group:
        """A group with the axis taken out of its boxes, or put in."""
        if not isinstance(role, int):
            return group
        made: Group = change(self.opening, group, role, self.options.metadata_params)
        return made

    def keys(self) -> dict[str, Keyed]:
        """The base keys by role."""
        opening, size = self.opening, self.options.size
        # Without an axis there is nothing to split along, and each role has the keys as they are.
        split = opening.no_keys if size is None else opening.split_keys(size)
        left = [{**a, **b} for a, b in zip(opening.keys(False), split, strict=True)]
        return {
            name: tuple(
                {stream: keys.pop(stream) for stream in list(keys) if in_filter(which, stream)}
                for keys in left
            )
            for name, which in _by_role(self.options.rngs).items()
        }

    def body(self, variables: Any, keys: Any, /, *args: object, **kwargs: object) -> Any:
        """The lifted function as a pure one."""
        groups = list(_read(variables, self.options.variables).values())
        y, written = self.pure(groups, list(_read(keys, self.options.rngs).values()), args, kwargs)
        by_role = dict(zip(self.outside, written, strict=True))
        for name, group in by_role.items():
            self.wrote[name].update(flat(group))
        return y, _shown(by_role, self.options.variables)

    def refusal(self, found: str) -> LostWritesError:
        lift = self.options.lift
        return LostWritesError(
            f"{self.opening.place}: {lift} must return a pair: what the lifted function returns, "
            f"and what its body wrote.\nfound: {found}\n"
            f"expected: y, written = body(variables, keys, ...), and {lift} returns both: "
            f"what becomes of y, what becomes of written"
        )


_ONLY = "all"


def _by_role(given: Any) -> Mapping[str, Any]:
    """Filters by role; of one filter alone, there is one role."""
    return given if isinstance(given, Mapping) else {_ONLY: given}


def _shown(groups: Mapping[str, Any], given: object) -> Any:
    """Groups as the user's function has them: by role, where it was told of roles."""
    return dict(groups) if isinstance(given, Mapping) else groups.get(_ONLY, ())


def _read(given_back: Any, given: object) -> Mapping[str, Any]:
    """Undoes `_shown`."""
    if isinstance(given, Mapping):
        return given_back if isinstance(given_back, Mapping) else {}
    return {_ONLY: given_back}
