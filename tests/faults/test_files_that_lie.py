"""Checkpoints that are damaged or crafted, and destinations that cannot be: one line, nothing made.

Whatever a file says, time and memory stay in proportion to it, and nothing is half there.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import flax.serialization
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liftax as nn
from liftax.checkpoint.files import open_checkpoint
from liftax.cli import main
from liftax.errors import CheckpointError, LiftaxError

BLOCKS = nn.Stacking.of("blocks", 2)
VARIABLES = {
    "params": {
        "blocks": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)},
        "head": {"bias": np.ones(3, np.float32)},
    },
    "step": 7,
    "note": "first",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def convert(capsys, *argv):
    code = main(["convert", *argv])
    return code, capsys.readouterr().err


def refused(capsys, *argv):
    """The one line with which the command refuses."""
    code, err = convert(capsys, *argv)
    assert code == 2 and err.count("\n") == 1, (code, err)
    return err


def crafted(path, header, data=b""):
    text = json.dumps(header).encode()
    Path(path).write_bytes(struct.pack("<Q", len(text)) + text + data)


def saved():
    nn.save_checkpoint("a.safetensors", VARIABLES, layout=BLOCKS)
    return Path("a.safetensors").read_bytes()


# -- what carries sums is held against them ------------------------------------------------------


def test_a_flip_at_every_byte(capsys):
    """Nothing that differs from what was written is ever taken for it, by no command."""
    whole = saved()
    meant = nn.load_checkpoint("a.safetensors", form="layers", verify=True)
    written = json.dumps(meant, default=repr, sort_keys=True)
    unseen = []
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << (at % 7)
        Path("b.safetensors").write_bytes(damaged)
        try:
            found = nn.load_checkpoint("b.safetensors", form="layers", verify=True)
        except (LiftaxError, UnicodeError):
            continue
        if json.dumps(found, default=repr, sort_keys=True) != written:
            unseen.append(at)
    assert not unseen


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"params/head/bias"', '"params/heaf/bias"'),  # of a tensor
        ("layers_1", "layers_7"),  # of a layer
        ('\\"step\\":7', '\\"step\\":6'),  # a number that is in no tensor
        ("first", "worst"),
        ('{"liftax"', '{"liftay"'),
    ],
)
def test_names_layouts_and_values_have_sums(capsys, old, new):
    whole = saved()
    assert old.encode() in whole
    for count in (1, -1):
        damaged = whole.replace(old.encode(), new.encode(), count)
        Path("b.safetensors").write_bytes(damaged)
        for form in ("layers", "stacked"):
            stack = ["--stack", "blocks"] if "liftay" in new else []
            refused(capsys, "b.safetensors", "c.safetensors", "--layout", form, *stack)
        with pytest.raises(CheckpointError, match="damaged|missing|lies inside|not a whole"):
            nn.load_checkpoint("b.safetensors", verify=True)
        assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors"]


def test_files_without_a_sum_of_what_they_say_are_read(capsys):
    whole = saved()
    (size,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + size])
    about = json.loads(header["__metadata__"]["liftax"])
    del about["sum"]
    for stacking in about["stackings"]:
        del stacking["mark"]
    header["__metadata__"]["liftax"] = json.dumps(about)
    crafted("old.safetensors", header, whole[8 + size :])
    found = nn.load_checkpoint("old.safetensors", form="layers", verify=True)
    assert found["step"] == 7 and len(found["params"]["blocks"]) == 2
    assert convert(capsys, "old.safetensors", "new.safetensors", "--layout", "layers") == (0, "")


# -- sizes that are out of proportion -------------------------------------------------------------

SIZES = {
    "axes": ([1] * 70, 4, "70 axes"),
    "too large": ([2**40, 0, 2**40], 0, "larger than any memory"),
    "layers of nothing": ([2**31, 0], 0, "does not tell how many layers"),
    "many layers of nothing": ([200_000, 0], 0, "does not tell how many layers"),
}


@pytest.mark.parametrize("case", SIZES)
def test_shapes_are_checked_before_work(capsys, case):
    shape, size, message = SIZES[case]
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}
    crafted("a.safetensors", {"params/blocks/w": entry}, bytes(size))
    array = msgpack.packb([shape, "float32", bytes(size)])
    tree = {"params": {"blocks": {"w": msgpack.ExtType(1, array)}}}
    Path("a.msgpack").write_bytes(msgpack.packb(tree))
    part = msgpack.ExtType(1, msgpack.packb([[size // 4], "float32", bytes(size)]))
    axes = {str(i): length for i, length in enumerate(shape)}
    chunks = {"__msgpack_chunked_array__": True, "shape": axes, "chunks": {"0": part}}
    Path("b.msgpack").write_bytes(msgpack.packb({"params": {"blocks": {"w": chunks}}}))
    for source in ("a.safetensors", "a.msgpack", "b.msgpack"):
        found = refused(capsys, source, "o.safetensors", "--layout", "layers", "--stack", "blocks")
        assert message in found or "not a whole" in found
    assert not Path("o.safetensors").exists()


def test_an_empty_array_of_few_layers_is_converted(capsys):
    entry = {"dtype": "F32", "shape": [3, 0], "data_offsets": [0, 0]}
    crafted("a.safetensors", {"params/blocks/w": entry})
    options = ["--layout", "layers", "--stack", "blocks"]
    assert convert(capsys, "a.safetensors", "o.safetensors", *options) == (0, "")
    assert len(nn.load_checkpoint("o.safetensors")["params"]["blocks"]) == 3


def test_lists_of_small_numbers(capsys):
    """A byte each in the file, a hundred and more in memory."""
    for values in ([1] * 300_000, [{}] * 300_000):
        Path("a.msgpack").write_bytes(msgpack.packb({"params": values}))
        found = refused(capsys, "a.msgpack", "o.safetensors", "--layout", "layers", "--stack", "w")
        assert "values that are in no array" in found
    many = {"params": {f"w_{i}": {"a": np.zeros(1, np.int8)} for i in range(2000)}}
    assert len(open_checkpoint(flax.serialization.to_bytes(many)).tree["params"]) == 2000


@given(st.binary(max_size=60), st.sampled_from([b"\x81\xa1a", b"\xdf", b"\xc7"]))
@settings(max_examples=150, deadline=None)
def test_bytes_that_nobody_wrote(rest, head):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        open_checkpoint(head + rest)
    except CheckpointError:
        pass
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


# Reads that Orbax left under way end when they are forgotten, now and then only after the command.
@pytest.mark.filterwarnings(
    "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
)
def test_halves_of_the_files_of_orbax(capsys, folder):
    """Each ends the command with one line, or the checkpoint is converted and nothing is said."""
    ocp.PyTreeCheckpointer().save(folder / "whole", {"params": VARIABLES["params"]})
    options = ["o.safetensors", "--layout", "layers", "--stack", "blocks"]
    files = [p.relative_to("whole") for p in Path("whole").rglob("*") if p.is_file()]
    codes = {}
    for file in files:
        shutil.copytree("whole", "half", dirs_exist_ok=True)
        half = Path("half", file)
        half.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
        code, err = convert(capsys, "half", *options)
        assert (code, err.count("\n")) in ((2, 1), (0, 0)), (file, err)
        codes[str(file)] = code
        shutil.rmtree("half")
    assert codes["_CHECKPOINT_METADATA"] == codes["manifest.ocdbt"] == codes["_METADATA"] == 2


# -- what could not be read back ------------------------------------------------------------------


def test_a_name_that_is_none():
    with pytest.raises(CheckpointError, match="at the top is called ''"):
        nn.save_checkpoint("a.safetensors", {"": np.ones(3), "params": np.ones(2)})
    with pytest.raises(CheckpointError, match="at the top is called ''"):
        nn.save_checkpoint("a.safetensors", {"": np.ones(3)})
    assert not os.listdir()
    nn.save_checkpoint("a.safetensors", {"a": {"": np.ones(3)}, "": {"b": np.ones(2)}})
    assert sorted(nn.load_checkpoint("a.safetensors")) == ["", "a"]


# -- destinations ---------------------------------------------------------------------------------


@pytest.mark.parametrize("letter", ["x", "é"])
def test_long_names(capsys, letter):
    saved()
    tail = ".safetensors"
    longest = letter * ((255 - len(tail)) // len(letter.encode())) + tail
    assert convert(capsys, "a.safetensors", longest, "--layout", "layers") == (0, "")
    found = refused(capsys, "a.safetensors", letter * 300 + tail, "--layout", "layers")
    assert "File name too long" in found
    assert sorted(os.listdir()) == sorted(["a.safetensors", longest])


def test_links_and_what_is_no_file(capsys):
    saved()
    os.symlink("two.safetensors", "one.safetensors")
    os.symlink("one.safetensors", "two.safetensors")
    os.mkfifo("pipe.safetensors")
    for target, why in (("one", "symbolic links"), ("pipe", "is no file")):
        found = refused(capsys, "a.safetensors", f"{target}.safetensors", "--layout", "layers")
        assert why in found
    # A pipe that nobody writes to is not waited for.
    found = refused(capsys, "pipe.safetensors", "b.safetensors", "--layout", "layers")
    assert "neither a file nor a directory" in found
    assert len(os.listdir()) == 4


def test_names_are_printed_as_text(capsys):
    found = refused(capsys, "no\x1b[31m\nfile", "b.safetensors", "--layout", "layers")
    assert "\x1b" not in found and "\\x1b[31m" in found
    saved()
    os.rename("a.safetensors", "a\x1b[2J.safetensors")
    main(["convert", "a\x1b[2J.safetensors", "b\x1b[2J.safetensors", "--layout", "layers"])
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err and "wrote b\\x1b[2J.safetensors" in out


def test_what_a_killed_run_left_is_removed(capsys):
    saved()
    script = """
        import os, sys, liftax.files as files, pathlib
        with files.replacing(pathlib.Path("b.safetensors")) as (file, temporary):
            file.write(b"half"), file.flush(), print(temporary, flush=True)
            sys.stdin.read()
    """
    run = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        left = Path(process.stdout.readline().strip())
        # While it is written, another run for the same file leaves it alone.
        assert convert(capsys, "a.safetensors", "b.safetensors", "--layout", "layers") == (0, "")
        assert left.exists()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert left.exists()
    assert convert(capsys, "a.safetensors", "c.safetensors", "--layout", "layers") == (0, "")
    assert left.exists()  # it is none of c's
    assert convert(capsys, "a.safetensors", "b.safetensors", "--layout", "layers") == (0, "")
    assert sorted(os.listdir()) == ["a.safetensors", "b.safetensors", "c.safetensors"]
