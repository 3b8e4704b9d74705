"""The plan that a Stack takes by itself beside its loop: step, memory and compile time by depth.

A scan compiles as much at any depth, the loop one copy of everything a layer; so the ratio of their
compile times goes with the depth, and the others do not.
"""

from __future__ import annotations

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.peers import Config
from benchmarks.peers.linenlike import block_class
from benchmarks.table import Cell, Table, seconds
from benchmarks.timing import Settings, interleave

DEPTHS = (12, 24, 48)
CONFIG = Config(dim=256, batch=4, positions=128)
ROUNDS = 5  # a step takes up to a second and a half
LOOP, PLAN = "loop", "as it is"


def run(
    settings: Settings, config: Config = CONFIG, depths: tuple[int, ...] = DEPTHS
) -> list[Table]:
    """A training step (gradient and SGD) of ``nn.Stack`` as it is and with ``run="loop"``."""
    table = Table("stack-plan", "a Stack as it is beside its loop", [LOOP, PLAN])
    for depth in depths:
        programs, compiles = {}, {}
        variables, x = inputs(config, depth)
        for name in (LOOP, PLAN):
            lowered = step(config, depth, name).lower(variables, x)
            start = time.perf_counter()
            programs[name] = lowered.compile()
            compiles[name] = time.perf_counter() - start
        calls = {
            name: functools.partial(finished, program, variables, x)
            for name, program in programs.items()
        }
        few = Settings(rounds=min(settings.rounds, ROUNDS), min_sample=settings.min_sample)
        samples = interleave(calls, few, warm_up=1, wall=True)
        share = samples[PLAN].ratio(samples[LOOP])
        put(table, f"{depth} layers, step", {n: s.median for n, s in samples.items()}, share)
        put(table, f"{depth} layers, compile", compiles)
        memory = {n: p.memory_analysis().temp_size_in_bytes / 2**20 for n, p in programs.items()}
        for name, mib in memory.items():
            ratio = "" if name == LOOP else f" ({mib / memory[LOOP]:.2f}x)"
            row = f"{depth} layers, temporary memory"
            table.put(row, name, Cell(f"{mib:,.0f} MiB{ratio}", mib))
            table.targets[row] = "<= 0.50x"
        table.targets[f"{depth} layers, step"] = "<= 1.10x"
    table.targets[f"{depths[-1]} layers, compile"] = "<= 0.10x"
    table.note("ratios are to the loop; compiled one after the other, once")
    return [table]


def put(table: Table, row: str, found: dict[str, float], share: float | None = None) -> None:
    """A row of times, with the plan's ratio to the loop."""
    share = found[PLAN] / found[LOOP] if share is None else share
    table.put(row, LOOP, Cell(seconds(found[LOOP]), found[LOOP]))
    table.put(row, PLAN, Cell(f"{seconds(found[PLAN])} ({share:.2f}x)", found[PLAN], share))


def finished(program: Any, *args: Any) -> Any:
    return jax.block_until_ready(program(*args))


def stack(config: Config, depth: int, name: str) -> Any:
    import liftax as nn

    run = "loop" if name == LOOP else "scan"
    return nn.Stack(block_class(nn)(config), depth=depth, outputs=True, run=run)


def inputs(config: Config, depth: int) -> tuple[Any, Any]:
    x = jnp.ones((config.batch, config.positions, config.dim))
    return stack(config, depth, PLAN).init(jax.random.key(0), x), x


def step(config: Config, depth: int, name: str) -> Any:
    """A compiled step of gradient descent."""
    model = stack(config, depth, name)

    def descend(variables: Any, x: Any) -> Any:
        def loss(variables: Any) -> Any:
            return (model.apply(variables, x)[0] ** 2).mean()

        grads = jax.grad(loss)(variables)
        return jax.tree.map(lambda v, g: v - 1e-3 * g, variables, grads)

    return jax.jit(descend)
