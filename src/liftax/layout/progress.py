"""A word on stderr while something takes longer than two seconds."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar

PATIENCE = 2.0
"""Seconds of silence."""

always: ContextVar[bool] = ContextVar("liftax_progress", default=False)
"""Whether to say it even where stderr is no terminal: commands do, functions do not."""


@contextlib.contextmanager
def said(what: str, how_far: Callable[[], str] = str) -> Iterator[None]:
    """Says what takes so long, if it does, and how far it is.

    Args:
      what: `"tracing Model"`.
      how_far: called now and then, from another thread; `"312 modules"`, or nothing.
    """
    # Neither a log file nor a notebook wants a line that is written over.
    fancy = sys.stderr.isatty()
    if not (fancy or always.get()):
        yield
        return
    done, began, stream = threading.Event(), time.monotonic(), sys.stderr
    told = False

    def watch() -> None:
        nonlocal told
        wait = PATIENCE
        while not done.wait(wait):
            told, parts = True, [what, how_far(), f"{time.monotonic() - began:.0f} s"]
            line = "liftax: " + ", ".join(filter(None, parts))
            # The stream may be closed by now, and a word about waiting must break nothing.
            with contextlib.suppress(OSError, ValueError):
                stream.write(f"\r{line}\x1b[K" if fancy else f"{line}\n")
                stream.flush()
            wait = PATIENCE if fancy else 5 * PATIENCE

    # A thread, since tracing and compiling hold this one; a daemon, so that it keeps no process
    # alive.
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if told and fancy:
            with contextlib.suppress(OSError, ValueError):
                stream.write("\r\x1b[K")
                stream.flush()
