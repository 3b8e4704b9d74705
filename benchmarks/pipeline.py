"""Pipelines: time of a gradient beside the loop over microbatches, and what the formula says.

On one device all stages run, bubbles too, so a pipeline takes ``steps / (repeats * microbatches)``
of the time of the loop. 1F1B computes its layers once more.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.table import BASELINE, Cell, Table
from benchmarks.timing import Settings, interleave

DEPTH, WIDTH, PART, MICROBATCHES = 8, 256, 16, 16
RUNS = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 4), (4, 2))  # stages and repeats


def run(settings: Settings) -> list[Table]:
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
        times.put_samples(row, interleave(calls, settings, wall=True))
        ratio = pipeline.steps / (repeats * MICROBATCHES)
        times.put(row, "formula", Cell(f"{ratio:.2f}x", ratio))
        peaks = {k: p.memory_analysis().temp_size_in_bytes for k, p in programs.items()}
        memory.put_counts(row, peaks)
    return [times, memory]
