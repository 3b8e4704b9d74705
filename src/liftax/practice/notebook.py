"""The practice in a notebook: what a cell defines, graded in place."""

from __future__ import annotations

import inspect
import linecache
import types
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .exercises import Exercise, find
from .grade import Grader
from .places import DEFAULT, Place
from .shown import as_html, style
from .verdict import Verdict


@dataclass(frozen=True)
class Checked:
    """A verdict, drawn by a notebook and printed as text elsewhere."""

    verdict: Verdict

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.verdict.passed

    def __repr__(self) -> str:
        return "\n".join(self.verdict.lines())

    def _repr_html_(self) -> str:
        return f"<style>{style()}</style>{as_html(self.verdict)}"


def check(
    exercise: str | int, *answers: object, folder: str | Path = DEFAULT, **named: object
) -> Checked:
    """Grades what a cell defines, and notes in the shared progress what is solved.

    The answer runs in this process, where a notebook can stop it; the command `liftax practice`
    runs answers in processes of their own.

    Args:
      exercise: its name or number.
      *answers: what the exercise asks for, in its order; most ask for one thing.
      folder: where the progress is kept, beside the files of `liftax practice`.
      **named: the same by name.

    Returns:
      The verdict: a notebook draws it, `.passed` and `.verdict` hold it.

    Raises:
      NoSuchExerciseError: no exercise has that name or number.
      TypeError: there are more answers than the exercise asks for.

    Example:
      >>> from liftax.practice import check
      >>> check("read-a-layout", {"params/up/kernel": (6, 3, 4, 16)})
      ✗ read-a-layout: the variables do not lie where they should
        SHAPES has no entry 'params/up/bias': a bias has no axis for the input; ...
    """
    found = find(exercise)
    grader = _grader(found)
    names = [part.name for part in grader.grading.parts]
    if len(answers) > len(names):
        raise TypeError(f"{found.name} asks for {', '.join(names)}; found {len(answers)} answers")
    # Fewer will do: the grader names what is missing.
    given = dict(zip(names, answers, strict=False)) | named
    # A grader reads a module's names, as a file has them.
    cell = types.ModuleType("cell")
    vars(cell).update(given)
    path, source = _origin(list(given.values()))
    verdict = grader.checked(cell, source, path)
    if verdict.passed:
        Place(folder).solve(found)
    return Checked(verdict)


@cache
def _grader(exercise: Exercise) -> Grader:
    return Grader(exercise)


def _origin(answers: list[object]) -> tuple[str, str]:
    """The file, or the cell, that the answers came from, and its text."""
    for answer in answers:
        try:
            path = inspect.getfile(answer)  # type: ignore[arg-type]
        except (TypeError, OSError):  # a value, or a class of a cell
            code = getattr(getattr(answer, "__call__", None), "__code__", None)  # noqa: B004
            path = code.co_filename if code else ""
        if path:
            return path, "".join(linecache.getlines(path))
    return "", ""
