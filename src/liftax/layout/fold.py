"""Many alike as one: what differs only in the numbers inside its name.

A model with a hundred unrolled layers has thousands of variables that say the same, and a hundred
subtrees of modules and lifts. `fold` groups variables whose paths agree up to the numbers and whose
shape, dtype and lifts agree entirely; `alike_lifts` tells which lifts are drawn as one.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from .data import Finding, LayoutData, VariableLayout
from .grouped import grouped

_NUMBER = re.compile(r"\d+")
ENOUGH = 3
"""Fewer than this stay apart."""


@dataclass(frozen=True)
class Fold:
    """Variables alike, the first standing for all, under a name such as `Block_{0…9}/kernel`."""

    name: str
    members: tuple[VariableLayout, ...]

    @property
    def first(self) -> VariableLayout:
        return self.members[0]

    @property
    def bytes(self) -> int:
        return sum(v.bytes for v in self.members)

    def __len__(self) -> int:
        return len(self.members)


def fold(
    variables: Sequence[VariableLayout],
    enough: int = ENOUGH,
    same: Mapping[int, int] | None = None,
) -> list[Fold]:
    """Groups of alike variables, in order of first appearance; fewer than ``enough`` stay apart.

    Args:
      variables: the variables.
      enough: how many are folded.
      same: lift -> the one that stands for it.
    """
    one = same or {}
    groups: dict[Hashable, list[VariableLayout]] = {}
    keys = [
        (
            # All that is shown of a variable: a row speaks for each of its members.
            v.collection,
            numberless(v.name),
            v.shape,
            v.dtype,
            tuple(
                (a.label, one.get(a.lift, a.lift) if a.lift is not None else None) for a in v.axes
            ),
            tuple((one.get(a.lift, a.lift), a.role, a.axis, a.split) for a in v.along),
        )
        for v in variables
    ]
    for key, v in zip(keys, variables, strict=True):
        groups.setdefault(key, []).append(v)
    folds: list[Fold] = []
    for key, v in zip(keys, variables, strict=True):
        group = groups[key]
        # Two rows are read faster than a row that stands for two.
        if len(group) < enough:
            folds.append(Fold(v.name, (v,)))
        elif v is group[0]:
            folds.append(Fold(common_name([v.name for v in group]), tuple(group)))
    return folds


@dataclass(frozen=True)
class AlikeLifts:
    """Which lifts are drawn as one.

    Attributes:
      same: lift -> the one that stands for it, for all of them.
      members: a lift that stands for others beside it -> all of these, itself first.
    """

    same: Mapping[int, int]
    members: Mapping[int, tuple[int, ...]]

    def drawn(self, layout: LayoutData, parent: int | None) -> tuple[int, ...]:
        """The lifts directly inside another that are drawn."""
        return tuple(i for i in layout.children.get(parent, ()) if self.same[i] == i)

    def path(self, layout: LayoutData, index: int) -> str:
        """The path of a lift, with those of all that it stands for."""
        paths = ["/".join(layout.lifts[i].path) for i in self.members.get(index, (index,))]
        return common_name(paths) if len({numberless(p) for p in paths}) == 1 else paths[0]


def alike_lifts(layout: LayoutData) -> AlikeLifts:
    """Lifts beside each other that are the same, with all that is inside of them."""
    # A number for each kind: keys that hold keys would grow with the depth of the nest.
    kinds: dict[Hashable, int] = {}
    kind: dict[int, int] = {}
    for lift in reversed(layout.lifts):  # those inside come after the one around them
        variables = tuple(
            (v.collection, numberless(v.name), v.shape, v.dtype)
            for v in layout.inside.get(lift.index, ())
        )
        key = (
            # Paths without numbers, and all else as it is; those inside by their kinds, which are
            # known.
            lift.title,
            lift.axis_name,
            lift.file_line,
            lift.made_at,
            lift.carry,
            numberless("/".join(lift.path)),
            tuple(lift.roles.items()),
            tuple(lift.splits.items()),
            (lift.takes, lift.carries, lift.gives),
            variables,
            tuple(kind[i] for i in layout.children.get(lift.index, ())),
        )
        kind[lift.index] = kinds.setdefault(key, len(kinds))
    same: dict[int, int] = {}
    members: dict[int, tuple[int, ...]] = {}
    todo: list[int | None] = [None]
    for parent in todo:  # which grows: those inside come after the one around them
        for group in grouped(layout.children.get(parent, ()), kind.__getitem__).values():
            kept = group[:1] if len(group) >= ENOUGH else group
            same.update((index, index) for index in kept)
            todo += kept
            if len(group) >= ENOUGH:
                members[group[0]] = tuple(group)
    for first, all_of_it in reversed(members.items()):  # those inside of the first come before it
        for index in all_of_it[1:]:
            _stand(index, first, same, layout)
    return AlikeLifts(same, members)


def _stand(index: int, other: int, same: dict[int, int], layout: LayoutData) -> None:
    """Lets ``other`` stand for a lift, and what is in the one for what is in the other."""
    same[index] = other
    inside = layout.children.get(index, ()), layout.children.get(other, ())
    for one, two in zip(*inside, strict=True):
        _stand(one, same.get(two, two), same, layout)


def fold_findings(layout: LayoutData, lifts: AlikeLifts) -> list[tuple[Finding, int]]:
    """The findings, each with how many there are of its kind: of alike lifts, one."""
    counts: dict[Hashable, int] = {}
    first: dict[Hashable, Finding] = {}
    for finding in layout.findings:
        # Lifts that are drawn as one have findings that are told as one.
        where = tuple(lifts.same.get(i, i) for i in finding.lifts)
        key = (finding.code, finding.severity, numberless(finding.message), where)
        counts[key] = counts.get(key, 0) + 1
        first.setdefault(key, finding)
    return [(finding, counts[key]) for key, finding in first.items()]


def numberless(name: str) -> str:
    """What names that agree up to their numbers have in common.

    >>> numberless("Block_12/Dense_0")
    'Block_#/Dense_#'
    """
    return _NUMBER.sub("#", name)


def common_name(names: Sequence[str]) -> str:
    """One name for names that agree up to their numbers.

    >>> common_name(["Block_0/Dense_0/kernel", "Block_1/Dense_0/kernel", "Block_2/Dense_0/kernel"])
    'Block_{0…2}/Dense_0/kernel'
    """
    texts = _NUMBER.split(names[0])
    columns = zip(*(_NUMBER.findall(name) for name in names), strict=True)
    parts = [texts[0]]
    for text, column in zip(texts[1:], columns, strict=True):
        parts += [_span(sorted({int(n) for n in column})), text]
    return "".join(parts)


def _span(numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(numbers[0])
    if len(numbers) == 2:
        return f"{{{numbers[0]},{numbers[1]}}}"
    gapless = numbers[-1] - numbers[0] == len(numbers) - 1
    return f"{{{numbers[0]}{'…' if gapless else ',…,'}{numbers[-1]}}}"
