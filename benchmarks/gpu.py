"""A 300M-parameter scanned transformer on a GPU, in bfloat16 with remat: time, memory, peak share.

Each peer runs in a process of its own, taking turns, so that the peak of the memory is its own:
``python -m benchmarks.gpu PEER`` is that process, and prints one line of JSON. Without a GPU the
table says so. ``--tiny`` runs a small model on any device, to try the script itself.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.checks import prepare
from benchmarks.peers import BASELINE, Config, load
from benchmarks.peers import by_hand as hand
from benchmarks.table import Cell, Table, error_text
from benchmarks.timing import Sample, Settings

PEERS = (BASELINE, "liftax", "flax.linen", "equinox")
# 24 layers of 12 * 1024^2 weights: 302M parameters.
LARGE = Config(
    lengths=(24,), dim=1024, heads=16, batch=8, positions=1024, dtype="bfloat16", remat=True
)
TINY = Config(lengths=(2,), dim=32, heads=2, batch=2, positions=8, dtype="bfloat16", remat=True)
ROUNDS = 3
STEPS = 20
# Dense bfloat16 peaks from the makers' data sheets, in TFLOP/s, by part of the device's name.
DATA_SHEET = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "T4": 65.0}


def model_flops(config: Config) -> float:
    """FLOPs of one training step: three times the forward pass; recomputation is not counted.

    The forward pass has 2 FLOPs a weight and token, and 4 a feature, token and position for
    the two products of attention.
    """
    tokens = config.batch * config.positions
    weights = sum(a * b for a, b in config.denses.values())
    forward = tokens * (2 * weights + 4 * config.dim * config.positions)
    return 3.0 * config.layers * forward


def run(settings: Settings) -> list[Table]:
    """Step time, compile time, peak memory, and the share of the matrix peak."""
    table = Table("gpu", "300M-parameter transformer, bfloat16, scanned, remat", list(PEERS))
    device = jax.devices()[0]
    if device.platform != "gpu":
        table.note(f"skipped: needs a GPU, and there is {device.device_kind}")
        return [table]
    names = [n for n in PEERS if settings.peers is None or n in (*settings.peers, BASELINE)]
    ready = prepare(TINY, Settings(peers=tuple(names)), table)
    results: dict[str, list[dict[str, Any]]] = {}
    for _ in range(ROUNDS):
        for name in ready:
            try:
                results.setdefault(name, []).append(in_process(name))
            except RuntimeError as error:
                table.note(f"{name}: failed, {error_text(error)}")
    fill(table, {name: found for name, found in results.items() if len(found) == ROUNDS})
    return [table]


def fill(table: Table, results: dict[str, list[dict[str, Any]]]) -> None:
    for row, field in (("training step", "step"), ("trace and compile", "compile")):
        samples = {n: Sample(tuple(r[field] for r in found)) for n, found in results.items()}
        table.put_samples(row, samples)
    table.targets["training step"] = "1.00 +- 0.03x"
    peaks = {n: max(r["peak_bytes"] for r in found) / 2**20 for n, found in results.items()}
    table.put_counts("peak memory, MiB", peaks)
    for name, found in results.items():
        rate = found[0]["flops"] / statistics.median(r["step"] for r in found) / 1e12
        measured = statistics.median(r["matrix_peak"] for r in found)
        text = f"{rate:.0f} TFLOP/s, {rate / measured:.1%} of {measured:.0f} measured"
        sheet = found[0]["data_sheet_peak"]
        if sheet:
            text += f", {rate / sheet:.1%} of {sheet:.0f} by data sheet"
        table.put("model FLOP rate", name, Cell(text, rate))
    table.note("model FLOPs leave out what remat computes again: a quarter of the work done")


def in_process(name: str, *flags: str) -> dict[str, Any]:
    """The figures of one peer from a process of its own."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", name, *flags],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def figures(name: str, config: Config, steps: int) -> dict[str, Any]:
    """Train ``steps`` steps and a first one, which compiles."""
    device = jax.devices()[0]
    sheet = next((peak for part, peak in DATA_SHEET.items() if part in device.device_kind), None)
    peer = load(name)
    state, step = peer.stepper(config, hand.noisy(config))
    x = jax.block_until_ready(config.input())
    target = jnp.zeros_like(x)

    start = time.perf_counter()
    state, loss = step(state, x, target)
    first_loss = float(loss)
    first = time.perf_counter() - start

    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, loss = step(state, x, target)
        loss.block_until_ready()
        times.append(time.perf_counter() - start)
    usual = statistics.median(times)
    statistics_of_device = device.memory_stats() or {}
    peak = int(statistics_of_device.get("peak_bytes_in_use", 0))
    return {
        "peer": name,
        "device": device.device_kind,
        "step": usual,
        "compile": first - usual,
        "loss": first_loss,
        "peak_bytes": peak,
        "flops": model_flops(config),
        "matrix_peak": matrix_peak(),
        "data_sheet_peak": sheet,
    }


def matrix_peak(size: int | None = None, repeats: int = 10) -> float:
    """TFLOP/s of one large bfloat16 matrix product, the best of several."""
    size = size or (8192 if jax.devices()[0].platform == "gpu" else 256)
    a = jnp.ones((size, size), jnp.bfloat16)
    product = jax.jit(lambda a: a @ a)
    product(a).block_until_ready()
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        product(a).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best / 1e12


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("peer", nargs="?", choices=PEERS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    if options.peer is None:
        from benchmarks.table import show

        for table in run(Settings()):
            show(table)
        return
    found = figures(options.peer, TINY if options.tiny else LARGE, options.steps)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
