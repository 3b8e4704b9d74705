"""Checkpoints of a run: written by all processes while they train, whole or not there.

Orbax writes a checkpoint beside the training and gives it its name when all parts are there. What
happens to its files later Orbax does not know, so a list of them and of their sizes is written when
a checkpoint is complete: one that does not agree with its list is passed over.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .. import files
from ..installed import needed
from .settings import TrainingError


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield str(path.relative_to(folder)), path.stat().st_size


def whole_steps(folder: Path) -> list[int]:
    """The steps whose checkpoints are whole, the last one first."""
    found = []
    for listed in folder.glob("*.json"):
        step = listed.stem
        try:
            wanted = json.loads(listed.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        # Sizes and not contents: what a kill leaves behind is files that are missing or cut short,
        # and to read all of them would take as long as to restore.
        if step.isdecimal() and wanted == dict(_files(folder / step)):
            found.append(int(step))
    return sorted(found, reverse=True)


class Kept:
    """The checkpoints of one run, in one of its processes.

    Args:
      folder: where they lie; all processes see it.
      keep: how many are kept.
      first: whether this process is the one that tidies up.
    """

    def __init__(self, folder: Path, keep: int, first: bool):
        said = "the checkpoints of a run need the package orbax-checkpoint"
        ocp = needed("orbax.checkpoint", "checkpoints", said)
        self.args, self.folder, self.first = ocp.args, folder.absolute(), first
        self.unlisted: list[int] = []
        self.begin = self._tidied(keep)
        self.manager = ocp.CheckpointManager(
            # Not created here: every process makes a manager, and one of them has made the folder.
            self.folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=False),
        )

    def _tidied(self, keep: int) -> int:
        """The last whole step, which all processes agree on; what is no good is gone."""
        from jax.experimental import multihost_utils

        # One process decides, since each may see another state of a folder that is being written.
        step = 0
        if self.first:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                whole = whole_steps(self.folder)
                step = whole[0] if whole else 0
                for path in self.folder.iterdir():
                    if path.name.removesuffix(".json") not in map(str, whole[:keep]):
                        shutil.rmtree(path) if path.is_dir() else path.unlink()
            # A full or foreign disk cannot be helped by starting again.
            except OSError as error:
                raise self._failed("cannot be read", error) from error
        if jax.process_count() == 1:
            return step
        return int(multihost_utils.broadcast_one_to_all(np.int32(step)))

    def _failed(self, what: str, error: BaseException) -> TrainingError:
        why = getattr(error, "strerror", None) or str(error).strip().split("\n")[0]
        return TrainingError(f"{self.folder}: checkpoints {what}: {why}")

    def restore(self, shapes: object) -> Any:
        """The state of the last whole step, laid out as the shapes say."""
        try:
            return self.manager.restore(self.begin, args=self.args.StandardRestore(shapes))
        # Orbax raises errors of many kinds, of its own and of what is below it; to a user all mean
        # this.
        except Exception as error:
            raise self._failed(f"of step {self.begin} cannot be read", error) from error

    def save(self, step: int, state: object) -> None:
        """Begins to write a checkpoint; training goes on meanwhile."""
        try:
            self.manager.save(step, args=self.args.StandardSave(state))
        except Exception as error:
            raise self._failed("cannot be written", error) from error
        self.unlisted.append(step)
        self.look()

    def look(self) -> None:
        """Tells of an error of what is being written, and lists what is complete."""
        try:
            self.manager.check_for_errors()
            if self.first:
                # Orbax writes one at a time, so those before the last are complete; the last one is
                # when nothing is being written.
                busy = self.manager.is_saving_in_progress()
                for step in self.unlisted[:-1] if busy else self.unlisted[:]:
                    self._list(step)
                    self.unlisted.remove(step)
        except Exception as error:
            raise self._failed("cannot be written", error) from error

    def _list(self, step: int) -> None:
        folder = self.folder / str(step)
        if folder.is_dir():
            text = json.dumps(dict(_files(folder)), indent=0)
            # Beside the checkpoint and not in it, where it would be one of the files that it lists.
            with files.replacing(self.folder / f"{step}.json") as (file, _):
                file.write(text.encode())

        # Orbax has removed the oldest by itself; its list must not outlive it.
        for listed in self.folder.glob("*.json"):
            if not (self.folder / listed.stem).is_dir():
                listed.unlink()

    def close(self) -> None:
        """Waits until all is written."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            raise self._failed("cannot be written", error) from error
        self.look()
        self.manager.close()
