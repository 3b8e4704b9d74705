"""One process of a run: it joins the others, trains, and tells what happened."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import liftax as nn

from .. import files
from ..installed import needed
from . import text
from .kept import Kept
from .model import Decoder, loss, sample
from .settings import Settings, TrainingError

Say = Callable[[str, Any], None]
"""Is told what happens: ``joined``, ``step``, ``done``; and ``error`` with a line."""

HELD_OUT_BATCHES = 4


class Place(NamedTuple):
    """Which of the processes this one is.

    Attributes:
      process: its number.
      processes: how many there are.
      address: of the coordinator, ``host:port``; what it is does not matter for one process.
    """

    process: int = 0
    processes: int = 1
    address: str = ""


def join(settings: Settings, place: Place) -> Mesh:
    """Finds the other processes, in bounded time, and makes the mesh of all their devices.

    Raises:
      TrainingError: they have too few devices, or too many.
    """
    # A CPU has as many devices as the mesh asks for, unless it is in use already.
    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", max(1, settings.devices // place.processes))
    if place.processes > 1:
        # If one never comes JAX ends this process: whoever launched it says so.
        jax.distributed.initialize(
            place.address,
            place.processes,
            place.process,
            initialization_timeout=settings.join,
            heartbeat_timeout_seconds=max(10, settings.join // 2),
            shutdown_timeout_seconds=10,
        )
    # One process may have more devices than it was asked to use; of several, each must use all.
    devices = jax.devices()
    if place.processes == 1:
        devices = devices[: settings.devices]
    if len(devices) != settings.devices:
        raise TrainingError(
            f"--mesh asks for {settings.devices} devices; {place.processes} processes have "
            f"{len(devices)}"
        )
    names, sizes = zip(*settings.mesh, strict=True)
    return jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names), devices=devices)


def model_of(settings: Settings) -> Decoder:
    """The decoder, in a pipeline where the mesh has stages, else with its parameters split."""
    run: Any = "scan"
    stages = settings.axis("stage")
    if stages > 1:
        pipeline = getattr(nn, "Pipeline", None)
        if pipeline is None:
            raise TrainingError("--mesh: this liftax has no Pipeline, so no stages")
        run = pipeline(stages=stages, microbatches=2 * stages, axis="stage", rows="data")
    # Inside a pipeline the loop over layers is another one, that gathers nothing.
    split = settings.axis("data") > 1 and stages == 1
    return Decoder(
        settings.context,
        settings.width,
        settings.heads,
        settings.depth,
        run=run,
        fsdp="data" if split else None,
    )


class Training:
    """The state of a run in one process, and its steps."""

    def __init__(self, settings: Settings, place: Place, mesh: Mesh):
        optax = needed("optax", "train", "training needs the package optax")
        self.settings, self.place, self.mesh = settings, place, mesh
        self.model, self.text = model_of(settings), text.parts()
        rows = NamedSharding(mesh, PartitionSpec("data"))
        optimizer = optax.adamw(settings.rate)

        # One jitted program makes parameters and moments, so each device makes its own part alone.
        def made() -> Any:
            tokens = jnp.zeros((settings.batch, settings.context), jnp.int32)
            params = self.model.init(jax.random.key(settings.seed), tokens)["params"]
            return params, optimizer.init(params)

        def step(state: Any, tokens: jax.Array) -> Any:
            params, moments = state
            value, grads = jax.value_and_grad(functools.partial(loss, self.model))(params, tokens)
            updates, moments = optimizer.update(grads, moments, params)
            return (optax.apply_updates(params, updates), moments), value

        shapes = jax.eval_shape(made)
        everywhere = NamedSharding(mesh, PartitionSpec())
        # Moments lie as the parameters that they belong to: their trees have the same names.
        places = nn.fsdp_sharding({"params": shapes}, mesh, "data")["params"]
        self.shapes = jax.tree.map(
            lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at),
            shapes,
            places,
        )
        self.rows = rows
        self.made = jax.jit(made, out_shardings=places)
        # Donated: the old state is used up, and two of them would not fit where one just does.
        self.step = jax.jit(step, donate_argnums=0, out_shardings=(places, everywhere))
        self.value = jax.jit(functools.partial(loss, self.model), out_shardings=everywhere)

    def tokens(self, part: np.ndarray, seed: int, step: int) -> jax.Array:
        """The batch of a step, of which each process makes the rows that its devices hold."""
        size, context = self.settings.batch, self.settings.context
        batch = text.batch(part, seed, step, size, context)
        # Every process makes the whole batch, which is small, and hands over what JAX asks it for.
        return jax.make_array_from_callback(batch.shape, self.rows, lambda index: batch[index])

    def held_out(self, state: Any) -> float:
        """The loss on held-out text."""
        # Always the same batches, so that two of these losses differ by the model alone.
        batches = (self.tokens(self.text[1], 0, i) for i in range(HELD_OUT_BATCHES))
        values = [float(self.value(state[0], tokens)) for tokens in batches]
        return sum(values) / len(values)


class Metrics:
    """The losses of a run, a line of JSON for each step, in one process."""

    def __init__(self, path: Path, begin: int):
        self.path = path
        # What came after the checkpoint that the run goes on from will come again.
        self.rows = [row for row in read_metrics(path) if row["step"] <= begin]
        self.write()

    def add(self, **row: float) -> None:
        self.rows.append(row)

    def write(self) -> None:
        """Replaces the file whole."""
        lines = [json.dumps(row) + "\n" for row in self.rows]
        try:
            with files.replacing(self.path) as (file, _):
                file.write("".join(lines).encode())
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot be written: {error.strerror}") from error


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a file of metrics; none where there is no file."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def work(settings: Settings, place: Place, say: Say) -> None:
    """Trains until the last step, from wherever the folder's checkpoints are.

    Raises:
      TrainingError: what cannot be helped by starting again.
    """
    mesh = join(settings, place)
    say("joined", place.process)
    if settings.batch % settings.axis("data"):
        raise TrainingError(
            f"--batch {settings.batch} cannot be split over data={settings.axis('data')}"
        )
    first = place.process == 0
    with jax.set_mesh(mesh):
        training = Training(settings, place, mesh)
        kept = Kept(settings.out / "checkpoints", settings.keep, first)
        state = kept.restore(training.shapes) if kept.begin else training.made()
        metrics = Metrics(settings.out / "metrics.jsonl", kept.begin) if first else None
        say("begin", kept.begin)
        for step in range(kept.begin + 1, settings.steps + 1):
            tokens = training.tokens(training.text[0], settings.seed, step)
            state, value = training.step(state, tokens)
            # Waits for the step: no process is more than one ahead when another is lost.
            row = {"step": step, "loss": float(value)}
            due = step % settings.every == 0 or step == settings.steps
            if due:
                row["held_out"] = training.held_out(state)
            if metrics is not None:
                metrics.add(**row)
                if due:
                    metrics.write()
            if due:
                kept.save(step, state)
            kept.look()
            say("step", row)
        kept.close()
        _finish(settings, training, state, metrics)
    say("done", settings.steps)


def _finish(settings: Settings, training: Training, state: Any, metrics: Metrics | None) -> None:
    """Writes the sample and the picture."""
    from jax.experimental import multihost_utils

    # A collective: all processes come here, and the first one goes on alone.
    params = state[0]
    if jax.process_count() > 1:
        params = multihost_utils.process_allgather(params, tiled=True)
    if metrics is None:
        return
    draw(metrics.rows, settings.out / "curves.png")
    if settings.sample:
        params = jax.tree.map(np.asarray, params)
        prompt = training.text[1][: settings.context // 4].astype(np.int32)
        length = min(settings.sample, settings.context)
        # The others are ending by now, so that sampling must ask nothing of them.
        mesh = jax.make_mesh((1,), ("data",), devices=jax.local_devices()[:1])
        with jax.set_mesh(mesh):
            found = sample(training.model, params, prompt, jax.random.key(settings.seed), length)
        written = bytes(np.asarray(found).astype(np.uint8)).decode(errors="replace")
        (settings.out / "sample.txt").write_text(written, encoding="utf-8")


def draw(rows: list[dict[str, float]], path: Path) -> None:
    """The picture of the losses by step, of the text trained on and of that held out."""
    needed("matplotlib", "train", "the picture needs the package matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([r["step"] for r in rows], [r["loss"] for r in rows], label="in training", alpha=0.6)
    held = [r for r in rows if "held_out" in r]
    axes.plot([r["step"] for r in held], [r["held_out"] for r in held], "o-", label="held out")
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a byte")
    axes.grid(alpha=0.3)
    axes.legend()
    with files.replacing(path) as (file, _):
        figure.savefig(file, format="png", dpi=120)
