"""A training step of one stack on eight host devices, run in several ways: time and memory.

`python -m benchmarks pipeline` shows it; `python -m benchmarks.scale` prints the figures as JSON.

Eight devices of one CPU share its cores, so only ratios of times say something, and of a gather
that overlaps a product nothing is gained; memory is what the compiled program says of one device.
In every way a layer is computed again in the backward pass, and all make the same step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liftax as nn
from benchmarks.timing import Settings, interleave

DEVICES, WIDTH, DEPTH, BATCH, MICROBATCHES = 8, 256, 16, 128, 16


class Block(nn.Module):
    """A residual feed-forward layer."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(4 * WIDTH)(x)))


def ways() -> dict[str, dict[str, Any]]:
    """The options of the stack, by name; the first is what the others are compared with."""
    gpipe = nn.Pipeline(DEVICES, MICROBATCHES)
    circular = dataclasses.replace(gpipe, repeats=2)
    return {
        "scan, every device has all": {"remat": nn.Remat()},
        "`fsdp=nn.FSDP('data', prefetch=0)`": {"fsdp": nn.FSDP("data", prefetch=0)},
        "`fsdp='data'`, a layer ahead": {"fsdp": "data"},
        "GPipe": {"run": gpipe, "remat": nn.Remat()},
        "circular, `repeats=2`": {"run": circular, "remat": nn.Remat()},
        "circular, `store='circular'`": {
            "run": circular,
            "remat": nn.Remat(),
            "store": "circular",
        },
        "1F1B": {"run": gpipe},
    }


@dataclasses.dataclass
class Ready:
    """A compiled step: call it for the next one.

    Attributes:
      step: variables and a batch to variables.
      variables: as they are now.
      rows: the batch.
      held, temporary: bytes on one device: of the arguments, and next to them.
    """

    step: Callable[..., Any]
    variables: Any
    rows: jax.Array
    held: int
    temporary: int

    def __call__(self) -> None:
        self.variables = jax.block_until_ready(self.step(self.variables, self.rows))


def ready(name: str, options: dict[str, Any]) -> Ready:
    """Compiles one way."""
    stack = nn.Stack(Block(), depth=DEPTH, **options)
    piped, schedule = "run" in options, "1f1b" if name == "1F1B" else "gpipe"
    x = jax.random.normal(jax.random.key(1), (BATCH, WIDTH))
    devices = jax.devices()[:DEVICES]
    axis = "stage" if piped else "data"
    mesh = jax.make_mesh((DEVICES,), (axis,), axis_types=(AxisType.Auto,), devices=devices)
    whole = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(axis))
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x)
    # A stage has its layers, in FSDP each device a part of all, else each device has all.
    places = jax.tree.map(lambda _: split if piped else whole, shapes)
    if "fsdp" in options:
        places = nn.fsdp_sharding(shapes, mesh)

    def loss(y: jax.Array) -> jax.Array:
        return jnp.mean(y**2)

    slopes = jax.value_and_grad(lambda variables, x: loss(stack.apply(variables, x)))
    if piped:
        slopes = nn.pipeline_value_and_grad(stack, loss, schedule)

    def step(variables: Any, x: jax.Array) -> Any:
        return jax.tree.map(lambda p, g: p - 0.1 * g, variables, slopes(variables, x)[1])

    with jax.set_mesh(mesh):
        variables = jax.jit(stack.init, out_shardings=places)(jax.random.key(0), x)
        rows = jax.device_put(x, whole if piped else split)
        run = jax.jit(step, out_shardings=places, donate_argnums=0).lower(variables, rows).compile()
    memory = run.memory_analysis()
    held, temporary = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return Ready(run, variables, rows, held, temporary)


def measured(settings: Settings) -> dict[str, dict[str, Any]]:
    """Of each way the seconds in each round, and the bytes on one device."""
    found = {name: ready(name, options) for name, options in ways().items()}
    first = None
    for name, way in found.items():
        way()
        # A circular pipeline has its layers in another order.
        (layers,) = way.variables["params"].values()
        kernels = np.asarray(layers["Dense_0"]["kernel"]).reshape(DEPTH, -1)
        norms = np.sort(np.linalg.norm(kernels, axis=1))
        first = norms if first is None else first
        if not np.allclose(norms, first, rtol=1e-5):
            raise RuntimeError(f"{name} makes another step")
    samples = interleave(found, settings, wall=True)
    return {
        name: {"seconds": samples[name].seconds, "held": way.held, "temporary": way.temporary}
        for name, way in found.items()
    }


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=Settings.rounds)
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", DEVICES)
    print(json.dumps(measured(Settings(rounds=options.rounds))))


if __name__ == "__main__":
    main()
