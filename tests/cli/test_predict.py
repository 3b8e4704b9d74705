"""`liftax predict`."""

import numpy as np
import pytest

import liftax as nn
from liftax.cli import _digits, main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", "--epochs", "1", "--out", str(folder)]) == 0
    return folder


def said(capsys, *argv, code=0):
    assert main(["predict", *map(str, argv)]) == code
    return capsys.readouterr()


def test_images_of_ones_own(capsys, run, tmp_path):
    images = _digits.split_digits().test_images[:12].reshape(12, 64)
    np.save(tmp_path / "images.npy", images)
    shown = said(
        capsys,
        run / "params.safetensors",
        "--input",
        tmp_path / "images.npy",
        "--output",
        tmp_path / "read.csv",
    ).out
    assert "12 images" in shown and "... and 2 more" in shown and "accuracy" not in shown
    lines = (tmp_path / "read.csv").read_text().splitlines()
    assert lines[0] == "digit,probability" and len(lines) == 13
    variables = nn.load_checkpoint(run / "params.safetensors")
    logits = np.asarray(_digits.MODELS["stack"]().apply(variables, images.reshape(12, 8, 8)))
    assert [int(line.split(",")[0]) for line in lines[1:]] == logits.argmax(-1).tolist()


def test_what_train_wrote_is_converted_without_more_being_said(capsys, run, tmp_path):
    target = tmp_path / "layers.safetensors"
    source = run / "params.safetensors"
    assert main(["convert", str(source), str(target), "--layout", "layers"]) == 0
    capsys.readouterr()
    last = said(capsys, target).out.splitlines()[-1]
    assert last == said(capsys, source).out.splitlines()[-1]


def test_refused(capsys, run, tmp_path):
    source = run / "params.safetensors"
    np.save(tmp_path / "wide.npy", np.zeros((2, 65), np.float32))
    nn.save_checkpoint(tmp_path / "other.safetensors", {"params": {"a": np.zeros(3)}})
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for argv, message in (
        ([source, "--input", tmp_path / "wide.npy"], "has 65 numbers a row; an image has 64"),
        ([tmp_path / "other.safetensors"], "does not say that it is of lstm or stack"),
        ([tmp_path / "empty.safetensors"], "is empty"),
        ([tmp_path / "none.safetensors"], "No such file"),
        ([source, "--output", tmp_path / "a.txt"], "the output is a .csv file"),
    ):
        shown = said(capsys, *argv, code=2)
        assert message in shown.err and shown.err.count("\n") == 1
