"""Answers run in processes of their own, with limits: one process for each check.

A `Runner` keeps a process ready for the exercise that is being worked on, so that a verdict comes
in a second or two. An endless loop, a process that ends itself, an array too large: each is a
verdict.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import LiftaxError
from .exercises import Exercise
from .verdict import Verdict

PRINTED_LINES = 10


class WorkerError(LiftaxError, RuntimeError):
    """The process that runs answers did not come up."""


@dataclass(frozen=True)
class Limits:
    """What one check may take; `seconds` counts from when the answer is handed over."""

    seconds: float = 20.0
    memory: int = 2 << 30
    startup: float = 600.0


class Runner:
    """Checks answers, each in a process of its own.

    With `ahead`, the process for the next check of the same exercise is started while the learner
    reads the verdict of this one.
    """

    def __init__(self, limits: Limits | None = None, *, ahead: bool = True) -> None:
        self.limits = limits or Limits()
        self.ahead = ahead
        self._ready: dict[str, _Worker] = {}
        self._lock = threading.Lock()
        # What the goal's side has compiled in one process is read by the next.
        self._compiled = tempfile.TemporaryDirectory(prefix="liftax-practice-")

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes."""
        with self._lock:
            for worker in self._ready.values():
                worker.end()
            self._ready.clear()
        self._compiled.cleanup()

    def warm(self, exercise: Exercise) -> None:
        """Starts the process for the next check of an exercise; those of others end."""
        with self._lock:
            for name in [name for name in self._ready if name != exercise.name]:
                self._ready.pop(name).end()
            if exercise.name not in self._ready:
                self._ready[exercise.name] = _Worker(exercise, self._compiled.name)

    def check(self, exercise: Exercise, source: str, path: str | Path | None = None) -> Verdict:
        """The verdict on the text of an answer; ``path`` is the file that it came from.

        Raises:
          WorkerError: no process could be started.
        """
        with self._lock:
            worker = self._ready.pop(exercise.name, None)
        if worker is None or not worker.alive:
            worker = _Worker(exercise, self._compiled.name)
        try:
            verdict = worker.check(source, str(path or exercise.file_name), self.limits)
        finally:
            worker.end()
        if self.ahead:
            self.warm(exercise)
        return verdict


class _Worker:
    """One process, for one check."""

    def __init__(self, exercise: Exercise, compiled: str) -> None:
        self.exercise = exercise
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        package = str(Path(__file__).parents[2])
        before = os.environ.get("PYTHONPATH")
        environment = {
            **os.environ,
            # JAX takes most of an accelerator's memory for one process, and here are two.
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": compiled,
            # All programs are kept: each is small, and there are many of them.
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "PYTHONPATH": os.pathsep.join([package, *([before] if before else [])]),
            "PYTHONIOENCODING": "utf-8:replace",
        }
        self.process = subprocess.Popen(
            # -P: a file of the learner's called random.py is not to stand in Python's place.
            [sys.executable, "-P", "-m", "liftax.practice.worker", exercise.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment,
            # A group of its own: what an answer starts is ended with it.
            start_new_session=True,
            cwd=compiled,
        )
        self.said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self.listener = threading.Thread(target=self._listen, daemon=True)
        self.listener.start()

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def _listen(self) -> None:
        assert self.process.stdout is not None
        # Opened and closed in this thread alone: a pipe closed by another while this one is
        # between two lines raises here, where nobody catches it.
        with self.process.stdout as lines:
            for line in lines:
                self.said.put(line)
        self.said.put(b"")  # it has ended

    def check(self, source: str, path: str, limits: Limits) -> Verdict:
        if self._answer(limits.startup) is None:
            # The end of what it printed says why, a traceback in most cases.
            raise WorkerError(f"the process that runs answers did not start:\n{self.printed(20)}")
        # What was printed before belongs to the start, and not to the answer.
        self.errors.seek(0, os.SEEK_END)
        began, start = time.monotonic(), self.errors.tell()
        request = {"source": source, "path": path, "memory": limits.memory}
        request["seconds"] = limits.seconds
        assert self.process.stdin is not None
        # It may have ended by now; then no answer comes, which is told below.
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        plain = self._answer(limits.seconds)
        seconds = time.monotonic() - began
        printed = self.printed(PRINTED_LINES, start)
        if plain is not None:
            return Verdict.from_dict(plain).replace(printed=printed, seconds=seconds)
        said = self.ended(limits)
        return Verdict(self.exercise.name, "runs", said, printed=printed, seconds=seconds)

    def ended(self, limits: Limits) -> str:
        """Why there is no verdict from the process."""
        if self.alive:
            with contextlib.suppress(subprocess.TimeoutExpired):
                # The pipe of a process that ends is closed a moment before its exit code is there.
                self.process.wait(0.5)
        code = self.process.poll()
        if code is None:
            return f"it does not end: stopped after {limits.seconds:g} seconds"
        if code < 0:
            name = signal.Signals(-code).name
            return (
                f"it brought the process down ({name}): too much memory, or a recursion too deep; "
                f"an answer may take {limits.memory >> 20} MiB"
            )
        return f"it ends the process by itself, with code {code}; an answer only defines names"

    def printed(self, count: int, start: int = 0) -> str:
        """The last lines that the answer printed, without control characters."""
        end = self.errors.seek(0, os.SEEK_END)
        self.errors.seek(max(start, end - 4_000))
        text = self.errors.read().decode("utf-8", "replace")
        clean = "".join(c if c.isprintable() or c == "\n" else "·" for c in text)
        return "\n".join(line[:200] for line in clean.strip().splitlines()[-count:])

    def _answer(self, seconds: float) -> dict[str, Any] | None:
        try:
            line = self.said.get(timeout=seconds)
            return json.loads(line) if line else None
        except (queue.Empty, json.JSONDecodeError):
            return None

    def end(self) -> None:
        """Ends the process, and what it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError, AttributeError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        # What it printed ends with its group; a process that left the group keeps the pipe open,
        # and is not waited for.
        self.listener.join(1)
        self.errors.close()
