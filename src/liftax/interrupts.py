"""Ctrl-C while a command only loads what it needs: it ends at once, with one line.

`KeyboardInterrupt` in the middle of an import is raised out of other libraries' code, which may
swallow it or crash. Before any work has begun there is nothing to clean up, so nothing is raised.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def ending_at_once(name: str) -> Iterator[None]:
    """Lets Ctrl-C end the process with one line and exit code 130, in a ``with`` block.

    Where Ctrl-C is ignored, or somebody has a handler already, that stays.

    Args:
      name: the command, for the line.
    """

    def end(signum: int, frame: object) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            os.write(2, f"{name}: interrupted\n".encode())
        # At once, without any cleaning up: an import that is cut short leaves what cleans up half
        # made.
        os._exit(130)

    # Handlers belong to the main thread, and one that the user has set stays.
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
