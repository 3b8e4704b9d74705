"""`liftax forward`."""

import numpy as np
import pytest

from liftax.cli import main
from liftax.recipes import composed_lifts_forward


@pytest.fixture
def batch(tmp_path):
    array = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    path = tmp_path / "batch.npy"
    np.save(path, array)
    return path, array


def lines(capsys):
    shown = capsys.readouterr()
    assert shown.err == ""
    return shown.out.splitlines()


def test_on_digits(capsys):
    from sklearn.datasets import load_digits

    assert main(["forward"]) == 0
    shown = lines(capsys)
    assert shown[0] == "input: handwritten digits (scikit-learn), 1,797 x 64"
    kernel = next(line for line in shown if "kernel" in line)
    assert "(3, 64, 64)" in kernel
    assert "axis 0 from scan" in kernel
    assert kernel.endswith("49,152")
    assert any("vmap" in line and "params shared" in line for line in shown)
    assert "12,480 parameters, 49,920 bytes" in shown
    images = (load_digits().images / 16).astype(np.float32).reshape(-1, 64)
    expected = np.asarray(composed_lifts_forward(0, images, 3, 64), np.float64)
    assert "activation: 1,797 x 64, flattened to (115008,)" in shown
    figures = next(line for line in shown if line.startswith("mean "))
    assert f"mean {expected.mean():.6g}" in figures
    assert f"max {expected.max():.6g}" in figures


def test_writes_the_activation(capsys, tmp_path, batch):
    path, array = batch
    output = tmp_path / "out.npy"
    argv = ["forward", "--input", str(path), "--output", str(output), "--seed", "-3"]
    assert main([*argv, "--layers", "2"]) == 0
    assert lines(capsys)[-1] == f"wrote {output}"
    np.testing.assert_array_equal(np.load(output), composed_lifts_forward(-3, array, 2, 4))


def test_csv_equals_npy(capsys, tmp_path, batch):
    path, array = batch
    table = tmp_path / "batch.csv"
    np.savetxt(table, array, delimiter=",")
    for source, output in ((path, "a.npy"), (table, "b.npy")):
        argv = ["forward", "--input", str(source), "--output", str(tmp_path / output)]
        assert main(argv) == 0
    lines(capsys)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (b"", [], "the file is empty"),
        (b"1,2\n3\n", [], "line 2 has 1 numbers"),
        (b"1,nan\n", [], "not finite"),
        (
            b"1,2\n",
            ["--layers", "0"],
            "argument --layers: must be at least 1 and below 2**31, not 0",
        ),
        (b"1,2\n", ["--layers", "-4"], "and below 2**31, not -4"),
        (
            b"1,2\n",
            ["--layers", str(2**40)],
            "argument --layers: must be at least 1 and below 2**31",
        ),
        (b"1," * 63 + b"2\n", ["--layers", str(2**31 - 1)], "ask for fewer --layers"),
        (b"1,2\n", ["--seed", str(2**70)], "argument --seed: must fit in 64 bits"),
        (b"3e38,3e38,3e38,3e38\n" * 9, ["--layers", "9"], "too large for float32"),
        (None, [], "No such file"),
    ],
)
def test_bad_input_leaves_the_output_alone(capsys, tmp_path, content, options, message):
    source, output = tmp_path / "x.csv", tmp_path / "out.npy"
    output.write_bytes(b"precious")
    if content is not None:
        source.write_bytes(content)
    argv = ["forward", "--input", str(source), "--output", str(output), *options]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("liftax forward: ")
    assert error.count("\n") == 1
    assert output.read_bytes() == b"precious"
    assert not list(tmp_path.glob(".*"))


def test_bad_output_is_told_before_the_work(capsys, tmp_path):
    argv = ["forward", "--input", "/nowhere.npy", "--output", str(tmp_path / "no" / "x.npy")]
    assert main(argv) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "does not exist" in shown.err
