"""Pipelines: a step on eight host devices beside other ways, and on one beside the formula.

A schedule takes ``steps / (repeats * microbatches)`` of the time of the loop over microbatches, for
its bubbles. Where all stages are on one device there are none: the pipeline is that loop.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.table import BASELINE, Cell, Table
from benchmarks.timing import Sample, Settings, interleave

DEPTH, WIDTH, PART, MICROBATCHES = 8, 256, 64, 16
RUNS = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 4), (4, 2))  # stages and repeats


def run(settings: Settings) -> list[Table]:
    return [on_devices(figures(settings)), *on_one(settings)]


# --- eight devices ------------------------------------------------------------------------


def figures(settings: Settings) -> dict[str, dict[str, Any]]:
    """Of a process of its own: how many devices there are is settled when jax begins."""
    command = [sys.executable, "-m", "benchmarks.scale", f"--rounds={settings.rounds}"]
    root = Path(__file__).parents[1]
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=root, env=env, timeout=600
    )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["benchmarks.scale failed"])[-1])
    found: dict[str, dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def on_devices(found: Mapping[str, Mapping[str, Any]]) -> Table:
    """The table of what `benchmarks.scale` found; the first way has the ratio 1."""
    columns = ["step", "variables of a device", "temporary on a device"]
    table = Table("pipeline", "a step on eight host devices", columns, unit="way")
    base = None
    for name, figures in found.items():
        sample = Sample(tuple(figures["seconds"]))
        base = base or sample
        ratio = sample.ratio(base)
        table.put(name, "step", Cell(f"{ratio:.2f}", sample.median, ratio, sample.spread))
        for column, key in zip(columns[1:], ("held", "temporary"), strict=True):
            table.put(name, column, Cell(f"{figures[key] / 2**20:.1f} MiB", figures[key]))
    return table


# --- one device ---------------------------------------------------------------------------


def on_one(settings: Settings) -> list[Table]:
    """Time and temporary memory of a gradient on one device, beside the loop and the formula."""
    import liftax as nn

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(nn.LayerNorm()(x))))

    stack = nn.Stack(Block(), depth=DEPTH)
    x = jax.random.normal(jax.random.key(1), (PART * MICROBATCHES, WIDTH))
    variables = stack.init(jax.random.key(0), x)

    def loss(y: Any) -> Any:
        return jnp.mean(y**2)

    def loop(variables: Any, x: Any) -> Any:
        parts = x.reshape(MICROBATCHES, PART, WIDTH)
        return jnp.mean(jax.lax.map(lambda part: loss(stack.apply(variables, part)), parts))

    columns = [BASELINE, "gpipe", "1f1b", "formula"]
    times = Table("pipeline-step", f"gradient of {DEPTH} layers on one device", columns, unit="run")
    memory = Table("pipeline-memory", "peak temporary bytes", columns[:3], unit="run")
    baseline = jax.jit(jax.value_and_grad(loop)).lower(variables, x).compile()
    for stages, repeats in RUNS:
        pipeline = nn.Pipeline(stages, MICROBATCHES, repeats)
        programs = {BASELINE: baseline}
        for schedule in ("gpipe", "1f1b") if repeats == 1 else ("gpipe",):
            step = nn.pipeline_value_and_grad(stack.clone(run=pipeline), loss, schedule)
            programs[schedule] = jax.jit(step).lower(variables, x).compile()
        row = f"{stages} stages" + f" × {repeats}" * (repeats > 1)
        calls = {
            name: lambda p=program: jax.block_until_ready(p(variables, x))
            for name, program in programs.items()
        }
        times.put_samples(row, interleave(calls, settings))
        ratio = pipeline.steps / (repeats * MICROBATCHES)
        times.put(row, "formula", Cell(f"{ratio:.2f}x", ratio))
        peaks = {k: p.memory_analysis().temp_size_in_bytes for k, p in programs.items()}
        memory.put_counts(row, peaks)
    return [times, memory]
