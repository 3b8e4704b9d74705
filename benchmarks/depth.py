"""Trace and compile time and program size of 4 to 1,024 scanned layers: they should be flat."""

from __future__ import annotations

import time
from typing import Any

import jax

from benchmarks.checks import columns, wanted
from benchmarks.peers import Config, Peer
from benchmarks.peers import by_hand as hand
from benchmarks.peers.common import gradient
from benchmarks.programs import optimised_operations, stablehlo_operations
from benchmarks.table import Table, error_text
from benchmarks.timing import Sample, Settings

LAYERS = (4, 16, 64, 256, 1024)
ROUNDS = 3
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
    samples: dict[tuple[int, str], list[dict[str, float]]] = {}
    for round_number in range(ROUNDS + 1):
        # The round before the first is a warm-up, for which the smallest model does.
        for layers in LAYERS if round_number else LAYERS[:1]:
            for name, peer in peers.items():
                try:
                    found = compile_once(peer, Config(lengths=(layers,)))
                except Exception as error:  # one peer's fault must not hide the others'
                    tables["trace"].note(f"{name}: {layers} layers failed, {error_text(error)}")
                    continue
                if round_number:
                    samples.setdefault((layers, name), []).append(found)
    for table in tables.values():
        table.note_missing(missing)
        table.note("ratios are to the same peer's 4 layers")
    for (layers, name), rounds in samples.items():
        put(tables, layers, name, rounds, samples[LAYERS[0], name])
    for table in tables.values():
        table.targets[str(LAYERS[-1])] = FLAT
    return list(tables.values())


def put(
    tables: dict[str, Table],
    layers: int,
    name: str,
    rounds: list[dict[str, float]],
    first: list[dict[str, float]],
) -> None:
    for what in ("trace", "compile"):
        mine = Sample(tuple(r[what] for r in rounds))
        base = Sample(tuple(r[what] for r in first))
        reference = None if layers == LAYERS[0] else base
        tables[what].put_samples(str(layers), {name: mine}, reference=reference or mine)
    counts = {name: rounds[0]["size"], "first": first[0]["size"]}
    base_name = None if layers == LAYERS[0] else "first"
    tables["size"].put_counts(str(layers), counts, base=base_name)
    tables["size"].cells[str(layers)].pop("first")


def compile_once(peer: Peer, config: Config) -> dict[str, float]:
    model = peer.build(config)
    key, x = jax.random.key(0), config.abstract_input()
    variables = jax.eval_shape(lambda key: model.adopt(hand.canonical(key, config)), key)
    function = gradient(model)

    def fresh(variables: Any, x: jax.Array) -> Any:
        return function(variables, x)

    start = time.perf_counter()
    traced = jax.jit(fresh).trace(variables, x)
    traced_at = time.perf_counter()
    lowered = traced.lower()
    lowered_at = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    size = stablehlo_operations(lowered) + optimised_operations(compiled.as_text() or "")
    return {
        "trace": traced_at - start,
        "compile": done - lowered_at,
        "size": size,
    }
