"""What the grader says of one answer: plain data, for terminal, page, notebook and JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

STAGES = ("runs", "layout", "keys", "numbers", "budget")
"""In this order an answer is judged; the first stage that fails speaks."""

STAGE_WORDS: dict[str, str] = {
    "runs": "it does not run",
    "layout": "the variables do not lie where they should",
    "keys": "the random keys are not those asked for",
    "numbers": "the numbers are not those of the reference",
    "budget": "it costs more than the exercise allows",
    "passed": "passed",
}


@dataclass(frozen=True)
class Difference:
    """One variable whose place is not the goal's: both places in words, and why.

    `yours` or `goal` is empty where that side has no such variable.
    """

    variable: str
    yours: str
    goal: str
    why: str = ""

    def __str__(self) -> str:
        sides = f"yours {self.yours or 'has none'}, goal {self.goal or 'has none'}"
        return f"{self.variable}: {sides}" + (f": {self.why}" if self.why else "")


@dataclass(frozen=True)
class Verdict:
    """One answer, judged.

    `stage` is one of `STAGES`, or `"passed"`. `said` is the sentence that matters, `details` more
    of the same; `line` and `source` are the learner's line where one is to blame; `code` has a
    page that `liftax explain` shows. `yours` and `goal` are the two layouts, as `Layout.to_dict`
    writes them, where they came to be.

    Example:
      >>> verdict = Verdict("scan-depth", "layout", "kernel: yours [in], goal [layers 3, in]")
      >>> verdict.passed, Verdict.from_dict(verdict.to_dict()) == verdict
      (False, True)
    """

    exercise: str
    stage: str
    said: str
    details: tuple[str, ...] = ()
    differences: tuple[Difference, ...] = ()
    code: str | None = None
    line: int | None = None
    source: str = ""
    remarks: tuple[str, ...] = ()
    printed: str = ""
    # Layouts as plain data: a verdict comes from another process, as a line of JSON.
    yours: Mapping[str, Any] | None = None
    goal: Mapping[str, Any] | None = None
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.stage == "passed"

    @property
    def title(self) -> str:
        """What happened, in a few words."""
        return STAGE_WORDS[self.stage]

    def lines(self) -> list[str]:
        """The verdict as lines of plain text."""
        mark = "✓" if self.passed else "✗"
        lines = [f"{mark} {self.exercise}: {self.title}"]
        if self.line is not None:
            lines.append(f"  line {self.line}: {self.source.strip()}")
        lines += [f"  {line}" for line in self.said.splitlines()]
        lines += [f"  {line}" for detail in self.details for line in detail.splitlines()]
        if self.code:
            lines.append(
                f"  {self.code}: `liftax explain {self.code}` shows an example and the fix"
            )
        if self.printed:
            lines += ["  it printed:", *(f"  | {line}" for line in self.printed.splitlines())]
        return lines + [f"  remark: {remark}" for remark in self.remarks]

    def replace(self, **changes: Any) -> Self:
        """The verdict with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, ready for JSON; `from_dict` reads them back."""
        # By hand and not by `asdict`, which would copy both layouts, already plain.
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain["differences"] = [dataclasses.asdict(d) for d in self.differences]
        return {k: list(v) if isinstance(v, tuple) else v for k, v in plain.items()}

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> Self:
        """The verdict that `to_dict` wrote."""
        # JSON has lists where the verdict has tuples.
        fixed: dict[str, Any] = {k: tuple(plain[k]) for k in ("details", "remarks")}
        fixed["differences"] = tuple(Difference(**d) for d in plain["differences"])
        return cls(**{**plain, **fixed})


class Failed(Exception):
    """Raised by a stage of the grader, with the verdict's fields: the first that fails speaks."""

    def __init__(self, stage: str, said: str, **fields: Any) -> None:
        super().__init__(said)
        self.stage, self.said, self.fields = stage, said, fields
