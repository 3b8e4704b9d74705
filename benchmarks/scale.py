"""A training step of one stack on eight host devices, run in several ways: time and memory.

    python -m benchmarks.scale

Eight devices of one CPU share its cores, so only ratios of times say something, and of a gather
that overlaps a product nothing is gained; memory is what the compiled program says of one device.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liftax as nn

WIDTH, DEPTH, BATCH, STEPS = 256, 16, 64, 5


class Block(nn.Module):
    """A residual feed-forward layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(x)))


WAYS: dict[str, dict[str, Any]] = {
    "scan, every device has all": {"remat": nn.Remat()},
    "FSDP, prefetch=0": {"fsdp": nn.FSDP("data", prefetch=0)},
    "FSDP, prefetch=1": {"fsdp": "data"},
}


def measured(options: dict[str, Any]) -> tuple[float, int, int]:
    """Seconds of a step; bytes of one device: parameters and moments, and temporary ones."""
    stack, x = nn.Stack(Block(), depth=DEPTH, **options), jnp.ones((BATCH, WIDTH))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x)
    places = jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shapes)
    if "fsdp" in options:
        places = nn.fsdp_sharding(shapes, mesh)

    def step(variables: Any, x: jax.Array) -> Any:
        grads = jax.grad(lambda v: jnp.sum(stack.apply(v, x) ** 2))(variables)
        return jax.tree.map(lambda p, g: p - 1e-9 * g, variables, grads)

    with jax.set_mesh(mesh):
        variables = jax.jit(stack.init, out_shardings=places)(jax.random.key(0), x)
        rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        run = jax.jit(step, out_shardings=places, donate_argnums=0).lower(variables, rows).compile()
        times = []
        for _ in range(STEPS):
            begun = time.perf_counter()
            variables = jax.block_until_ready(run(variables, rows))
            times.append(time.perf_counter() - begun)
    memory = run.memory_analysis()
    return min(times), memory.argument_size_in_bytes, memory.temp_size_in_bytes


def main() -> None:
    """Prints the table."""
    print("| way | step | variables of a device | temporary on a device |\n|---|---|---|---|")
    base = None
    for name, options in WAYS.items():
        seconds, held, temp = measured(options)
        base = base or seconds
        mib = [f"{size / 2**20:.1f} MiB" for size in (held, temp)]
        print(f"| {name} | {seconds / base:.2f} | {mib[0]} | {mib[1]} |", flush=True)


if __name__ == "__main__":
    main()
