"""Many alike as one: rows that differ only in the numbers inside their names.

A model with a hundred unrolled layers has thousands of variables that say the same. `fold` groups
those whose paths agree up to the numbers and whose shape, dtype and lifts agree entirely.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .data import VariableLayout

_NUMBER = re.compile(r"\d+")


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


def fold(variables: Sequence[VariableLayout], enough: int = 3) -> list[Fold]:
    """Groups of alike variables, in order of first appearance; fewer than `enough` stay apart."""
    groups: dict[tuple[object, ...], list[VariableLayout]] = {}
    keys = [
        (v.collection, numberless(v.name), v.shape, v.dtype, v.axes, v.along) for v in variables
    ]
    for key, v in zip(keys, variables, strict=True):
        groups.setdefault(key, []).append(v)
    folds: list[Fold] = []
    for key, v in zip(keys, variables, strict=True):
        group = groups[key]
        if len(group) < enough:
            folds.append(Fold(v.name, (v,)))
        elif v is group[0]:
            folds.append(Fold(common_name([v.name for v in group]), tuple(group)))
    return folds


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
