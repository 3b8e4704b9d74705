"""A 302M-parameter transformer on a GPU: training, decoding and init, each row as it is taken.

Each row is measured in a process of its own, so that its peak of memory is its own:
``python -m benchmarks.gpu ROW`` is that process, and prints one line of JSON. Attention is cuDNN's
where there is one. All rows take about five minutes, and each is printed when it is there. Without
a GPU the table says so; ``--tiny`` takes a small model on any device, to try the script itself.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import decode, stack
from benchmarks.peers import BASELINE, Config, Model, common, load
from benchmarks.peers import by_hand as hand
from benchmarks.table import Cell, Table, error_text, seconds
from benchmarks.timing import Sample, Settings

# 24 layers of 12 * 1024^2 weights: 302M parameters.
LARGE = Config(lengths=(24,), dim=1024, heads=16, batch=8, positions=1024, dtype="bfloat16")
TINY = Config(lengths=(2,), dim=32, heads=2, batch=2, positions=8, dtype="bfloat16")
STEPS = 20
# Dense bfloat16 peaks from the makers' data sheets, in TFLOP/s, by part of the device's name.
DATA_SHEET = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0, "T4": 65.0}
Figures = dict[str, Any]


# --- what is measured ---------------------------------------------------------------------


def stacked(**options: Any) -> Callable[[Config], Model]:
    """A model of `nn.Stack`, run as its options say."""

    def build(config: Config) -> Model:
        import liftax as nn

        block = stack.block_class(nn)(config)
        module = nn.Stack(block, depth=config.layers, outputs=True, **options)
        return Model(
            lambda variables, x: module.apply(variables, x)[0],
            lambda params: {"params": {"block_0": params}},
        )

    return build


def training_of(name: str) -> Callable[[Config], tuple[Any, Callable[..., Any]]]:
    """``config -> (state, step)`` of a way to train."""
    ways = {"best plan": {}, "loop": {"run": "loop"}, "scan, all stored": {"remat": None}}
    if name not in ways:
        return lambda config: load(name).stepper(config, hand.noisy(config))

    def stepper(config: Config) -> tuple[Any, Callable[..., Any]]:
        model = stacked(**ways[name])(config)
        return common.functional_stepper(model, model.adopt(hand.noisy(config)))

    return stepper


TRAINING = (BASELINE, "best plan", "loop", "scan, all stored", "flax.linen", "equinox")
INIT = (BASELINE, "liftax", "flax.linen")


def model_flops(config: Config) -> float:
    """FLOPs of one training step: three times the forward pass; recomputation is not counted.

    The forward pass has 2 FLOPs a weight and token, and 4 a feature, token and position for
    the two products of attention.
    """
    tokens = config.batch * config.positions
    weights = sum(a * b for a, b in config.denses.values())
    forward = tokens * (2 * weights + 4 * config.dim * config.positions)
    return 3.0 * config.layers * forward


def training(name: str, config: Config, steps: int) -> Figures:
    """Train ``steps`` steps and a first one, which compiles."""
    device = jax.devices()[0]
    sheet = next((peak for part, peak in DATA_SHEET.items() if part in device.device_kind), None)
    state, step = training_of(name)(config)
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
    return {
        "device": device.device_kind,
        "step": usual,
        "compile": first - usual,
        "loss": first_loss,
        "peak_bytes": int((device.memory_stats() or {}).get("peak_bytes_in_use", 0)),
        "flops": model_flops(config),
        "matrix_peak": matrix_peak(),
        "data_sheet_peak": sheet,
    }


def init(name: str, config: Config) -> Figures:
    """The first call of a jitted init, and a later one."""
    make = load(name).init(config, jit=True)
    jax.block_until_ready(jax.random.normal(jax.random.key(1), (2,)))  # the device is awake
    times = []
    for seed in range(3):
        start = time.perf_counter()
        jax.block_until_ready(make(jax.random.key(seed)))
        times.append(time.perf_counter() - start)
    return {"first": times[0], "later": times[-1]}


def decoding(config: Config) -> Figures:
    """All ways to decode a token, beside each other in one process."""
    sizes = decode.Sizes(config.layers, config.dim, config.heads, config.batch, config.positions)
    (table,) = decode.run(Settings(rounds=5), sizes)
    return table.as_json()


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


ROWS: dict[str, Callable[[Config, int], Figures]] = {
    **{f"train: {n}": lambda config, steps, n=n: training(n, config, steps) for n in TRAINING},
    "decode": lambda config, steps: decoding(config),
    **{f"init: {n}": lambda config, steps, n=n: init(n, config) for n in INIT},
}


# --- the tables ---------------------------------------------------------------------------


def run(settings: Settings) -> list[Table]:
    """The tables; each row is printed as it is taken."""
    device = jax.devices()[0]
    if device.platform != "gpu":
        table = Table("gpu", "a 302M-parameter transformer in bfloat16", [])
        table.note(f"skipped: needs a GPU, and there is {device.device_kind}")
        return [table]
    taken: dict[str, Figures] = {}
    notes = []
    for row in ROWS:
        if settings.peers is not None and not {row.partition(": ")[2], BASELINE} & {
            *settings.peers
        }:
            continue
        try:
            taken[row] = in_process(row)
            print(f"{row}: {said(taken[row])}", flush=True)
        except RuntimeError as error:
            notes.append(f"{row}: failed, {error_text(error)}")
            print(notes[-1], flush=True)
    made = tables(taken)
    made[0].notes += notes
    return made


def said(figures: Figures) -> str:
    """The figures of one row in a line."""
    if "step" in figures:
        return (
            f"step {seconds(figures['step'])}, compiled in {seconds(figures['compile'])}, peak "
            f"{figures['peak_bytes'] / 2**20:,.0f} MiB, {rate_of(figures)[1]}"
        )
    if "first" in figures:
        return f"first call {seconds(figures['first'])}, later {seconds(figures['later'])}"
    return "; ".join(
        f"{name} {cell['text']}" for name, cell in figures["cells"].get("one token", {}).items()
    )


def rate_of(figures: Figures) -> tuple[float, str]:
    """The FLOP rate of the model, in TFLOP/s, and beside what the device can do."""
    rate = figures["flops"] / figures["step"] / 1e12
    measured, sheet = figures["matrix_peak"], figures["data_sheet_peak"]
    text = f"{rate:.3g} TFLOP/s, {rate / measured:.1%} of {measured:.3g} measured"
    return rate, text + (f", {rate / sheet:.1%} of {sheet:.0f} by data sheet" if sheet else "")


def tables(taken: dict[str, Figures]) -> list[Table]:
    """The rows that were taken, as tables."""
    trained = {row[7:]: found for row, found in taken.items() if row.startswith("train: ")}
    train = Table("gpu", "training a 302M-parameter transformer in bfloat16", list(trained))
    for row, field in (("training step", "step"), ("trace and compile", "compile")):
        train.put_samples(row, {n: Sample((found[field],)) for n, found in trained.items()})
    peaks = {n: found["peak_bytes"] / 2**20 for n, found in trained.items()}
    train.put_counts("peak memory, MiB", peaks)
    for name, found in trained.items():
        rate, text = rate_of(found)
        train.put("model FLOP rate", name, Cell(text, rate))
    train.targets["training step"] = "best plan <= 1.10x of loop"
    train.note("model FLOPs leave out what is computed again")
    made = [train]
    if "decode" in taken:
        plain = dict(taken["decode"])
        cells = {
            row: {name: Cell(**cell) for name, cell in cells.items()}
            for row, cells in plain.pop("cells").items()
        }
        made.append(dataclasses.replace(Table(**plain, cells=cells), name="gpu-decode"))
    first = {row[6:]: found for row, found in taken.items() if row.startswith("init: ")}
    begun = Table("gpu-init", "a jitted init of the same model", list(first))
    for row, field in (("first call", "first"), ("later calls", "later")):
        begun.put_samples(row, {n: Sample((found[field],)) for n, found in first.items()})
    return [*made, begun]


def in_process(row: str, *flags: str) -> Figures:
    """The figures of one row from a process of its own."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", row, *flags],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["no output"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("row", nargs="?", choices=ROWS)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    if options.row is not None:
        common.FUSED = jax.devices()[0].platform == "gpu"
        figures = ROWS[options.row](TINY if options.tiny else LARGE, options.steps)
        print(json.dumps(figures))
        return
    from benchmarks.table import show

    if options.tiny:
        made = tables({row: in_process(row, "--tiny", "--steps", "2") for row in ROWS})
    else:
        made = run(Settings())
    for table in made:
        show(table)


if __name__ == "__main__":
    main()
