"""Linen's msgpack and Orbax written: Linen and Orbax read them, sums are in them, and hold."""

import hashlib
import os
import re
from pathlib import Path

import flax.serialization
import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import liftax as nn
from liftax.checkpoint import write as writing
from liftax.checkpoint.files import open_checkpoint, verify_sums
from liftax.checkpoint.tensors import read_all
from liftax.cli import main
from liftax.errors import LiftaxError

draw = np.random.default_rng(0)
BLOCKS = {"w": draw.normal(size=(2, 3, 4)).astype(np.float32)}
PARAMS = {"blocks": BLOCKS, "head": {"b": np.ones(5, jax.numpy.bfloat16), "s": np.float32(2)}}
STATE = {"params": PARAMS, "opt": optax.adam(0.1).init(PARAMS), "step": 7, "note": "a text"}
AT = nn.Stacking.of("blocks", 3, axis=1)


def convert(*argv, code=0):
    assert main(["convert", *map(str, argv)]) == code


@pytest.fixture
def ours(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    state = jax.tree.map(lambda x: x, STATE)
    state["params"]["blocks"] = {"w": BLOCKS["w"]}
    nn.save_checkpoint("ours.safetensors", state, layout=AT)
    return state


def test_msgpack_is_linens(ours, capsys):
    convert("ours.safetensors", "linen.msgpack", "--layout", "stacked")
    raw = Path("linen.msgpack").read_bytes()
    restored = flax.serialization.from_bytes(ours, raw)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(restored), strict=True):
        assert np.asarray(a).dtype == np.asarray(b).dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    # It says its own layout: nothing more has to be said on the way back.
    convert("linen.msgpack", "back.safetensors", "--layout", "layers")
    convert("linen.msgpack", "linen.msgpack", "--layout", "layers")
    found = nn.load_checkpoint("linen.msgpack", form="stacked", like=ours, verify=True)
    assert jax.tree.all(jax.tree.map(lambda a, b: np.array_equal(a, b), found, ours))
    assert open_checkpoint(Path("linen.msgpack")).checksums
    capsys.readouterr()


def test_orbax_reads_what_is_written(ours, capsys):
    convert("ours.safetensors", "orbax", "--layout", "stacked")
    found = ocp.PyTreeCheckpointer().restore(Path("orbax").absolute())
    np.testing.assert_array_equal(found["params"]["blocks"]["w"], BLOCKS["w"])
    again = nn.load_checkpoint("orbax", form="stacked", like=ours, verify=True)
    assert again["step"] == 7 and again["note"] == "a text"
    convert("orbax", "back.safetensors", "--layout", "layers")
    capsys.readouterr()
    convert("ours.safetensors", "orbax", "--layout", "stacked", code=2)
    assert "is there already" in capsys.readouterr().err
    assert not [name for name in os.listdir() if name.startswith(".")]


def test_an_interrupted_directory_is_not_there(ours, monkeypatch, capsys):
    def stopped(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_orbax", stopped)
    convert("ours.safetensors", "orbax", "--layout", "layers", code=130)
    assert sorted(os.listdir()) == ["ours.safetensors"]
    capsys.readouterr()


def test_every_flipped_byte_of_msgpack_is_noticed(tmp_path):
    """Arrays, names, the layout and plain values: the sums in the file are of all of them."""
    tree = {"params": {"blocks": {"w": np.arange(6, dtype=np.float32).reshape(3, 2)}}, "n": 300}
    plan = writing.planned(tree_of(tree), nn.Stacking.of("blocks", 3))
    path = tmp_path / "a.msgpack"
    writing.write(path, plan, kind="msgpack")
    raw = path.read_bytes()
    unnoticed = []
    for i in range(len(raw)):
        damaged = raw[:i] + bytes([raw[i] ^ (1 << (i % 8))]) + raw[i + 1 :]
        try:
            found = open_checkpoint(damaged)
            verify_sums(found)
            if found.checksums:
                same = nn.load_checkpoint(damaged, verify=True)
                assert same["n"] == 300
                np.testing.assert_array_equal(
                    same["params"]["blocks"]["w"], tree["params"]["blocks"]["w"]
                )
            else:
                unnoticed.append(i)
        except LiftaxError:
            pass
    assert unnoticed == []


@pytest.mark.parametrize("kind", ["msgpack", "safetensors"])
def test_checksums_as_the_first_files_have_them(tmp_path, kind):
    """Those do not name how they were made; what is made of such a file is as it is."""
    layers = [np.arange(2, dtype=np.float32) + i for i in range(3)]
    tree = {"params": {"blocks": {"w": np.stack(layers)}}}
    path = tmp_path / f"a.{kind}"
    old = {"params/blocks/layers_0/w": "0" * 16}
    at = nn.Stacking.of("blocks", 3)
    writing.write(path, writing.planned(tree_of(tree), at, recorded=old), kind=kind)
    expected = {
        f"params/blocks/layers_{i}/w": hashlib.blake2b(
            b"float32[2]" + layer.tobytes(), digest_size=8
        ).hexdigest()
        for i, layer in enumerate(layers)
    }
    assert open_checkpoint(path).checksums == expected
    again = tmp_path / "b.safetensors"
    convert(str(path), str(again), "--layout", "layers")
    assert open_checkpoint(again).checksums == expected
    nn.load_checkpoint(again, verify=True)
    data = bytearray(path.read_bytes())
    at = data.index(layers[1].tobytes())
    path.write_bytes(data[:at] + b"x" + data[at + 1 :])
    with pytest.raises(LiftaxError, match="layers_1/w is damaged: its checksum is"):
        nn.load_checkpoint(path, verify=True)
    new = tmp_path / "new.safetensors"
    nn.save_checkpoint(new, tree)
    (found,) = open_checkpoint(new).checksums.values()
    assert re.fullmatch("sha256:[0-9a-f]{16}", found)


def tree_of(tree):
    from liftax.checkpoint.files import _wrapped

    return _wrapped(tree)


def test_dry_run_compares_sums(ours, capsys):
    raw = bytearray(Path("ours.safetensors").read_bytes())
    raw[-1] ^= 1
    Path("ours.safetensors").write_bytes(raw)
    convert("ours.safetensors", "a.safetensors", "--layout", "layers", "--dry-run", code=2)
    assert "is damaged: its checksum" in capsys.readouterr().err


def test_a_source_that_is_cut_while_it_is_read(ours):
    """A map that is touched behind the end of its file ends the process: it is not touched."""
    for source in ("ours.safetensors", "linen.msgpack"):
        if source.endswith("msgpack"):
            Path(source).write_bytes(flax.serialization.to_bytes(ours))
        found = open_checkpoint(Path(source))
        os.truncate(source, 200)
        with pytest.raises(LiftaxError, match="cut short while it was read: to 200 bytes"):
            read_all(found.tree)


def test_packages_are_asked_for_first(ours, monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    convert("nowhere.safetensors", "orbax", "--layout", "layers", code=2)
    shown = capsys.readouterr().err
    assert "orbax" in shown and "pip install" in shown and "nowhere" not in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("ours.safetensors", "a.msgpack"), "are required: --layout (or --to-hf)"),
        (("ours.safetensors", "a.safetensors", "--to-hf", "gpt9"), "there are gemma, gpt2, llama"),
        (("ours.safetensors", "a.msgpack", "--to-hf", "gpt2"), "go into a .safetensors file"),
        (("ours.safetensors", "a.safetensors", "--to-hf", "gpt2"), "has no name in the table"),
    ],
)
def test_refused(ours, capsys, argv, message):
    convert(*argv, code=2)
    shown = capsys.readouterr().err
    assert message in shown and shown.count("\n") == 1
    assert os.listdir() == ["ours.safetensors"]
