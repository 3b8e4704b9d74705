"""Trace time of ``apply`` and of its gradient, for a transformer stack and for nested scans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from benchmarks.checks import Ready, columns, prepare
from benchmarks.peers import Config
from benchmarks.peers.common import BODIES, gradient
from benchmarks.table import Table
from benchmarks.timing import Settings, interleave

STACKS = {
    "scanned": Config(),
    "scanned+remat": Config(remat=True),
    "unrolled": Config(lengths=(), unrolled=12),
}
APPLY_TARGETS = {"scanned": 1.25, "scanned+remat": 1.25, "unrolled": 1.3}
GRADIENT_TARGET = 1.1
DEPTHS = range(1, 7)
DEEPEST_TARGET = 1.3


def tracer(ready: Ready, *, grad: bool) -> Callable[[], Any]:
    """A call that traces afresh: ``jax.jit`` gets a function it has not seen."""
    function = gradient(ready.model) if grad else ready.model.forward
    return lambda: jax.jit(lambda v, x: function(v, x)).trace(ready.variables, ready.x)


def measure(
    table: Table, row: str, ready: dict[str, Ready], settings: Settings, *, grad: bool
) -> None:
    calls = {name: tracer(r, grad=grad) for name, r in ready.items()}
    table.put_samples(row, interleave(calls, settings))
    bodies = {name: BODIES.count(call) for name, call in calls.items()}
    table.note(f"{row}: bodies traced by " + ", ".join(f"{n} {c}" for n, c in bodies.items()))


def run(settings: Settings) -> list[Table]:
    """The 12-layer transformer stack."""
    table = Table("trace", "trace time, 12-layer transformer, d=64, 4 heads", columns(settings))
    for name, config in STACKS.items():
        ready = prepare(config, settings, table)
        for grad in (False, True):
            row = f"{'gradient' if grad else 'apply'}, {name}"
            measure(table, row, ready, settings, grad=grad)
            target = GRADIENT_TARGET if grad else APPLY_TARGETS[name]
            table.targets[row] = f"<= {target:.2f}x"
    return [table]


def run_nested(settings: Settings) -> list[Table]:
    """Nested scans, a small body and a large one."""
    tables = []
    for body in ("dense", "transformer"):
        table = Table(
            f"nested-{body}",
            f"trace time of apply, nested scans over a {body} body",
            columns(settings),
            unit="depth",
        )
        for depth in DEPTHS:
            config = Config(body=body, lengths=(2,) * depth, dim=16)
            ready = prepare(config, settings, table, gradients=depth == 1)
            measure(table, str(depth), ready, settings, grad=False)
        table.targets[str(DEPTHS[-1])] = f"<= {DEEPEST_TARGET:.2f}x"
        tables.append(table)
    return tables
