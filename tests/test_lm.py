"""The language model: one process, several, one of them killed, and what goes wrong."""

from __future__ import annotations

import dataclasses
import os
import random
import resource
import runpy
import signal
import sys
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from helpers.quick import Quick
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from liftax.cli import main as liftax
from liftax.cli._lm import main
from liftax.lm import kept, text
from liftax.lm.launch import launch
from liftax.lm.settings import Settings, TrainingError, parse_mesh
from liftax.lm.worker import Place, Training, join, read_metrics, work

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

TINY: dict[str, Any] = {
    "steps": 8,
    "every": 2,
    "batch": 8,
    "context": 8,
    "width": 8,
    "heads": 2,
    "depth": 2,
    "sample": 0,
    "mesh": (("data", 2),),
    # On a machine that is busy a process is not lost because it is slow.
    "join": 600,
}
ARGUMENTS = [f"--{name}={value}" for name, value in TINY.items() if name not in ("mesh", "sample")]
# `make kills` has more.
KILLS = int(os.environ.get("LIFTAX_KILLS", "2"))


def quiet(*_: object) -> None:
    pass


def state_of(settings: Settings) -> list[np.ndarray]:
    """What the last whole checkpoint of a run has: parameters and moments."""
    one = dataclasses.replace(settings, mesh=(("data", 1),))
    mesh = join(one, Place())
    with jax.set_mesh(mesh):
        shapes = Training(one, Place(), mesh).shapes
        state = kept.Kept(settings.out / "checkpoints", settings.keep, True).restore(shapes)
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def losses(settings: Settings) -> list[float]:
    return [row["loss"] for row in read_metrics(settings.out / "metrics.jsonl")]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, compiled_quickly: None) -> Settings:
    """The run of one process on one device."""
    settings = Settings(tmp_path_factory.mktemp("one"), **{**TINY, "mesh": (("data", 1),)})
    work(settings, Place(), quiet)
    return settings


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    trained, held_out = text.parts()
    first = text.batch(trained, 0, 5, 4, 8)
    assert np.array_equal(first, text.batch(trained, 0, 5, 4, 8))
    assert not np.array_equal(first, text.batch(trained, 0, 6, 4, 8))
    assert len(trained) > 10 * len(held_out) > 100_000
    whole = text.whole().tobytes().decode()
    assert "The standard" in whole and "class ArgumentParser" in whole


def test_one_process_goes_on_where_it_was(tmp_path: Path, capsys: Any) -> None:
    at_once, in_two = tmp_path / "at once", tmp_path / "in two"
    assert main([*ARGUMENTS, "--steps=6", "--sample=8", f"--out={at_once}"]) == 0
    assert main([*ARGUMENTS, "--steps=4", "--sample=0", f"--out={in_two}"]) == 0
    # A checkpoint that was cut short is passed over: the run goes on from the one before it.
    largest = max((in_two / "checkpoints/4").rglob("*"), key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert kept.whole_steps(in_two / "checkpoints") == [2]
    capsys.readouterr()
    assert main([*ARGUMENTS, "--steps=6", "--sample=8", f"--out={in_two}"]) == 0
    assert "going on after step 2\n" in capsys.readouterr().out
    for name in ("metrics.jsonl", "sample.txt"):
        assert (at_once / name).read_bytes() == (in_two / name).read_bytes()
    assert (at_once / "curves.png").read_bytes()[:4] == b"\x89PNG"
    rows = read_metrics(at_once / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 7))
    assert all(row["loss"] < 6 for row in rows) and "held_out" in rows[-1]


def test_the_command(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    seen = []
    monkeypatch.setattr("liftax.cli._lm.work", lambda settings, *_: seen.append(settings))
    assert liftax(["train", "--model=lm", "--steps=7", f"--out={tmp_path}"]) == 0
    assert seen == [Settings(tmp_path, steps=7)]
    for mesh, told in {
        "rows=2": "--mesh expected sizes of data and stage",
        "data=2,data=2": "an axis is there twice",
    }.items():
        assert main([f"--mesh={mesh}", f"--out={tmp_path}"]) == 1
        assert told in capsys.readouterr().err
    assert parse_mesh("data=2,stage=2") == (("data", 2), ("stage", 2))


def test_a_killed_process_changes_no_bit(tmp_path: Path, alone: Settings) -> None:
    settings = Quick(tmp_path / "whole", **TINY)
    launch(settings, 2, quiet)
    expected = state_of(settings)
    draws = random.Random(0)
    per_run = 2 if KILLS <= 2 else 4
    for run in range(-(-KILLS // per_run)):
        killed = dataclasses.replace(settings, out=tmp_path / f"killed {run}")
        plan = dict.fromkeys(draws.sample(range(1, settings.steps), per_run))
        begun = []

        def watch(what: str, value: Any, running: Sequence[BaseProcess], plan=plan, begun=begun):
            if what == "begin":
                begun.append(value)
            if what == "step" and value["step"] in plan:
                del plan[value["step"]]
                os.kill(draws.choice(running).pid, signal.SIGKILL)

        launch(killed, 2, watch)
        assert not plan and len(begun) == per_run + 1
        same = [(out / "metrics.jsonl").read_bytes() for out in (settings.out, killed.out)]
        assert same[0] == same[1]
        last = kept.whole_steps(killed.out / "checkpoints")[0]
        assert last == settings.steps
        for found, wanted in zip(state_of(killed), expected, strict=True):
            assert found.tobytes() == wanted.tobytes()

    # On another number of processes the sums are others, and the losses equal to rounding.
    np.testing.assert_allclose(losses(settings), losses(alone), rtol=1e-5)


def test_stages_in_four_processes(tmp_path: Path, monkeypatch: Any, alone: Settings) -> None:
    def quickly(settings: Settings, *args: Any) -> None:
        launch(Quick(**vars(settings)), *args)

    monkeypatch.setattr("liftax.cli._lm.launch", quickly)
    given = ["--processes=4", "--mesh=data=2,stage=2", "--sample=0", f"--out={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["examples.lm", *ARGUMENTS, "--steps=2", *given])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("examples.lm", run_name="__main__")
    found = losses(Settings(tmp_path))
    np.testing.assert_allclose(found, losses(alone)[:2], rtol=1e-5)


def test_a_process_that_never_joins_is_told(tmp_path: Path, capsys: Any) -> None:
    place = ["--processes=2", "--process-id=0", "--coordinator=localhost:0", "--mesh=data=2"]
    assert main([*place, "--join=1", f"--out={tmp_path}"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("process 0: not all 2 processes joined at localhost:")
    assert told.count("\n") == 1
    with pytest.raises(TrainingError, match="3 devices, which 2 processes cannot share"):
        launch(Settings(tmp_path, mesh=(("data", 3),)), 2, quiet)


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    array = jax.random.normal(jax.random.key(0), (200_000,))
    state = {"x": jax.device_put(array, NamedSharding(mesh, PartitionSpec()))}
    keeper = kept.Kept(tmp_path / "checkpoints", 3, True)
    # No file may be larger than this, as where no room is left.
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(TrainingError, match=r"checkpoints cannot be written: .*\S$") as told:
            keeper.save(1, state)
            keeper.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(told.value)
    assert kept.whole_steps(tmp_path / "checkpoints") == []


def test_a_full_disk_ends_all_processes(tmp_path: Path) -> None:
    begun: list[BaseProcess] = []

    def watch(what: str, value: Any, running: Sequence[BaseProcess]) -> None:
        if what == "begin":
            begun.extend(running)
            for process in running:
                assert process.pid is not None
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (20_000, 20_000))

    with pytest.raises(TrainingError, match=r"checkpoints cannot be written: .*\S$") as told:
        launch(Quick(tmp_path, **TINY), 2, watch)
    assert "\n" not in str(told.value)
    # Once begun and never again, and nobody is left who waits for the other.
    assert len(begun) == 2 and all(process.exitcode is not None for process in begun)
    assert kept.whole_steps(tmp_path / "checkpoints") == []
