"""A function run by a fresh process, or by several that `jax.distributed` joins."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection, wait
from typing import Any

import jax

Fn = Callable[..., Any]
"""One of a module's functions, which each process imports; arguments and result are pickled."""


IMPORTED = [
    *("liftax", "liftax.layers.multihead", "liftax.layers.rnn", "liftax.transforms.scan", "optax"),
    *("flax.linen", "flax.core.lift"),
]
"""Modules that processes have from the one that they are forked off, which has run nothing."""


def _forked() -> Any:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    return context


def fresh(fn: Fn, *args: Any) -> Any:
    """Returns what ``fn(*args)`` gives in a process that has traced and compiled nothing before."""
    with ProcessPoolExecutor(1, mp_context=_forked()) as pool:
        return pool.submit(fn, *args).result()


def run(fn: Fn, *args: Any, processes: int, devices: int, seconds: float = 900) -> list[Any]:
    """Returns what ``fn(*args)`` gave in each process; they share so many devices evenly."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        address = f"localhost:{found.getsockname()[1]}"
    context = _forked()
    ends, running = [], []
    for number in range(processes):
        mine, theirs = context.Pipe(duplex=False)
        given = (fn, args, number, processes, devices, address, theirs)
        running.append(context.Process(target=_process, args=given, daemon=True))
        running[-1].start()
        theirs.close()
        ends.append(mine)
    said: dict[int, Any] = {}
    deadline = time.monotonic() + seconds
    try:
        while len(said) < processes:
            silent = [end for i, end in enumerate(ends) if i not in said]
            ready = wait(silent, deadline - time.monotonic())
            assert ready, f"{processes} processes took longer than {seconds} s"
            for i, end in enumerate(ends):
                if end in ready:
                    what, said[i] = end.recv()
                    assert what == "done", said[i]
    finally:
        for process in running:
            process.kill()
            process.join()
    return [said[i] for i in range(processes)]


def _process(
    fn: Fn,
    args: tuple[Any, ...],
    number: int,
    processes: int,
    devices: int,
    address: str,
    end: Connection,
) -> None:
    # The tests' own processes have eight devices each; here each has its share.
    flags = os.environ.get("XLA_FLAGS", "").split()
    os.environ["XLA_FLAGS"] = " ".join(flag for flag in flags if "device_count" not in flag)
    try:
        jax.config.update("jax_num_cpu_devices", devices // processes)
        # As `compiled_quickly` has it in the test's own process.
        jax.config.update("jax_disable_most_optimizations", True)
        jax.distributed.initialize(address, processes, number, initialization_timeout=600)
        end.send(("done", fn(*args)))
    except BaseException:
        end.send(("failed", traceback.format_exc()))
    # The test ends all of them: one that goes first would be missed by the others.
    parent = multiprocessing.parent_process()
    wait([parent.sentinel] if parent else [])
