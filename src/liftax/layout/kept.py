"""What a backward pass keeps, module by module, as the table, the page and a notebook show it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from .data import Residual, Residuals
from .fold import ENOUGH, common_name, numberless
from .grouped import grouped
from .wording import human_bytes


@dataclass(frozen=True)
class Kept:
    """What one module keeps, or each of several alike, under a name such as `Block_{0…9}/Dense_0`.

    Attributes:
      name: the path; empty for the model itself.
      times: how many it stands for.
      bytes, cheap: of all of them: what is kept, and what of it is cheap to compute again.
      made_by: the operations, as in `dot_general; cheap: exp, mul ×2`.
    """

    name: str
    times: int
    bytes: int
    cheap: int
    made_by: str

    @property
    def said(self) -> str:
        """`3.0 KiB, 1.0 KiB of it cheap: dot_general; cheap: exp`."""
        return f"{human_bytes(self.bytes)}, {human_bytes(self.cheap)} of it cheap: {self.made_by}"


def by_module(kept: Residuals) -> list[Kept]:
    """The modules in the order in which they run, alike ones together."""
    modules = grouped(kept.rows, lambda row: row.module)
    found = []
    for group in grouped(modules.items(), _like).values():
        apart = [[one] for one in group] if len(group) < ENOUGH else [group]
        found += [_together(alike) for alike in apart]
    return found


def _like(module: tuple[str, list[Residual]]) -> Hashable:
    """Equal for modules that keep the same, in the same order."""
    name, rows = module
    return numberless(name), tuple((row.operation, row.shape, row.dtype) for row in rows)


def _together(alike: list[tuple[str, list[Residual]]]) -> Kept:
    # Bytes of all, operations of one: ten times the same list would say no more.
    rows = [row for _, some in alike for row in some]
    name = common_name([name for name, _ in alike])
    cheap = sum(row.bytes for row in rows if not row.dear)
    return Kept(name, len(alike), sum(r.bytes for r in rows), cheap, operations(alike[0][1]))


def operations(rows: Iterable[Residual]) -> str:
    """What made some residuals: `dot_general ×2; cheap: exp, mul`."""
    rows = list(rows)
    parts = []
    for dear, word in ((True, ""), (False, "cheap: ")):
        counts = Counter(row.operation for row in rows if row.dear is dear)
        if counts:
            told = (f"{name} ×{n}" if n > 1 else name for name, n in counts.items())
            parts.append(word + ", ".join(told))
    return "; ".join(parts)
