"""Time of the compiled training step: forward, gradient and SGD update, dispatch included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.checks import Ready, columns, prepare
from benchmarks.peers import Config
from benchmarks.peers import by_hand as hand
from benchmarks.table import Table, error_text
from benchmarks.timing import Settings, interleave

SIZE: dict[str, Any] = {"batch": 8, "positions": 32}
STACKS = {
    "scanned": Config(**SIZE),
    "scanned+remat": Config(remat=True, **SIZE),
    "unrolled": Config(lengths=(), unrolled=12, **SIZE),
}


def run(settings: Settings) -> list[Table]:
    """The 12-layer transformer stack; always by the wall clock, as XLA has threads of its own."""
    table = Table("steps", "compiled training step, 12-layer transformer", columns(settings))
    for name, config in STACKS.items():
        calls: dict[str, Callable[[], Any]] = {}
        for peer, ready in prepare(config, settings, table).items():
            try:
                calls[peer] = stepping(ready, config)
            except Exception as error:  # one peer's fault must not hide the others' figures
                table.note(f"{peer}: {name} failed, {error_text(error)}")
        table.put_samples(name, interleave(calls, settings, wall=True))
        table.targets[name] = "1.00 +- 0.03x"
    return [table]


def stepping(ready: Ready, config: Config) -> Callable[[], Any]:
    """A call that trains one step further and waits for it."""
    params = jax.tree.map(jnp.copy, hand.noisy(config))  # steps donate their state
    state, step = ready.peer.stepper(config, params)
    target = jnp.zeros_like(ready.x)

    def call() -> None:
        nonlocal state
        state, loss = step(state, ready.x, target)
        loss.block_until_ready()

    call()
    return call
