"""Trace and compile time and program size of 4 to 1,024 scanned layers: they should be flat."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax

from benchmarks import trace_time
from benchmarks.checks import Ready, columns, wanted
from benchmarks.peers import Config, Peer
from benchmarks.peers import by_hand as hand
from benchmarks.programs import optimised_operations, stablehlo_operations
from benchmarks.table import Table, error_text
from benchmarks.timing import Sample, Settings, interleave

LAYERS = (4, 16, 64, 256, 1024)
ROUNDS = 5
Tracer = Callable[[], Any]
FLAT = "flat, <= 1.05x of 4 layers"


def run(settings: Settings) -> list[Table]:
    """The gradient of a scanned transformer, lowered from shapes alone: no array is made."""
    peers, missing = wanted(settings)
    tables = {
        what: Table(f"depth-{what}", title, columns(settings), unit="layers")
        for what, title in {
            "trace": "trace time of the gradient by number of scanned layers",
            "compile": "compile time of the gradient by number of scanned layers",
            "size": "StableHLO + optimised operations by number of scanned layers",
        }.items()
    }
    tracers: dict[str, Tracer] = {}
    for layers in LAYERS:
        for name, peer in peers.items():
            try:
                trace = tracer(peer, Config(lengths=(layers,)))
                trace()
            except Exception as error:  # one peer's fault must not hide the others'
                tables["trace"].note(f"{name}: {layers} layers failed, {error_text(error)}")
            else:
                tracers[f"{layers}/{name}"] = trace
    traced = interleave(tracers, settings, warm_up=1)
    compiled: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    for _ in range(ROUNDS):
        for case, trace in tracers.items():
            seconds, sizes[case] = compile_once(trace)
            compiled.setdefault(case, []).append(seconds)
    for table in tables.values():
        table.note_missing(missing)
        table.note("ratios are to the same peer's 4 layers")
        table.targets[str(LAYERS[-1])] = FLAT
    for case in tracers:
        row, name = case.split("/", 1)
        first = f"{LAYERS[0]}/{name}"
        put(tables["trace"], row, name, traced[case], traced[first])
        put(
            tables["compile"],
            row,
            name,
            Sample(tuple(compiled[case])),
            Sample(tuple(compiled[first])),
        )
        counts = {name: sizes[case], "first": sizes[first]}
        tables["size"].put_counts(row, counts, base=None if case == first else "first")
        tables["size"].cells[row].pop("first")
    return list(tables.values())


def put(table: Table, row: str, name: str, mine: Sample, base: Sample) -> None:
    table.put_samples(row, {name: mine}, reference=mine if row == str(LAYERS[0]) else base)


def tracer(peer: Peer, config: Config) -> Tracer:
    """A call that traces the gradient afresh."""
    model = peer.build(config)
    key, x = jax.random.key(0), config.abstract_input()
    variables = jax.eval_shape(lambda key: model.adopt(hand.canonical(key, config)), key)
    return trace_time.tracer(Ready(peer, model, variables, x), grad=True)


def compile_once(trace: Tracer) -> tuple[float, int]:
    """Seconds of the compilation, and the operations before and after it."""
    lowered = trace().lower()
    start = time.perf_counter()
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
    return seconds, stablehlo_operations(lowered) + optimised_operations(compiled.as_text() or "")
