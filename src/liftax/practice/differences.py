"""Two layouts compared: which variables lie elsewhere than the goal's, in words, and why.

What a model calls its submodules is its own affair, as long as the variables are the same: those
that have no namesake are paired in order with variables of the same kind. Nor does it matter here
by which lifts an axis came to be, which `nn.layout_diff` tells: more than one answer is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..layout.data import Along, LayoutData, LiftNode, VariableLayout
from .verdict import Difference

Pair = tuple[VariableLayout | None, VariableLayout | None]


def paired(yours: LayoutData, goal: LayoutData) -> list[Pair]:
    """Each variable of one layout with its counterpart in the other; `None` where there is none."""
    left = {(v.collection, v.name): v for v in yours.variables}
    pairs: list[Pair] = []
    lost: list[VariableLayout] = []
    for v in goal.variables:
        mine = left.pop((v.collection, v.name), None)
        if mine is None:
            lost.append(v)
        else:
            pairs.append((mine, v))
    # What has no namesake is paired by what it is in its layer, in order.
    for v in lost:
        key = next((k for k, mine in left.items() if _kind(mine) == _kind(v)), None)
        pairs.append((left.pop(key) if key is not None else None, v))
    return pairs + [(mine, None) for mine in left.values()]


def _kind(v: VariableLayout) -> tuple[str, str, str, str | None]:
    return v.collection, v.path[-1] if v.path else "", v.leaf, v.layer


def differences(
    yours: LayoutData,
    goal: LayoutData,
    sizes: Mapping[str, int] | None = None,
    advice: Mapping[str, str] | None = None,
    *,
    nest: bool = False,
    names: bool = False,
) -> list[Difference]:
    """What differs, the telling differences first; empty where all variables lie where they should.

    Args:
      yours: the learner's layout.
      goal: the reference.
      sizes: names for axes, by their size: `{"batch": 32}` makes `batch 32` of a vmap's axis.
      advice: sentences in place of the general ones, by cause: `"extra vmap params"`.
      nest: whether the lifts must also stand in the same order.
      names: whether submodules must have the same names.
    """
    words = _Words(sizes or {}, advice or {}, names)
    found = [
        difference
        for mine, theirs in paired(yours, goal)
        if (difference := words.of(_Side(yours, mine), _Side(goal, theirs))) is not None
    ]
    # Every bias repeats what its kernel says; params say most.
    found.sort(key=lambda d: (not (d.yours and d.goal), not d.variable.startswith("params/")))
    if nest and not found and _nest(yours) != _nest(goal):
        why = words.advice.get("nest", "the same variables, and another order of the lifts")
        found.append(Difference("the nest of lifts", _nest_text(yours), _nest_text(goal), why))
    return found


@dataclass(frozen=True)
class _Side:
    """One variable in its layout; `None` where this side lacks it."""

    layout: LayoutData
    variable: VariableLayout | None

    def stacked(self) -> list[tuple[LiftNode, Along]]:
        """The lifts that gave it an axis, in the order of its axes."""
        v = self.variable
        if v is None:
            return []
        found = [(self.layout.lifts[a.lift], a) for a in v.along if a.role == "stacked"]
        return sorted(found, key=lambda pair: pair[1].axis or 0)

    def others(self) -> Iterator[tuple[LiftNode, Along]]:
        """The lifts that gave it none."""
        for a in self.variable.along if self.variable else ():
            if a.role != "stacked":
                yield self.layout.lifts[a.lift], a


class _Words:
    def __init__(
        self, sizes: Mapping[str, int], advice: Mapping[str, str], names_count: bool
    ) -> None:
        self.names_count = names_count
        self.names = {size: name for name, size in sizes.items()}
        self.advice = advice

    def of(self, yours: _Side, goal: _Side) -> Difference | None:
        mine, theirs = yours.variable, goal.variable
        if mine is None or theirs is None:
            return self.alone(yours, goal)
        # The layer's own sizes are words too many unless they are what differs.
        own = _own_shape(mine) != _own_shape(theirs)
        texts = self.axes(mine, own), self.axes(theirs, own)
        name = f"{theirs.collection}/{theirs.name}"
        # From here on the first that differs speaks: what comes after mostly follows from it.
        if self.names_count and mine.name != theirs.name:
            called = f"is called {mine.collection}/{mine.name}"
            return Difference(name, called, name, "look at the names of the submodules")
        if mine.dtype != theirs.dtype:
            why = "look at dtype and param_dtype of the layer"
            return Difference(name, f"{texts[0]} {mine.dtype}", f"{texts[1]} {theirs.dtype}", why)
        if _axes(mine) != _axes(theirs):
            return Difference(name, *texts, self.why(yours, goal))
        # Last, the keys: the variables lie where they should and hold other numbers.
        for size, (kind, split) in _splits(yours).items():
            _, asked = _splits(goal).get(size, (kind, split))
            if split != asked:
                said = self.key_text(size, split), self.key_text(size, asked)
                why = self.split(kind, split, theirs.collection)
                return Difference(name, f"{texts[0]}, {said[0]}", f"{texts[1]}, {said[1]}", why)
        return None

    def alone(self, yours: _Side, goal: _Side) -> Difference:
        v = yours.variable or goal.variable
        assert v is not None
        name, text = f"{v.collection}/{v.name}", self.axes(v, True)
        if goal.variable is None:
            why = self.said("extra", "", v.collection, "the goal has no such variable")
            return Difference(name, text, "", why)
        there = any(w.collection == v.collection for w in yours.layout.variables)
        general = (
            "look for a layer that is missing, or has another name"
            if there
            else f"nothing of the collection {v.collection!r} came out"
        )
        return Difference(name, "", text, self.said("missing", "", v.collection, general))

    def axes(self, v: VariableLayout, own: bool) -> str:
        """`[batch 32, layers 12, in, out]`, the layer's own sizes too where ``own``."""
        parts = []
        for axis in v.axes:
            if axis.lift is not None:
                name = self.names.get(axis.size) or axis.label or "axis"
                parts.append(f"{name} {axis.size}")
            elif own or not axis.label:
                parts.append(f"{axis.label or ''} {axis.size}".strip())
            else:
                parts.append(axis.label)
        return f"[{', '.join(parts)}]"

    def why(self, yours: _Side, goal: _Side) -> str:
        """The lift that is to blame for an axis too many, too few, or elsewhere."""
        assert goal.variable is not None
        collection = goal.variable.collection
        mine, theirs = yours.stacked(), goal.stacked()
        # As many lifts of the same kinds: one of them runs another number of times.
        for (lift, _), (asked, _) in zip(mine, theirs, strict=False):
            if (lift.kind, len(mine)) == (asked.kind, len(theirs)) and lift.size != asked.size:
                general = (
                    f"the {lift.kind} runs {lift.size} times, and is to run {asked.size} times"
                )
                return self.said("size", lift.kind, collection, general)
        # One too many, which is known by its size: more than one kind of lift gives the same axis.
        wanted = [lift.size for lift, _ in theirs]
        for lift, _ in mine:
            if lift.size not in wanted:
                owner = "example" if lift.kind == "vmap" else "iteration"
                whose = "weights" if collection == "params" else collection
                general = (
                    f"the {lift.kind} gave every {owner} {whose} of its own; "
                    f"look at variable_axes of the {lift.kind}"
                )
                return self.said("extra", lift.kind, collection, general)
        # Or one too few.
        had = [lift.size for lift, _ in mine]
        for lift, _ in theirs:
            if lift.size not in had:
                return self.missing(lift, yours, collection)
        # The same sizes, so another order of the lifts or another place in the array.
        for (ours, one), (asked, other) in zip(mine, theirs, strict=True):
            if ours.size != asked.size or one.axis != other.axis:
                general = (
                    f"the axis of the {ours.kind} stands elsewhere; look at the number that "
                    f"variable_axes of the {ours.kind} has, and at which lift is outside"
                )
                return self.said("order", ours.kind, collection, general)
        return self.said(
            "own", "", collection, "the layer itself has another shape; look at its features"
        )

    def missing(self, lift: LiftNode, yours: _Side, collection: str) -> str:
        kind, whose = lift.kind, "weights" if collection == "params" else collection
        # The lift may well be there, and give the collection no axis.
        for mine, along in yours.others():
            if mine.size == lift.size:
                how = "hands one set on" if along.role == "carried" else "shares one set"
                general = (
                    f"the {mine.kind} {how} where each iteration is to have {whose} of its own; "
                    f"look at variable_axes of the {mine.kind}"
                )
                return self.said("missing", mine.kind, collection, general)
        general = f"no lift of yours gives {whose} of its own to each of the {lift.size}"
        return self.said("missing", kind, collection, general)

    def key_text(self, size: int | None, split: bool | None) -> str:
        axis = self.names.get(size or 0, f"axis of {size}")
        return f"{axis}: a key each" if split else f"{axis}: one key for all"

    def split(self, kind: str, split: bool | None, collection: str) -> str:
        general = (
            f"the {kind} splits a key that is to be one; look at split_rngs of the {kind}"
            if split
            else f"the {kind} draws the same key every time, so all start out identical; "
            f"look at split_rngs of the {kind}"
        )
        return self.said("split", kind, collection, general)

    def said(self, what: str, kind: str, collection: str, general: str) -> str:
        return self.advice.get(" ".join(filter(None, (what, kind, collection))), general)


def _axes(v: VariableLayout) -> tuple[tuple[int, bool], ...]:
    return tuple((axis.size, axis.lift is not None) for axis in v.axes)


def _own_shape(v: VariableLayout) -> tuple[int, ...]:
    return tuple(axis.size for axis in v.axes if axis.lift is None)


def _splits(side: _Side) -> dict[int | None, tuple[str, bool | None]]:
    """For each lift that gave an axis, by size: its kind, and whether each slice has a key."""
    return {lift.size: (lift.kind, a.split) for lift, a in side.stacked() if a.split is not None}


def _nest(layout: LayoutData) -> list[tuple[str, int | None]]:
    # A lift without an axis, as remat, may stand anywhere in a right answer.
    return [(lift.kind, lift.size) for lift in layout.lifts if lift.size is not None]


def _nest_text(layout: LayoutData) -> str:
    nest: Sequence[tuple[str, int | None]] = _nest(layout)
    return " over ".join(f"{kind} × {size}" for kind, size in nest) or "no lift with an axis"
