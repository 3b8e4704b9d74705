"""Roles: what a lift does with each collection and each stream.

Vocabulary
  role     stacked along an axis (an int), shared by all iterations
           (``BROADCAST``), carried (``CARRY``), or handed through (``THROUGH``)
  In, Out  a role that holds in one direction only

The arguments of a lift are parsed once, when the lift is made, into a `Roles`
table; every lift reads that table and none looks at filters itself.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Generic, TypeVar

import numpy as np

from ..errors import AxisError, RoleError
from ..words import shown
from .filters import Filter, check_filter, in_filter, names_of, subtract

T = TypeVar("T")

Role = int | str
"""An axis, or one of the words below, or a lift's own word."""

BROADCAST = "broadcast"
CARRY = "carry"
THROUGH = "through"


@dataclasses.dataclass(frozen=True)
class In(Generic[T]):
    """The axis of a collection that goes into a lift and does not come out.

    Example:
      >>> In(0)
      In(axis=0)
    """

    axis: T


@dataclasses.dataclass(frozen=True)
class Out(Generic[T]):
    """The axis of a collection that comes out of a lift and does not go in.

    Example:
      >>> Out(-1)
      Out(axis=-1)
    """

    axis: T


@dataclasses.dataclass(frozen=True)
class InPlace(Generic[T]):
    """The axis of a collection that a loop writes where it stands.

    The stacked array goes through the loop whole, and an iteration reads and writes its own part:
    for a cache, of which a step of decoding changes one position. Shapes, names and numbers are
    those of the axis alone.

    Example:
      >>> InPlace(0)
      InPlace(axis=0)
    """

    axis: T


class Broadcast:
    """The type of `broadcast`, the word for "no axis" in the arguments of a scan.

    In ``in_axes``, the whole value is handed to each iteration. In ``out_axes``, the value is the
    same in each iteration and returned once.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> class Add(nn.Module):
      ...     def __call__(self, total, x, bias):
      ...         return total + x + bias, bias
      >>> Sum = nn.scan(Add, in_axes=(0, nn.broadcast), out_axes=nn.broadcast)
      >>> total, bias = Sum().apply({}, jnp.zeros(2), jnp.ones((5, 2)), jnp.ones(2))
      >>> total.tolist(), bias.shape
      ([10.0, 10.0], (2,))
    """

    def __repr__(self) -> str:
        return "broadcast"

    def __reduce__(self) -> str:
        return "broadcast"


broadcast = Broadcast()
"""In ``in_axes``: hand the whole value to each iteration. In ``out_axes``: the
value is the same in each iteration, return it once."""

Axis = int | Broadcast | None
"""What ``in_axes`` and ``out_axes`` may say of a leaf."""

VariableAxes = Mapping[
    Filter, int | In[int] | Out[int] | In[int | None] | Out[int | None] | InPlace[int] | None
]
"""What ``variable_axes`` says: an axis, in one direction or both; None where all share."""


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
      filter: the collections.
      role: an axis, BROADCAST, CARRY or THROUGH.
      argument: the argument of the lift that said so.
      enters: whether the variables go in.
      leaves: whether what is written comes out.
      in_place: whether a loop writes the stacked array where it stands.
    """

    filter: Filter
    role: Role
    argument: str
    enters: bool = True
    leaves: bool = True
    in_place: bool = False

    @property
    def axis(self) -> int | None:
        return self.role if isinstance(self.role, int) else None


class Roles:
    """The table of a lift.

    Args:
      lift: the lift's name, e.g. ``"scan"``.
      rows: in order; the first that has a collection decides.
      streams: pairs (filter, whether the stream is split).

    Raises:
      RoleError: a collection or stream is spelled out twice.
    """

    advice = "variables={0!r} (or True)"
    """The argument that lets a collection in and out, for messages."""

    def __init__(self, lift: str, rows: Iterable[Row], streams: Iterable[tuple[Filter, bool]]):
        self.lift = lift
        self.rows = tuple(rows)
        self.streams = tuple(streams)
        seen: dict[str, Row] = {}
        for row in self.rows:
            check_filter(row.filter, f"{lift}, {row.argument}")
            for name in names_of(row.filter):
                other = seen.setdefault(name, row)
                if other is not row:
                    raise RoleError(
                        f"{lift}: collection {name!r} has two roles, {other.argument} "
                        f"({other.role}) and {row.argument} ({row.role}); keep one"
                    )
        names: set[str] = set()
        for stream_filter, _ in self.streams:
            check_filter(stream_filter, f"{lift}, split_rngs")
            for name in names_of(stream_filter):
                if name in names:
                    raise RoleError(f"{lift}: split_rngs names stream {name!r} twice; keep one")
                names.add(name)
        # A table lives as long as its lift, and is asked about the same few names in every call.
        self._rows: dict[str, Row | None] = {}
        self._splits: dict[str, bool | None] = {}
        self._check_reached(seen)
        # The axes of the table, each once.
        self.axes = list(dict.fromkeys(r.axis for r in self.rows if r.axis is not None))
        # What `checks` has held the table against.
        self.checked: set[tuple[frozenset[str], ...]] = set()

    def _check_reached(self, spelled: Mapping[str, Row]) -> None:
        """Raises RoleError where an open filter in front takes a name that is spelled out."""
        for name, row in spelled.items():
            first = self.of(name)
            # The other lifts put their own row first and hand the rest through: a name may be in
            # both.
            if first is not None and first.role != row.role and self.lift in ("scan", "vmap"):
                raise RoleError(
                    f"{self.lift}: collection {name!r} has two roles: {first.argument} "
                    f"({first.role}) takes it by {first.filter!r}, before {row.argument} "
                    f"({row.role}) names it; let DenyList({name!r}) stand for {first.filter!r}"
                )
        for stream_filter, split in self.streams:
            for name in names_of(stream_filter):
                if self.split(name) is not split:
                    raise RoleError(
                        f"{self.lift}: split_rngs names stream {name!r} ({split}) after a filter "
                        f"that takes it ({not split}); put {name!r} first"
                    )

    def of(self, col: str) -> Row | None:
        """Returns the row of a collection, None if no row has it."""
        if col not in self._rows:
            self._rows[col] = next((r for r in self.rows if in_filter(r.filter, col)), None)
        return self._rows[col]

    def role(self, col: str) -> Role | None:
        """Returns the role of a collection, None if it has none."""
        row = self.of(col)
        return None if row is None else row.role

    def split(self, stream: str) -> bool | None:
        """Tells whether a stream is split, None if it does not go in at all."""
        if stream not in self._splits:
            self._splits[stream] = next(
                (split for f, split in self.streams if in_filter(f, stream)), None
            )
        return self._splits[stream]

    def all_shared(self) -> Roles:
        """Returns a table that shares every collection, with the same streams.

        Parameters that are made under it are the same in every iteration, so
        their stream is not split.
        """
        # Subtracted, since a table refuses a stream that is named twice.
        streams = [(subtract(f, "params"), split) for f, split in self.streams]
        return Roles(self.lift, [Row(True, BROADCAST, "shared")], [("params", False), *streams])


def axis_rows(variable_axes: VariableAxes, lift: str, *, shared: bool) -> list[Row]:
    """Reads ``variable_axes``.

    Args:
      variable_axes: filter -> axis, In(axis), Out(axis); with ``shared`` the axis
        may be None, which shares the collection.
      lift: the lift's name, for messages.
      shared: whether None is allowed.
    """
    if not isinstance(variable_axes, Mapping):
        raise RoleError(
            f"{lift}: variable_axes expected a mapping of collection to axis, "
            f"e.g. {{'params': 0}}; found {type(variable_axes).__name__}"
        )
    rows = []
    for name, role in variable_axes.items():
        enters, leaves = not isinstance(role, Out), not isinstance(role, In)
        # What a user gave: checked here, so nothing is known of it yet.
        axis: Any = role.axis if isinstance(role, (In, Out, InPlace)) else role
        if isinstance(role, InPlace) and lift == "vmap":
            raise RoleError(
                f"vmap: variable_axes[{name!r}] found {role}; a map has no iterations that write "
                f"one after another: expected the axis alone, {role.axis!r}"
            )
        if axis is None and shared:
            axis = BROADCAST
        # True is an int to Python, and an array of one number has __index__: neither is meant.
        elif isinstance(axis, bool) or not hasattr(axis, "__index__") or np.ndim(axis):
            use = "variable_broadcast" if lift == "scan" else "an int or None"
            raise AxisError(
                f"{lift}: variable_axes[{name!r}] expected an int; found {shown(axis)}"
                + (f". To share the collection use {use}={name!r}" if axis is None else "")
            )
        else:
            axis = axis.__index__()
        rows.append(Row(name, axis, "variable_axes", enters, leaves, isinstance(role, InPlace)))
    return rows


def loop_roles(
    lift: str,
    variable_axes: VariableAxes,
    variable_broadcast: Filter,
    variable_carry: Filter,
    split_rngs: Mapping[Filter, bool],
) -> Roles:
    """Returns the table of a loop (scan, remat_scan)."""
    rows = [
        Row(variable_broadcast, BROADCAST, "variable_broadcast"),
        Row(variable_carry, CARRY, "variable_carry"),
        *axis_rows(variable_axes, lift, shared=False),
    ]
    return Roles(lift, rows, split_pairs(split_rngs, lift))


def through_roles(lift: str, variables: Filter, rngs: Filter) -> Roles:
    """Returns the table of a lift without a new axis (remat, jit, cond, ...)."""
    return Roles(lift, [Row(variables, THROUGH, "variables")], [(rngs, False)])


def split_pairs(split_rngs: Mapping[Filter, bool], lift: str) -> list[tuple[Filter, bool]]:
    """Reads ``split_rngs``: any value that is true or false to Python, but no text or container."""
    if not isinstance(split_rngs, Mapping):
        raise RoleError(
            f"{lift}: split_rngs expected a mapping of stream to bool, "
            f"e.g. {{'params': True}}; found {type(split_rngs).__name__}"
        )
    return [(name, _truth(split, name, lift)) for name, split in split_rngs.items()]


def _truth(split: object, name: Filter, lift: str) -> bool:
    """Whether Python takes a value for true; a text or a container is a slip."""
    try:
        if not isinstance(split, (str, bytes, list, tuple, set, Mapping)):
            return bool(split)
    except (TypeError, ValueError):  # a traced value, or an array of several
        pass
    raise RoleError(
        f"{lift}: split_rngs[{name!r}] expected True or False; found {type(split).__name__}"
    )
