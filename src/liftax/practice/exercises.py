"""The exercises: a folder each, `exercises/NN-name`, found by number or name.

A folder holds `page.md`, `exercise.py` (with holes), `goal.py` (the solution, and the reference),
`hints.md`, `grading.py` (what a right answer is), `wrong/*.py` and perhaps `right/*.py` (answers
that the tests hold against the grader). Adding an exercise is adding a folder.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LiftaxError
from ..words import did_you_mean

FOLDER = Path(__file__).parent / "exercises"


class NoSuchExerciseError(LiftaxError, LookupError):
    """A name or a number that no exercise has."""


@dataclass(frozen=True)
class Exercise:
    """One exercise, by the folder that holds it.

    Example:
      >>> find("scan-depth").number, find(4).name
      (4, 'scan-depth')
    """

    folder: Path

    @property
    def number(self) -> int:
        """Its place in the order."""
        return int(self.folder.name.partition("-")[0])

    @property
    def name(self) -> str:
        """Its name, by which progress is kept."""
        return self.folder.name.partition("-")[2]

    @property
    def file_name(self) -> str:
        """The name of the learner's file: `04_scan_depth.py`."""
        return self.folder.name.replace("-", "_") + ".py"

    def text(self, name: str) -> str:
        """One of the files of the folder."""
        return (self.folder / name).read_text(encoding="utf-8")

    @property
    def title(self) -> str:
        """The heading of its page."""
        return self.page.splitlines()[0].removeprefix("# ")

    @property
    def page(self) -> str:
        """The page, in Markdown."""
        return self.text("page.md")

    @property
    def start(self) -> str:
        """The file that the learner begins with."""
        return self.text("exercise.py")

    @property
    def solution(self) -> str:
        """A right answer."""
        return self.text("goal.py")

    @functools.cached_property
    def hints(self) -> tuple[str, ...]:
        """The hints in Markdown, from a question to the solution."""
        parts = re.split(r"^## .*$", self.text("hints.md"), flags=re.MULTILINE)[1:]
        last = f"The solution:\n\n```python\n{self.solution.rstrip()}\n```"
        return (*(part.strip() for part in parts), last)


@functools.cache
def exercises() -> tuple[Exercise, ...]:
    """All exercises in order."""
    folders = (path for path in FOLDER.iterdir() if re.match(r"\d\d-", path.name))
    return tuple(Exercise(path) for path in sorted(folders, key=lambda path: path.name))


def find(which: str | int) -> Exercise:
    """The exercise of a number (`4`, `"04"`) or a name (`"scan-depth"`, `"04-scan-depth"`).

    The name of a learner's file will do too.

    Raises:
      NoSuchExerciseError: there is none; the message says which are near.
    """
    text = str(which).strip()
    stem = text.removesuffix(".py").replace("_", "-").rpartition("/")[2]
    for each in exercises():
        if stem in (each.name, each.folder.name) or (stem.isdecimal() and int(stem) == each.number):
            return each
    hint = did_you_mean(stem, [each.name for each in exercises()])
    raise NoSuchExerciseError(
        f"there is no exercise {text!r}, of 1 to {len(exercises())} or by name{hint}"
    )


def first_unsolved(solved: Sequence[str]) -> Exercise | None:
    """The first exercise whose name is not among those solved."""
    return next((each for each in exercises() if each.name not in solved), None)
