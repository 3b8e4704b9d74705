"""`liftax train`."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from liftax.cli import _digits, _files, main

FILES = ["curves.png", "metrics.csv", "params.safetensors"]


def train(capsys, *argv, code=0):
    assert main(["train", *map(str, argv)]) == code
    return capsys.readouterr()


def tensors(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


@pytest.fixture(scope="module")
def data():
    return _digits.split_digits()


def test_the_split(data):
    assert len(data.images) + len(data.test_images) == 1797
    assert len(data.test_images) == 360
    assert data.images.dtype == np.float32
    assert data.images.min() == 0
    assert data.images.max() == 1
    counts = np.bincount(data.test_labels)
    assert counts.min() >= 34
    rows = {image.tobytes() for image in data.images}
    # Two scans may be alike; the parts of the split are not the same ones.
    assert sum(image.tobytes() in rows for image in data.test_images) < 5


@pytest.mark.parametrize("model", ["stack", "lstm"])
def test_reaches_96_percent(capsys, tmp_path, data, model):
    shown = train(capsys, "--model", model, "--out", tmp_path / "run").out
    lines = shown.splitlines()
    assert lines[0] == "digits: 1,797 images, 1,437 to train on, 360 held out"
    said = re.search(r"test accuracy: ([\d.]+)% \((\d+) of 360 held out\)", shown)
    assert float(said[1]) >= 96.0
    epochs = [line for line in lines if line.startswith("epoch ")]
    assert len(epochs) == 10
    assert "compiling" in lines[lines.index(epochs[0]) - 1]
    both = r"([01]\.\d{4}) in training, ([01]\.\d{4}) held out"
    told = re.fullmatch(rf"epoch 40/40  loss {both}  accuracy {both}", epochs[-1])

    assert sorted(os.listdir(tmp_path / "run")) == FILES
    metrics = np.genfromtxt(tmp_path / "run" / "metrics.csv", delimiter=",", names=True)
    assert metrics.shape == (40,)
    last = [metrics[name][-1] for name in metrics.dtype.names]
    order = (0, 1, 3, 2, 4)  # as in the file, as in the line
    assert [f"{last[i]:.4f}" for i in order[1:]] == list(told.groups())
    assert f"{last[4]:.2%}" == f"{float(said[1]):.2f}%"
    with Image.open(tmp_path / "run" / "curves.png") as picture:
        assert picture.format == "PNG"
        assert picture.size == (960, 432)
    # What was written is the model that was tested.
    arrays, about = tensors(tmp_path / "run" / "params.safetensors")
    about.pop("liftax")
    assert about == {"model": model, "seed": "0", "epoch": "40"}
    assert main(["predict", str(tmp_path / "run" / "params.safetensors")]) == 0
    assert f"accuracy: {said[1]}% ({said[2]} of 360 held out)" in capsys.readouterr().out
    variables: dict = {}
    for name, array in arrays.items():
        *path, last = name.split("/")
        node = variables
        for part in path:
            node = node.setdefault(part, {})
        node[last] = array
    right = _digits.count_right(
        _digits.MODELS[model](), variables, data.test_images, data.test_labels
    )
    assert right == int(said[2])


def test_same_seed_same_parameters(capsys, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train(capsys, "--epochs", 1, "--seed", seed, "--out", tmp_path / name)
    a, b, c = (tensors(tmp_path / name / "params.safetensors")[0] for name in "abc")
    assert a.keys() == b.keys() == c.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not all(np.array_equal(a[name], c[name]) for name in a)
    # The header can be read without the library: it is JSON.
    raw = (tmp_path / "c" / "params.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert header["__metadata__"].items() >= {"model": "stack", "seed": "2", "epoch": "1"}.items()
    assert [3, 64, 64] in [entry.get("shape") for entry in header.values()]


def interrupting(monkeypatch, after):
    """Makes Ctrl-C arrive in the epoch after `after` complete ones."""
    whole = _digits.train

    def train(*args, **keywords):
        for epoch in whole(*args, **keywords):
            if epoch.number > after:
                raise KeyboardInterrupt
            yield epoch

    monkeypatch.setattr("liftax.cli.train.train", train)


def test_interrupted_between_epochs(capsys, monkeypatch, tmp_path):
    interrupting(monkeypatch, after=2)
    shown = train(capsys, "--epochs", 9, "--out", tmp_path, code=130)
    assert shown.err.count("\n") == 1
    assert "interrupted after epoch 2 of 9" in shown.err
    assert tensors(tmp_path / "params.safetensors")[1]["epoch"] == "2"
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()
    assert sorted(os.listdir(tmp_path)) == FILES
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 3


def test_interrupted_before_the_first_epoch(capsys, monkeypatch, tmp_path):
    (tmp_path / "params.safetensors").write_bytes(b"of another run")
    interrupting(monkeypatch, after=0)
    shown = train(capsys, "--out", tmp_path, code=130)
    assert f"interrupted before the first epoch was over; {tmp_path} is as it was" in shown.err
    assert (tmp_path / "params.safetensors").read_bytes() == b"of another run"


def test_interrupted_while_writing(capsys, monkeypatch, tmp_path):
    """The file of the epoch before survives a Ctrl-C in the middle of a write."""
    # Three to a write: the new file, before it is read back and when it is whole, and the metrics.
    syncs = iter([None, None, None, KeyboardInterrupt, *[None] * 9])
    real = os.fsync

    def fsync(handle):
        stop = next(syncs)
        if stop is not None:
            raise stop
        real(handle)

    monkeypatch.setattr(_files.os, "fsync", fsync)
    shown = train(capsys, "--epochs", 4, "--out", tmp_path, code=130)
    assert "interrupted after epoch 2 of 4" in shown.err
    assert tensors(tmp_path / "params.safetensors")[1]["epoch"] == "2"
    assert not list(tmp_path.glob(".*"))


def test_a_real_ctrl_c(tmp_path):
    # A shell's background jobs, and so perhaps this test, are started with Ctrl-C ignored.
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    run = f"{heard}; import runpy; runpy.run_module('liftax', run_name='__main__')"
    argv = [sys.executable, "-c", run, "train", "--epochs", "1000000", "--out", str(tmp_path)]
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        # Piped, a million epochs are ten lines: the file is the sign that training is under way.
        while not (tmp_path / "params.safetensors").exists():
            assert process.poll() is None, process.stderr.read()
            try:
                process.wait(0.1)
            except subprocess.TimeoutExpired:
                continue
        process.send_signal(signal.SIGINT)
        try:
            _, error = process.communicate(timeout=600)
        finally:
            process.kill()
    assert process.returncode == 130
    assert re.fullmatch(r"liftax train: interrupted after epoch \d+ of 1000000; .*\n", error)
    arrays, about = tensors(tmp_path / "params.safetensors")
    assert all(np.isfinite(array).all() for array in arrays.values())
    assert f"after epoch {about['epoch']} of" in error
    with Image.open(tmp_path / "curves.png") as picture:
        picture.load()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--epochs", "0"], "argument --epochs: must be at least 1 and below 2**31, not 0"),
        (["--epochs", "-1"], "below 2**31, not -1"),
        (["--seed", str(2**64)], "argument --seed: must fit in 64 bits"),
        (["--out", __file__], "is a file, not a folder"),
        (["--out", f"{__file__}/deeper"], "cannot be made: Not a directory"),
    ],
)
def test_bad_arguments(capsys, argv, message):
    shown = train(capsys, *argv, code=2)
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
