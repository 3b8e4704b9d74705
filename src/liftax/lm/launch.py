"""Several processes on one machine: started, watched, and started again when one is lost.

One that is lost takes the others with it, who wait for it in a collective; so all are ended and all
are started anew, from the last whole checkpoint. They are forked from a server that has imported
everything, so that starting is quick.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from .settings import Settings, TrainingError
from .worker import Place, work

_IMPORTED = ("optax", "orbax.checkpoint", "jax.experimental.multihost_utils", "matplotlib.figure")
TRIES = 3
"""How often in a row the processes may end without a step further."""

Watch = Callable[[str, Any, Sequence[BaseProcess]], None]
"""Is told what the first process says, and which processes run."""


def launch(settings: Settings, processes: int, watch: Watch, one: Place | None = None) -> None:
    """Runs the processes until the run is done.

    Args:
      settings: of the run.
      processes: how many there are.
      watch: is told what happens.
      one: the one process of this machine, where others run the others; None for all of them.

    Raises:
      TrainingError: it cannot be done, in bounded time: one process never joins, or they end again
        and again without a step further.
    """
    if settings.devices % processes:
        raise TrainingError(
            f"--mesh has {settings.devices} devices, which {processes} processes cannot share "
            f"evenly"
        )
    settings.out.mkdir(parents=True, exist_ok=True)
    # Not fork: this process may have a JAX of its own, whose threads a fork does not take along.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([work.__module__, *_IMPORTED])
    reached, left = -1, TRIES
    while True:
        # A new port each time: the old one may still be held by what was killed.
        address = f"localhost:{_free_port()}"
        places = [one] if one else [Place(i, processes, address) for i in range(processes)]
        furthest = _once(context, settings, places, watch)
        if furthest is None:
            return
        left = TRIES if furthest > reached else left - 1
        reached = max(reached, furthest)
        if not left:
            raise TrainingError(
                f"the processes ended {TRIES} times without a step after {reached}; what they "
                f"said is in {settings.out}/log-*.txt"
            )


def _once(context: Any, settings: Settings, places: Sequence[Place], watch: Watch) -> int | None:
    """Runs the processes once: None when the run is done, else the furthest step there was."""
    ends: list[Connection] = []
    running: list[BaseProcess] = []
    for place in places:
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_process, args=(settings, place, theirs), daemon=True)
        process.start()
        theirs.close()
        ends.append(mine)
        running.append(process)
    try:
        return _watched(settings, places, ends, running, watch)
    finally:
        # Killed and not asked: who waits in a collective hears nothing.
        for process in running:
            process.kill()
        for process in running:
            process.join()


def _watched(
    settings: Settings,
    places: Sequence[Place],
    ends: list[Connection],
    running: list[BaseProcess],
    watch: Watch,
) -> int | None:
    # A process says when it has joined; the time that it takes to start counts as well.
    joined: set[int] = set()
    done: set[int] = set()
    begun = time.monotonic()
    deadline = begun + settings.join + 30
    # The step of the first process stands for all: a step is a collective.
    furthest, said = -1, dict(enumerate(ends))
    while True:
        left = None if len(joined) == len(running) else max(0.0, deadline - time.monotonic())
        alive = [p.sentinel for i, p in enumerate(running) if i not in done]
        ready = wait([*said.values(), *alive], left)
        if not ready:
            raise _never_joined(settings, places[0])
        for i in [i for i, end in said.items() if end in ready]:
            try:
                what, value = said[i].recv()
            except (EOFError, OSError):
                del said[i]
                continue
            if what == "error":
                raise TrainingError(value)
            if what == "joined":
                joined.add(i)
            if what == "done":
                done.add(i)
            if i == 0:
                furthest = value["step"] if what == "step" else furthest
                furthest = value if what == "begin" else furthest
                watch(what, value, running)
        if len(done) == len(running):
            return None
        # What one that ended had to say comes first: its pipe is read to the end.
        if any(i not in said and i not in done for i in range(len(running))):
            # JAX ends a process that has waited for the others long enough.
            if not joined and time.monotonic() - begun >= settings.join:
                raise _never_joined(settings, places[0])
            return furthest


def _never_joined(settings: Settings, place: Place) -> TrainingError:
    return TrainingError(
        f"process {place.process}: not all {place.processes} processes joined at {place.address} "
        f"within {settings.join} s; see {settings.out}/log-{place.process}.txt"
    )


def _process(settings: Settings, place: Place, end: Connection) -> None:
    """The life of one process."""
    # Whatever libraries have to say is kept for whoever has to look.
    log = os.open(
        Path(settings.out, f"log-{place.process}.txt"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    # The mesh says how many devices a process has.
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    try:
        work(settings, place, lambda what, value: end.send((what, value)))
    except TrainingError as error:
        end.send(("error", str(error)))
        os._exit(2)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    # The others may be gone already: nobody is waited for once all is written.
    os._exit(0)


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port
