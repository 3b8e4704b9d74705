"""`liftax convert`: both directions, on every kind of checkpoint; one line for what is wrong."""

import json
import os
import re
import tracemalloc
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import optax
import pytest
import safetensors.numpy

import liftax as nn
from liftax.checkpoint import write as writing
from liftax.cli import main
from liftax.stack import arrays

rng = np.random.default_rng(0)
BLOCKS = {
    "w": rng.normal(size=(2, 3, 4)).astype(np.float32),
    "inner": {"b": rng.normal(size=(2, 3)).astype(np.float32)},
}
PARAMS = {"blocks": BLOCKS, "head": {"b": np.ones(5, np.float32)}}
STATE = {"params": PARAMS, "opt": optax.adam(0.1).init(PARAMS), "step": 7}
ALONG_1 = nn.Stacking.of("blocks", 3, axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linen.msgpack").write_bytes(flax.serialization.to_bytes(STATE))
    nn.save_checkpoint("ours.safetensors", STATE, layout=ALONG_1)
    return tmp_path


def convert(*argv, code=0):
    assert main(["convert", *map(str, argv)]) == code


def contents():
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def refused(capsys, message, *argv):
    """The command fails with one line, and no file is made or changed."""
    before = contents()
    capsys.readouterr()
    convert(*argv, code=2)
    shown = capsys.readouterr().err
    assert re.search(message, shown), shown
    assert shown.startswith("liftax convert: ")
    assert shown.count("\n") == 1
    assert contents() == before


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.shape(a) == np.shape(b)
        np.testing.assert_array_equal(a, b)


LINEN = ("linen.msgpack", "--stack", "blocks", "--axis", 1)


def test_linen_to_layers_and_back(folder, capsys):
    convert("linen.msgpack", "a.safetensors", "--layout", "layers", "--stack", "blocks", *LINEN[3:])
    shown = capsys.readouterr().out
    assert "source: linen.msgpack, msgpack, 10 tensors" in shown
    assert "layers: blocks x 3, one subtree a layer" in shown
    assert "wrote a.safetensors: 22 tensors" in shown
    found = nn.load_checkpoint("a.safetensors", verify=True)
    expected = nn.to_layers(STATE, ALONG_1)
    same(found["params"], expected["params"])
    same(found["opt"]["0"]["mu"], expected["opt"][0].mu)
    assert found["step"] == 7

    # Back: the file says how its layers lie, and keeps every checksum.
    convert("a.safetensors", "b.safetensors", "--layout", "stacked", "--axis", 1)
    again = capsys.readouterr().out
    same(nn.load_checkpoint("b.safetensors", like=STATE), STATE)

    def checksums(text):
        return dict(re.findall(r"^(blocks/layers_\d).* (\w{16})$", text, re.MULTILINE))

    assert checksums(shown) == checksums(again)
    assert len(checksums(shown)) == 3


def test_in_place_and_to_another_axis(folder):
    old = os.stat("ours.safetensors").st_mode
    convert("ours.safetensors", "ours.safetensors", "--layout", "stacked", "--axis", -1)
    found = nn.load_checkpoint("ours.safetensors", verify=True)
    assert found["params"]["blocks"]["w"].shape == (2, 4, 3)
    np.testing.assert_array_equal(found["params"]["blocks"]["w"], BLOCKS["w"].swapaxes(1, 2))
    assert os.stat("ours.safetensors").st_mode == old
    convert("ours.safetensors", "ours.safetensors", "--layout", "layers")
    convert("ours.safetensors", "ours.safetensors", "--layout", "stacked")
    assert nn.load_checkpoint("ours.safetensors")["params"]["blocks"]["w"].shape == (2, 4, 3)
    assert sorted(os.listdir()) == ["linen.msgpack", "ours.safetensors"]


def test_layers_of_other_names(folder):
    layers = {f"block_{i}": {"w": np.full(3, i)} for i in range(12)}
    (folder / "x.msgpack").write_bytes(flax.serialization.to_bytes({"params": {"net": layers}}))
    convert("x.msgpack", "x.safetensors", "--layout", "stacked", "--stack", "net=net/block_{}")
    found = nn.load_checkpoint("x.safetensors")["params"]["net"]["w"]
    np.testing.assert_array_equal(found[:, 0], np.arange(12))
    convert("x.safetensors", "y.safetensors", "--layout", "layers")
    same(nn.load_checkpoint("y.safetensors"), {"params": {"net": layers}})


def test_the_whole_model_is_the_stack(folder):
    layers = {f"Block_{i}": {"w": np.full(3, i)} for i in range(2)}
    (folder / "x.msgpack").write_bytes(flax.serialization.to_bytes({"params": layers}))
    convert("x.msgpack", "x.safetensors", "--layout", "stacked", "--stack", "=Block_{}")
    assert nn.load_checkpoint("x.safetensors")["params"]["w"].shape == (2, 3)
    convert("x.safetensors", "y.safetensors", "--layout", "layers")
    same(nn.load_checkpoint("y.safetensors"), {"params": layers})


def test_stacks_in_stacks(folder, capsys):
    array = np.arange(24).reshape(2, 3, 4)
    tree = {"params": {"outer": {"in": {"w": array}, "b": array[:, 0, 0]}}}
    (folder / "x.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    stacks = ("--stack", "outer/in", "--stack", "outer")
    convert("x.msgpack", "x.safetensors", "--layout", "layers", *stacks)
    found = nn.load_checkpoint("x.safetensors")["params"]["outer"]
    np.testing.assert_array_equal(found["layers_1"]["in"]["layers_2"]["w"], array[1, 2])
    convert("x.safetensors", "y.safetensors", "--layout", "stacked")
    same(nn.load_checkpoint("y.safetensors"), tree)
    # And from layers that nothing is said of.
    layers = flax.serialization.to_bytes(nn.load_checkpoint("x.safetensors"))
    (folder / "z.msgpack").write_bytes(layers)
    convert("z.msgpack", "z.safetensors", "--layout", "stacked", *stacks)
    same(nn.load_checkpoint("z.safetensors"), tree)


MODEL = """
import liftax as nn

class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x)

class Model(nn.Module):
    depth: int = 3
    @nn.compact
    def __call__(self, x):
        x = nn.Stack([Block(), Block()], repeats=2, after=[Block()], name="net", param_axis=1)(x)
        return nn.Dense(2)(x)

class Plain(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(x)
"""


def test_the_layout_of_a_model(folder, capsys):
    (folder / "some_model.py").write_text(MODEL)
    shape = {"Dense_0": {"kernel": np.ones((4, 4)), "bias": np.ones(4)}}
    layers = {f"layers_{i}": jax.tree.map(lambda a, i=i: a * i, shape) for i in range(5)}
    tree = {"params": {"net": layers, "Dense_0": {"bias": np.ones(2)}}}
    (folder / "x.msgpack").write_bytes(flax.serialization.to_bytes(tree))
    model = ("--model", "some_model.py:Model", "--args", "f32[2,4]")
    convert("x.msgpack", "x.safetensors", "--layout", "stacked", *model)
    found = nn.load_checkpoint("x.safetensors")["params"]["net"]
    assert sorted(found) == ["after_0", "block_0", "block_1"]
    np.testing.assert_array_equal(found["block_1"]["Dense_0"]["bias"], [[1, 3]] * 4)
    convert("x.safetensors", "y.safetensors", "--layout", "layers")
    same(nn.load_checkpoint("y.safetensors"), tree)

    # From other names, and into an axis of one's own.
    other = {"params": {"deep": {f"b{i}": layers[f"layers_{i}"] for i in range(5)}}}
    stack = nn.Stacking.of("deep", 5, names="b{}")
    (folder / "z.msgpack").write_bytes(flax.serialization.to_bytes(nn.to_stacked(other, stack)))
    names = ("--stack", "deep=net/layers_{}", "--axis", 0)
    convert("z.msgpack", "z.safetensors", "--layout", "stacked", *names, *model)
    same(
        nn.load_checkpoint("z.safetensors")["params"]["net"]["block_0"]["Dense_0"]["bias"],
        np.array([[0.0] * 4, [2.0] * 4]),
    )

    plain = ("--model", "some_model.py:Plain", "--args", "f32[2,4]")
    to = ("x.msgpack", "q.safetensors", "--layout", "stacked")
    refused(capsys, "Plain has no stacked layers: neither a Stack nor a scan", *to, *plain)
    refused(capsys, "there is no module 'nowhere'", *to, "--model", "nowhere:M")
    refused(capsys, r"Model\(f32\[2\], 3\)", *to, *model[:2], "--args", "f32[2], 3")


def test_dry_run(folder, capsys):
    convert("linen.msgpack", "a.safetensors", "--layout", "layers", *LINEN[1:], "--dry-run")
    shown = capsys.readouterr().out
    assert "nothing written (--dry-run)" in shown
    assert re.search(r"^blocks/layers_2 +6 +120$", shown, re.MULTILINE), shown
    assert not os.path.exists("a.safetensors")


def test_progress_and_metadata_of_others(folder, capsys):
    tree = {f"params/net/{name}": np.ones((2, 3), np.float32) for name in "abc"}
    safetensors.numpy.save_file(tree, "x.safetensors", {"format": "pt"})
    convert("x.safetensors", "y.safetensors", "--layout", "layers", "--stack", "net")
    shown = capsys.readouterr().out
    assert shown.count("tensor ") == 6
    assert "tensor 6/6  name params/net/layers_1/c  bytes 12" in shown
    with safetensors.safe_open("y.safetensors", "numpy") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert list(json.loads(metadata["liftax"])["layers"]) == ["net/layers_0", "net/layers_1"]


def test_one_tensor_in_memory_at_a_time(folder):
    size = 1 << 20
    tree = {"params": {"net": {name: np.ones((4, size), np.uint8) for name in "abcdefgh"}}}
    nn.save_checkpoint("big.safetensors", tree, layout=nn.Stacking.of("net", 4))
    del tree
    for form, axis in (("layers", ()), ("stacked", ("--axis", 1)), ("stacked", ("--axis", 0))):
        tracemalloc.start()
        convert("big.safetensors", "big.safetensors", "--layout", form, *axis)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 2.5 * 4 * size, (form, axis, peak)  # of 32 in all
    assert nn.load_checkpoint("big.safetensors", verify=True)["params"]["net"]["h"].shape[0] == 4


def test_memory_is_flat_in_the_size_of_a_tensor(folder, monkeypatch):
    """Along any axis: rearranged by rows, of which a few are in memory."""
    monkeypatch.setattr(arrays, "BLOCK", 1 << 16)
    tensor = np.random.default_rng(0).integers(0, 255, (4, 64, 1 << 15), np.uint8)
    tree = {"params": {"net": {"w": tensor}}}
    nn.save_checkpoint("big.safetensors", tree, layout=nn.Stacking.of("net", 4))
    for form, axis in (("layers", 0), ("stacked", 1), ("layers", 1), ("stacked", 2), ("layers", 2)):
        tracemalloc.start()
        convert("big.safetensors", "big.safetensors", "--layout", form, "--axis", axis)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 21, (form, axis, peak)  # of 8 MiB
    found = nn.load_checkpoint("big.safetensors", verify=True)["params"]["net"]
    for i, layer in enumerate(found.values()):
        np.testing.assert_array_equal(layer["w"], tensor[i])


# -- what is refused ---------------------------------------------------------------------------

TO = ("a.safetensors", "--layout", "layers")


@pytest.mark.parametrize(
    ("message", "argv"),
    [
        ("does not say where its layers are: give --stack", ("linen.msgpack", *TO)),
        (
            "--stack 'nets': there is neither nets nor nets/la",
            ("linen.msgpack", *TO, "--stack", "nets"),
        ),
        ("write {} for a layer's number", ("linen.msgpack", *TO, "--stack", "blocks=b")),
        (r"params/blocks/w is float32\[2,3,4\]: size 3 along axis 1, where the .* 2 layers", None),
        (
            r"blocks/inner/b has 2 axes and so no layer axis at 2",
            ("linen.msgpack", *TO, "--stack", "blocks", "--axis", 2),
        ),
        (
            "leave one out",
            ("linen.msgpack", *TO, "--stack", "blocks", "--axis", 0, "--source-axis", 1),
        ),
        (
            "says itself where its layers are: leave out --stack",
            ("ours.safetensors", *TO, "--stack", "x"),
        ),
        ("says that its layers are stacked along axis 1", ("ours.safetensors", *TO, "--axis", 0)),
        ("leave out --source-axis", ("ours.safetensors", *TO, "--source-axis", 1)),
        ("none: No such file or directory", ("none", *TO)),
        (
            "the output is a .safetensors file, a .msgpack file",
            ("ours.safetensors", "a.bin", *TO[1:]),
        ),
        ("the folder none does not exist", ("ours.safetensors", "none/a.safetensors", *TO[1:])),
        ("not the directory of an Orbax checkpoint", (".", *TO)),
    ],
)
def test_refused(folder, capsys, message, argv):
    if argv is None:
        nn.save_checkpoint("x.safetensors", {"params": {"blocks": {"a": np.ones(2), **BLOCKS}}})
        argv = ("x.safetensors", *TO, "--stack", "blocks", "--axis", -1)
        message = r"params/blocks/w is float32\[2,3,4\]: size 4 along axis 2, where .* 2 layers"
    refused(capsys, message, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["convert", "a"], "the following arguments are required: DST"),
        (["convert", "a", "b", "--layout", "rows"], "invalid choice: 'rows'"),
        (["convert", "a", "b", "--layout", "layers", "--axis", "x"], "must be a whole number"),
    ],
)
def test_mistyped(argv, message, capsys):
    assert main(argv) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


def test_files_cut_short(folder, capsys):
    whole = (folder / "ours.safetensors").read_bytes()
    (folder / "ours.safetensors").write_bytes(whole[:-8])
    refused(
        capsys, r"(params|opt)/[\w/]+ ends at byte .*: it was cut short", "ours.safetensors", *TO
    )
    whole = (folder / "linen.msgpack").read_bytes()
    (folder / "linen.msgpack").write_bytes(whole[: len(whole) // 2])
    refused(capsys, r"linen.msgpack: .*: opt/0/\w+/[\w/]+: cut short", "linen.msgpack", *TO)


def test_data_that_changed_since(folder, capsys):
    data = bytearray((folder / "ours.safetensors").read_bytes())
    at = data.index(BLOCKS["w"].tobytes())
    data[at + 3 * 4 * 4 + 2 * 4 * 4] ^= 1  # in the second row, third layer
    (folder / "ours.safetensors").write_bytes(data)
    (folder / "a.safetensors").write_bytes(b"as it was")
    refused(capsys, "params/blocks/layers_2/w is damaged: its checksum", "ours.safetensors", *TO)


@pytest.mark.parametrize(
    ("lost", "message"),
    [(0, "neither blocks nor block_0"), (1, "block_1 is missing, but there is block_2")],
)
def test_a_layer_is_missing(folder, capsys, lost, message):
    """A gap in the numbers is no shorter stack."""
    params = {f"block_{i}": {"w": np.ones(2)} for i in range(3) if i != lost}
    Path("gap.msgpack").write_bytes(flax.serialization.to_bytes({"params": params}))
    refused(
        capsys,
        message,
        *("gap.msgpack", "b.safetensors", "--layout", "stacked", "--stack", "blocks=block_{}"),
    )


def test_layers_that_differ(folder, capsys):
    layers = {f"b{i}": {"w": np.ones(3 + (i == 2), np.float32)} for i in range(4)}
    (folder / "x.msgpack").write_bytes(flax.serialization.to_bytes({"params": layers}))
    refused(
        capsys,
        r"x.msgpack: params/b2/w is float32\[4\], but params/b0/w is float32\[3\]",
        *("x.msgpack", "a.safetensors", "--layout", "stacked", "--stack", "net=b{}"),
    )


def test_what_was_written_is_read_back(folder, capsys, monkeypatch):
    """A disk that does not keep what it is given is noticed before anything is replaced."""
    write = writing.write_safetensors

    def forgetful(file, tensors, *rest):
        write(file, tensors, *rest)
        file.seek(-3, os.SEEK_END)
        file.write(b"???")

    monkeypatch.setattr(writing, "write_safetensors", forgetful)
    (folder / "a.safetensors").write_bytes(b"as it was")
    refused(capsys, r"(params|opt)/[\w/]+ was not written as it was read", "ours.safetensors", *TO)


def test_no_room(folder, capsys, monkeypatch):
    import collections
    import shutil

    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 0, 100))
    refused(
        capsys, "a.safetensors: takes .* bytes, and 100 are free there", "ours.safetensors", *TO
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (OSError(28, "No space left on device"), 2, "a.safetensors: No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted; a.safetensors is as it was"),
    ],
)
def test_stopped_midway(folder, capsys, monkeypatch, error, code, message):
    def stopped(file, tensors, *rest):
        file.write(b"half")
        raise error

    monkeypatch.setattr(writing, "write_safetensors", stopped)
    (folder / "a.safetensors").write_bytes(b"as it was")
    convert("ours.safetensors", *TO, code=code)
    assert message in capsys.readouterr().err
    assert (folder / "a.safetensors").read_bytes() == b"as it was"
    assert sorted(os.listdir()) == ["a.safetensors", "linen.msgpack", "ours.safetensors"]
