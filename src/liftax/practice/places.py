"""The learner's folder: a file for each exercise, and the progress; nothing there is ever lost."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..files import replacing
from .exercises import Exercise, exercises, first_unsolved

DEFAULT = Path("liftax-practice")
PROGRESS = "progress.json"


@dataclass
class Progress:
    """What has been solved, how many hints have been read, where the learner is."""

    solved: list[str] = field(default_factory=list)
    hints: dict[str, int] = field(default_factory=dict)
    at: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Plain data, ready for JSON."""
        return {"solved": self.solved, "hints": self.hints, "at": self.at}

    @classmethod
    def from_dict(cls, plain: object) -> Progress:
        """What `to_dict` wrote.

        Raises:
          ValueError: it is something else.
        """
        if not isinstance(plain, Mapping):
            raise ValueError("progress is a mapping")
        solved, hints, at = plain.get("solved", []), plain.get("hints", {}), plain.get("at")
        whole = (
            isinstance(solved, list)
            and all(isinstance(name, str) for name in solved)
            and isinstance(hints, dict)
            and all(isinstance(n, int) for n in hints.values())
            and isinstance(at, (str, type(None)))
        )
        if not whole:
            raise ValueError("progress of another form")
        return cls(list(solved), dict(hints), at)


class Place:
    """A folder with the learner's files.

    Terminal and browser may be at work in it at the same time: each change of the progress is read,
    changed and written whole.

    Example:
      >>> import tempfile
      >>> place = Place(Path(tempfile.mkdtemp(), "liftax-practice"))
      >>> place.lay_out()
      20
      >>> place.lay_out()  # what is there stays
      0
    """

    def __init__(self, folder: str | os.PathLike[str] = DEFAULT) -> None:
        self.folder = Path(folder)
        self.said: list[str] = []  # what the learner must hear: a file that was set aside

    def lay_out(self) -> int:
        """Copies the files that are not there yet, and says how many; never over a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        count = 0
        for exercise in exercises():
            path = self.path(exercise)
            # A link that leads nowhere is a file of the learner's as well.
            if not os.path.lexists(path):
                self.write(exercise, exercise.start)
                count += 1
        return count

    def path(self, exercise: Exercise) -> Path:
        """The learner's file."""
        return self.folder / exercise.file_name

    def read(self, exercise: Exercise) -> str:
        """The learner's text; as shipped where the file is gone."""
        try:
            return self.path(exercise).read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return exercise.start

    def write(self, exercise: Exercise, text: str) -> None:
        """Replaces the learner's file, whole or not at all."""
        with replacing(self.path(exercise)) as (file, _):
            file.write(text.encode())

    def reset(self, exercise: Exercise) -> Path | None:
        """Puts the file back as shipped; what was in it is kept, under the name returned."""
        kept = None
        if self.path(exercise).exists() and self.read(exercise) != exercise.start:
            kept = self._aside(self.path(exercise))
        self.write(exercise, exercise.start)
        return kept

    # --- progress -------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """The progress as the file has it; a file that cannot be read is set aside, with a line."""
        path = self.folder / PROGRESS
        try:
            return Progress.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return Progress()
        except (ValueError, RecursionError):
            kept = self._aside(path)
            self.said.append(f"{path} could not be read; it was set aside as {kept.name}")
            return Progress()

    def solve(self, exercise: Exercise) -> None:
        """Notes that an exercise is solved."""
        with self._changed() as progress:
            if exercise.name not in progress.solved:
                progress.solved.append(exercise.name)

    def take_hint(self, exercise: Exercise) -> int:
        """Counts one more hint as read, and says how many are."""
        with self._changed() as progress:
            count = min(progress.hints.get(exercise.name, 0) + 1, len(exercise.hints))
            progress.hints[exercise.name] = count
        return count

    def go_to(self, exercise: Exercise) -> None:
        """Notes where the learner is."""
        with self._changed() as progress:
            progress.at = exercise.name

    def may_see_solution(self, exercise: Exercise) -> bool:
        """After passing, or after all hints."""
        progress = self.progress
        # The last hint is the solution itself.
        read = progress.hints.get(exercise.name, 0) >= len(exercise.hints) - 1
        return exercise.name in progress.solved or read

    def current(self) -> Exercise:
        """The first exercise that is not solved, or the last one."""
        return first_unsolved(self.progress.solved) or exercises()[-1]

    @contextlib.contextmanager
    def _changed(self) -> Iterator[Progress]:
        """The progress, to be changed: what the other program has noted meanwhile stays."""
        self.folder.mkdir(parents=True, exist_ok=True)
        # A terminal and a page may be open at once: each reads what the other wrote, in turn.
        with (self.folder / ".progress.lock").open("wb") as turn:
            with contextlib.suppress(ModuleNotFoundError):  # where there are no such locks
                import fcntl

                fcntl.flock(turn, fcntl.LOCK_EX)
            progress = self.progress
            yield progress
            with replacing(self.folder / PROGRESS) as (file, _):
                file.write(json.dumps(progress.to_dict(), indent=1).encode())

    def _aside(self, path: Path) -> Path:
        """Moves a file to a name of its own beside it."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for i in range(1000):
            kept = path.with_name(f"{path.stem}.{stamp}{f'-{i}' if i else ''}{path.suffix}.kept")
            if not os.path.lexists(kept):
                os.replace(path, kept)
                return kept
        raise FileExistsError(path)
