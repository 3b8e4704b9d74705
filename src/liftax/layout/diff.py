"""How two layouts differ, as data with words for each difference.

One cause is one difference where it can be: a variable that a scan shares in one model and stacks
in the other differs in its *role*, and the axis that follows from it is not said again; a lift that
only one of the models has is one difference, and not one for each variable inside. Modules that
were only called otherwise are paired first, so that what differs inside of them is said too.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

from .data import Along, Axis, LayoutData, LiftNode, VariableLayout
from .fold import common_name, numberless
from .grouped import grouped

Kind = Literal[
    "storage",
    "lift",
    "split",
    "renamed",
    "missing",
    "extra",
    "role",
    "axes",
    "names",
    "dtype",
]
Path = tuple[str, ...]
Names = tuple[str, str]

_TITLES: dict[Kind, str] = {
    "storage": "layers stored otherwise",
    "lift": "lifts",
    "split": "streams",
    "renamed": "called otherwise",
    "missing": "missing",
    "extra": "extra",
    "role": "roles",
    "axes": "axes",
    "names": "names of axes",
    "dtype": "dtypes",
}


@dataclass(frozen=True)
class Difference:
    """One thing in which two layouts differ.

    Attributes:
      kind: what differs.
        `"missing"` and `"extra"`: a variable that only the first, or only the second has.
        `"renamed"`: a module or variable that is alike and has another name in the same place.
        `"axes"`: the axes of a variable: their sizes, their order, or the lift they came from.
        `"names"`: the names that boxes (`nn.Partitioned`) give to a layer's own axes.
        `"dtype"`: the dtype of a variable.
        `"role"`: what a lift does with a variable: stacked, shared, carried, through.
        `"lift"`: a lift that only one has, or that has another size, name, carry or place.
        `"split"`: a stream that only one splits along a lift, or only one draws from.
        `"storage"`: a stack whose layers one stores as one subtree, the other one by one.
      path: `"params/Dense_0/kernel"` for a variable, `"/blocks"` for the module of a lift.
      what: which property of a lift (`"size"`, `"axis_name"`, `"carry"`, `"around"`), which stream
        of a split; else empty.
      a: what the first has: a `VariableLayout`, a tuple of `Axis`, a `LiftNode`, a role, a dtype, a
        size, a path, or None where it has nothing.
      b: what the second has.
      lift: the lift that it is about, as the first has it, or else the second.
      message: all of it in words.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> (found, *_) = nn.layout_diff(
      ...     nn.Dense(3), nn.Dense(3, use_bias=False), jax.random.key(0), jnp.ones(2))
      >>> found.kind, found.path, found.b
      ('missing', 'params/bias', None)
    """

    kind: Kind
    path: str
    a: Any
    b: Any
    message: str
    what: str = ""
    lift: LiftNode | None = None

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class LayoutDiff(Sequence[Difference]):
    """All differences of two layouts: a sequence, empty where they are alike.

    Attributes:
      differences: each `Difference`, what explains others first.
      names: what the two are called in the words.
      alike: how many variables are the same in both.

    Print it for the table of differences, in which those that say the same of many variables share
    a line.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> found = nn.layout_diff(
      ...     nn.Dense(3), nn.Dense(3, use_bias=False), jax.random.key(0), jnp.ones(2))
      >>> found, len(found), found.of('axes')
      (<LayoutDiff: 1 missing; 1 variables alike>, 1, ())
    """

    differences: tuple[Difference, ...]
    names: Names = ("a", "b")
    alike: int = 0

    @overload
    def __getitem__(self, index: int) -> Difference: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Difference]: ...
    def __getitem__(self, index: int | slice) -> Difference | Sequence[Difference]:
        return self.differences[index]

    def __len__(self) -> int:
        return len(self.differences)

    def of(self, *kinds: Kind) -> tuple[Difference, ...]:
        """The differences of some kinds."""
        return tuple(d for d in self.differences if d.kind in kinds)

    def __repr__(self) -> str:
        counts = {kind: len(self.of(kind)) for kind in _TITLES}
        said = ", ".join(f"{n} {kind}" for kind, n in counts.items() if n)
        return f"<LayoutDiff: {said or 'none'}; {self.alike:,} variables alike>"

    def __str__(self) -> str:
        return self.to_text(100)

    def to_text(self, width: int) -> str:
        """The differences for a terminal ``width`` columns wide."""
        a, b = self.names
        alike = f"{self.alike:,} variable{'s' * (self.alike != 1)} alike"
        if not self.differences:
            return f"no difference: {alike}"
        lines = [f"{len(self)} difference{'s' * (len(self) != 1)} of {a} and {b}; {alike}"]
        for kind, title in _TITLES.items():
            found = self.of(kind)
            lines += ["", title] if found else []
            for message in _folded(found):
                lines += textwrap.wrap(
                    message,
                    width,
                    initial_indent="  ",
                    subsequent_indent="    ",
                    break_on_hyphens=False,
                )
        return "\n".join(lines)


def _folded(found: Iterable[Difference]) -> list[str]:
    """The messages, one for all that differ in the numbers in their paths alone."""
    # A hundred layers that differ alike are one thing to read.
    groups = grouped(found, lambda d: (numberless(d.path), d.message.removeprefix(d.path)))
    messages = []
    for (_, rest), members in groups.items():
        path = common_name([d.path for d in members])
        count = f" ({len(members)} of them)" if len(members) > 1 else ""
        messages.append(f"{path}{count}{rest}" if members[0].message != rest else rest)
    return messages


def diff(
    a: LayoutData,
    b: LayoutData,
    names: Names = ("a", "b"),
    *,
    plain: Iterable[Path] = (),
    found: Iterable[Difference] = (),
) -> LayoutDiff:
    """The differences of two layouts; `nn.layout_diff` also takes models and checkpoints.

    Args:
      a: the first.
      b: the second.
      names: what the words call them.
      plain: the paths below which only shapes and dtypes are compared, and no lifts.
      found: differences that are known already.
    """
    return _Comparison(a, b, names, tuple(plain), found).result()


class _Comparison:
    """Two layouts side by side: which lift of one is which of the other, and what differs."""

    def __init__(
        self,
        a: LayoutData,
        b: LayoutData,
        names: Names,
        plain: tuple[Path, ...],
        found: Iterable[Difference],
    ):
        self.layouts = a, b
        self.names = names
        self.plain = plain
        # Variables of a file or of arrays say nothing of lifts, so nothing of them can differ.
        self.lifted = a.traced and b.traced
        self.a = {_key(v): v for v in a.variables}
        self.b = {_key(v): v for v in b.variables}
        self.found = list(found)

    def result(self) -> LayoutDiff:
        # First of all: what only has another name would be missing in one and extra in the other.
        renamed = self.renamed()
        paths = {new: old for old, new in renamed.items()}
        b = {(c, _moved(path, paths), leaf): v for (c, path, leaf), v in self.b.items()}
        self.pairs = self.matched(paths) if self.lifted else {}
        if self.lifted:
            self.lifts()
        for old, new in renamed.items():
            self.rename(old, new)
        for v in (v for key, v in self.a.items() if key not in b):
            self.add("missing", _name(v), v, None, f": {_said(v)}, only in {self.names[0]}")
        for v in (v for key, v in b.items() if key not in self.a):
            self.add("extra", _name(v), None, v, f": {_said(v)}, only in {self.names[1]}")
        alike = 0
        for key, v in self.a.items():
            if key in b:
                before = len(self.found)
                self.variable(v, b[key])
                # Counted by what was found, so that alike means that nothing at all was said.
                alike += len(self.found) == before
        order = {kind: i for i, kind in enumerate(_TITLES)}
        found = sorted(self.found, key=lambda d: order[d.kind])
        return LayoutDiff(tuple(found), self.names, alike)

    def add(
        self,
        kind: Kind,
        path: str,
        a: object,
        b: object,
        said: str,
        *,
        what: str = "",
        lift: LiftNode | None = None,
    ) -> None:
        self.found.append(Difference(kind, path, a, b, path + said, what, lift))

    def both(self, a: object, b: object) -> str:
        """`x in a, y in b`."""
        return f"{a} in {self.names[0]}, {b} in {self.names[1]}"

    # --- names ----------------------------------------------------------------

    def renamed(self) -> dict[Path, Path]:
        """Path in the first -> path in the second, of what only has another name."""
        gone = [k for k in self.a if k not in self.b]
        new = [k for k in self.b if k not in self.a]
        found: dict[Path, Path] = {}
        # Equal shapes and names first; what is left may still be the one subtree of its kind.
        for exact in (True, False):
            before, after = _subtrees(gone, self.a, exact), _subtrees(new, self.b, exact)
            for signature, old in before.items():
                others = after.get(signature, [])
                # Several that are alike are paired in their order, but only if none is left over.
                if len(old) == len(others) and (exact or len(old) == 1):
                    for one, other in zip(old, others, strict=True):
                        # Inside a subtree that was renamed all paths moved along.
                        if not any(_within(one, p) for p in found):
                            found.setdefault(one, other)
        return found

    def rename(self, old: Path, new: Path) -> None:
        one, other = "/".join(old), "/".join(new)
        self.add("renamed", f"/{one}", one, other, f" is called {other} in {self.names[1]}")

    # --- lifts ----------------------------------------------------------------

    def matched(self, paths: Mapping[Path, Path]) -> dict[int, int]:
        """Lift of the first -> lift of the second: of one kind, at one path, in their order."""
        places: dict[tuple[str, Path], list[int]] = {}
        for lift in self.layouts[1].lifts:
            # Several lifts of a kind may stand at one path, one in the other: then the order is
            # what they have.
            places.setdefault((lift.kind, _moved(lift.path, paths)), []).append(lift.index)
        pairs = {}
        for lift in self.layouts[0].lifts:
            left = places.get((lift.kind, lift.path), [])
            if left:
                pairs[lift.index] = left.pop(0)
        return pairs

    def lifts(self) -> None:
        first, second = self.layouts
        for lift in filter(self.told, first.lifts):
            if lift.index not in self.pairs:
                self.only(lift, 0)
            else:
                self.lift(lift, second.lifts[self.pairs[lift.index]])
        taken = set(self.pairs.values())
        for lift in filter(self.told, second.lifts):
            if lift.index not in taken:
                self.only(lift, 1)

    def told(self, at: LiftNode | VariableLayout) -> bool:
        """Whether lifts are compared at a place."""
        return self.lifted and not any(_within(at.path, prefix) for prefix in self.plain)

    def only(self, lift: LiftNode, side: int) -> None:
        a, b = (lift, None) if side == 0 else (None, lift)
        said = f": {lift.title}, only in {self.names[side]}"
        self.add("lift", _place(lift), a, b, said, lift=lift)

    def lift(self, a: LiftNode, b: LiftNode) -> None:
        head = f": {a.kind} over {a.target}"
        for what, one, other, words in (
            ("size", a.size, b.size, "iterates {}"),
            ("axis_name", a.axis_name, b.axis_name, "calls its axis {}"),
            ("carry", a.carry, b.carry, "{}"),
            ("around", self.around(a, 0), self.around(b, 1), "stands in {}"),
            ("details", dict(a.details), dict(b.details), "has {}"),
        ):
            if one == other:
                continue
            said = self.both(words.format(_worded(what, one)), words.format(_worded(what, other)))
            self.add("lift", _place(a), one, other, f"{head} {said}", what=what, lift=a)
        for stream in dict.fromkeys((*a.splits, *b.splits)):
            one, other = a.splits.get(stream), b.splits.get(stream)
            if one != other:
                said = self.both(_SPLIT[one], _SPLIT[other])
                text = f": stream {stream!r} of {a.title} is {said}"
                self.add("split", _place(a), one, other, text, what=stream, lift=a)

    def around(self, lift: LiftNode, side: int) -> str | None:
        """The next lift outside that both have, by its kind and place."""
        known = set(self.pairs) if side == 0 else set(self.pairs.values())
        lifts = self.layouts[side].lifts
        parent = lift.parent
        # A lift that only one has is a difference already; what stands in it is compared as if it
        # weren't there.
        while parent is not None and parent not in known:
            parent = lifts[parent].parent
        if parent is None:
            return None
        if side == 1:
            back = {b: a for a, b in self.pairs.items()}
            return _called(self.layouts[0].lifts[back[parent]])
        return _called(lifts[parent])

    # --- variables ------------------------------------------------------------

    def variable(self, a: VariableLayout, b: VariableLayout) -> None:
        name = _name(a)
        if a.dtype != b.dtype:
            self.add("dtype", name, a.dtype, b.dtype, f": {self.both(a.dtype, b.dtype)}")
        if not self.told(a):
            if a.shape != b.shape:
                self.axes(name, a, b, "")
            return
        back = {theirs: ours for ours, theirs in self.pairs.items()}
        first = {al.lift: al for al in a.along if al.lift in self.pairs}
        second = {back[al.lift]: al for al in b.along if al.lift in back}
        # The axis that follows from a role is said with the role, and not again as an axis.
        explained: set[int] = set()
        for index in dict.fromkeys((*first, *second)):
            one, other = first.get(index), second.get(index)
            if one is not None and other is not None and one.role == other.role:
                continue
            explained.add(index)
            lift = self.layouts[0].lifts[index]
            roles = [_role(one, lift), _role(other, lift)]
            said = f": {self.both(*roles)}"
            mine, theirs = one and one.role, other and other.role
            self.add("role", name, mine, theirs, said, lift=lift)
        ours = _origins(a, explained, lambda i: i if i in self.pairs else None)
        others = _origins(b, explained, back.get)
        if ours != others:
            self.axes(name, a, b, self.cause(ours, others))
        # Names last: where sizes differ, other names are the least of it.
        elif (own := _own_names(a)) != (theirs_ := _own_names(b)):
            if len(own) == len(theirs_):
                text = f": {self.both(_shape(a.axes), _shape(b.axes))}"
                self.add("names", name, own, theirs_, text)

    def axes(self, name: str, a: VariableLayout, b: VariableLayout, cause: str) -> None:
        said = f": {self.both(_shape(a.axes), _shape(b.axes))}"
        self.add("axes", name, a.axes, b.axes, f"{said}{cause}")

    def cause(self, ours: list[_Origin], others: list[_Origin]) -> str:
        """What of the axes differs, in words; the shapes stand before it."""
        lifts = self.layouts[0].lifts
        at, there = ({o[1]: i for i, o in enumerate(axes) if o[1] is not None}
                     for axes in (ours, others))  # fmt: skip
        parts = [
            f"the axis of {lifts[index].label} is axis {self.both(at[index], there[index])}"
            for index in at
            if index in there and at[index] != there[index]
        ]
        if not parts and [o[0] for o in ours] == [o[0] for o in others]:
            parts = ["the sizes agree, and not where they come from"]
        return "; " + ", ".join(parts) if parts else ""


# --- small pieces -------------------------------------------------------------

_Key = tuple[str, Path, str]
_Origin = tuple[int, int | None]
_SPLIT = {True: "split", False: "not split", None: "not drawn from"}


def _key(v: VariableLayout) -> _Key:
    return v.collection, v.path, v.leaf


def _name(v: VariableLayout) -> str:
    return f"{v.collection}/{v.name}"


def _place(lift: LiftNode) -> str:
    return "/" + "/".join(lift.path)


def _called(lift: LiftNode) -> str:
    return f"{lift.kind} at {_place(lift)}"


def _said(v: VariableLayout) -> str:
    return f"{v.dtype} {_shape(v.axes)}"


def _shape(axes: Sequence[Axis]) -> str:
    return "(" + ", ".join(f"{x.label} {x.size}" if x.label else f"{x.size}" for x in axes) + ")"


def _worded(what: str, value: object) -> str:
    if what == "size":
        return "nothing" if value is None else f"{value} times"
    if what == "carry":
        return "has a carry" if value else "has no carry"
    if what == "around":
        return "no other" if value is None else str(value)
    if what == "details":
        return ", ".join(f"{k}={v}" for k, v in dict(value).items()) or "no options"  # type: ignore[call-overload]
    return repr(value)


def _role(along: Along | None, lift: LiftNode) -> str:
    return f"not in {lift.label}" if along is None else f"{along.role} along {lift.label}"


def _own_names(v: VariableLayout) -> list[str | None]:
    return [axis.label for axis in v.axes if axis.lift is None]


def _origins(
    v: VariableLayout, explained: set[int], known: Callable[[int], int | None]
) -> list[_Origin]:
    """Size and origin of each axis, without those that another difference has explained."""
    found: list[_Origin] = []
    for axis in v.axes:
        if axis.lift is None:
            found.append((axis.size, None))
            continue
        index = known(axis.lift)
        # An axis of a lift that only one of the two has is said with that lift.
        if index is not None and index not in explained:
            found.append((axis.size, index))
    return found


def _within(path: Path, prefix: Path) -> bool:
    return path[: len(prefix)] == prefix


def _moved(path: Path, paths: Mapping[Path, Path]) -> Path:
    """A path of the second, as the first calls it."""
    for end in range(len(path), 0, -1):
        if path[:end] in paths:
            return paths[path[:end]] + path[end:]
    return path


def _subtrees(
    keys: Iterable[_Key], every: Mapping[_Key, VariableLayout], exact: bool
) -> dict[object, list[Path]]:
    """By what is in it, the subtrees all of whose variables are among ``keys``, outermost only."""
    mine = list(keys)
    wanted = set(mine)
    kept: set[Path] = set()  # paths above something that both have
    for key in every:
        if key not in wanted:
            kept |= {key[1][:end] for end in range(len(key[1]))}
    tops: dict[Path, list[_Key]] = {}
    for key in mine:
        path = key[1]
        end = next((n for n in range(1, len(path)) if path[:n] not in kept), len(path))
        tops.setdefault(path[:end], []).append(key)
    found: dict[object, list[Path]] = {}
    for top, members in tops.items():
        alone = any(len(path) == len(top) for _, path, _ in members)
        if alone and not exact:
            continue  # a single array is known by its shape or not at all
        inside = frozenset(
            (c, path[len(top) :], leaf, *((every[c, path, leaf].shape,) if exact else ()))
            for c, path, leaf in members
        )
        found.setdefault((top[:-1], inside), []).append(top)
    return found
