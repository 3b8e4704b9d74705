"""Headers by a grammar, and limits of the system: one line, and nothing half there."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import struct
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import liftax as nn
import liftax.cli
from liftax.checkpoint.files import load_checkpoint
from liftax.cli import main
from liftax.errors import LiftaxError
from liftax.installed import how_to_install

VARIABLES = {"params": {"w": np.arange(3000, dtype=np.float32)}}
QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# -- headers ------------------------------------------------------------------------------------

NAMES = st.sampled_from(["params/a", "a", "", "/", "a/b", "a//b", "%2F", "__metadata__", "\x1b[2J"])
SIZES = st.one_of(st.integers(-2, 4), st.sampled_from([2**31, 2**63, 2**64, 0.5, "3", None]))
ENTRIES = st.one_of(
    st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "I64", "", 3]),
            "shape": st.lists(SIZES, max_size=4),
            "data_offsets": st.lists(st.one_of(st.integers(-8, 64), SIZES), max_size=3),
        }
    ),
    st.sampled_from([None, [], "x", {}]),
)
ABOUT = st.fixed_dictionaries(
    {},
    optional={
        "version": st.sampled_from([1, 2, "1", None]),
        "stackings": st.one_of(
            st.just([]), st.lists(st.dictionaries(NAMES, SIZES, max_size=2), max_size=2)
        ),
        "values": st.dictionaries(NAMES, st.one_of(SIZES, st.just({"complex": [1]})), max_size=2),
        "empty": st.lists(NAMES, max_size=2),
        "layers": st.just({}),
        "variables": st.dictionaries(NAMES, st.sampled_from(["0" * 16, 3]), max_size=2),
        "sum": st.sampled_from(["0" * 16, None]),
    },
)
METADATA = st.one_of(
    st.builds(lambda about: {"liftax": json.dumps(about)}, ABOUT),
    st.dictionaries(st.sampled_from(["liftax", "format"]), st.sampled_from(["", "{", "[]", "1"])),
)


@st.composite
def headers(draw):
    """A header that is whole, with entries that lie; or one with entries that fit, among others."""
    entries = draw(st.dictionaries(NAMES, ENTRIES, max_size=3))
    if draw(st.booleans()):
        shape = draw(st.lists(st.integers(0, 3), max_size=3))
        size = int(np.prod(shape, dtype=int))
        entries = {"params/a": {"dtype": "U8", "shape": shape, "data_offsets": [0, size]}}
    return {**entries, "__metadata__": draw(METADATA)} if draw(st.booleans()) else entries


@QUICK
@given(headers(), st.binary(max_size=32), st.integers(-3, 3))
def test_headers_by_a_grammar(tmp_path, header, data, off):
    """Whatever it says, it is read, or it is refused in one line that shows nothing raw."""
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", max(0, len(text) + off)) + text + data)
    try:
        load_checkpoint(path, verify=True)
    except LiftaxError as error:
        assert "\x1b" not in str(error) and len(str(error).splitlines()) == 1


def packed_array(shape, dtype, data):
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


PACKED = SIZES.filter(lambda n: n != 2**64)  # which no packer takes
ARRAYS = st.builds(
    packed_array,
    st.one_of(st.lists(PACKED, max_size=3), PACKED),
    st.sampled_from(["float32", "int8", "bfloat16", "<U4", "", 3]),
    st.binary(max_size=16),
)
PARTS = st.one_of(
    ARRAYS,
    st.builds(msgpack.ExtType, st.sampled_from([0, 1, 2, 3, 9]), st.binary(max_size=12)),
    st.integers(-3, 3),
    st.floats(),
    st.sampled_from([None, True, "x", b"x"]),
)
NUMBERED = st.dictionaries(st.sampled_from(["0", "1", "2", 0]), PARTS, max_size=3)
CHUNKED = st.fixed_dictionaries(
    {"__msgpack_chunked_array__": st.just(True)},
    optional={"shape": st.one_of(NUMBERED, PARTS), "chunks": st.one_of(NUMBERED, PARTS)},
)
TREES = st.recursive(
    st.one_of(PARTS, CHUNKED),
    lambda inner: st.one_of(
        st.dictionaries(NAMES, inner, max_size=3), st.lists(inner, max_size=3), inner
    ),
    max_leaves=6,
)


@QUICK
@given(TREES, st.integers(0, 3))
def test_msgpack_by_a_grammar(tmp_path, tree, cut):
    path = tmp_path / "a.msgpack"
    data = msgpack.packb(tree)
    path.write_bytes(data[: len(data) - cut])
    try:
        load_checkpoint(path, verify=True)
    except LiftaxError as error:
        assert "\x1b" not in str(error) and len(str(error).splitlines()) == 1


# -- limits -------------------------------------------------------------------------------------


@contextlib.contextmanager
def limited(what, number):
    """A limit of the system for this process, in a block."""
    soft, hard = resource.getrlimit(what)
    resource.setrlimit(what, (number, hard))
    try:
        yield
    finally:
        resource.setrlimit(what, (soft, hard))


def test_a_file_may_not_be_that_large(tmp_path, monkeypatch, capsys):
    """As on a full disk: the file to be replaced is as it was, and nothing else is there."""
    monkeypatch.chdir(tmp_path)
    nn.save_checkpoint("a.safetensors", VARIABLES, layout=nn.Stacking.of("w", 3000))
    before = Path("a.safetensors").read_bytes()
    with limited(resource.RLIMIT_FSIZE, 5000):
        code = main(["convert", "a.safetensors", "a.safetensors", "--layout", "stacked"])
    shown = capsys.readouterr().err
    assert code == 2 and shown.count("\n") == 1 and "File too large" in shown
    assert os.listdir() == ["a.safetensors"]
    assert Path("a.safetensors").read_bytes() == before


@contextlib.contextmanager
def free(files):
    """So many more files may be open."""
    most = max(map(int, os.listdir("/proc/self/fd"))) + 1
    held = []
    with limited(resource.RLIMIT_NOFILE, most + files):
        try:
            with contextlib.suppress(OSError):
                while True:  # where there are gaps
                    held.append(os.open(os.devnull, os.O_RDONLY))
            for _ in range(files):
                os.close(held.pop())
            yield
        finally:
            for handle in held:
                os.close(handle)


def test_hardly_a_file_may_be_open(tmp_path, monkeypatch, capsys):
    """One line from each command, and nothing made, whatever it would have opened."""
    monkeypatch.chdir(tmp_path)
    nn.save_checkpoint("a.safetensors", VARIABLES)
    commands = {
        "convert": ["a.safetensors", "b", "--layout", "stacked"],
        "train": ["--epochs", "1", "--out", "run"],
        "practice": ["--list"],
        "layout": ["a.safetensors"],
        "explain": ["LX102"],
    }
    names = {path.stem for path in Path(liftax.cli.__file__).parent.glob("[a-z]*.py")}
    for files in (0, 1, 8, 63):
        for name in names:
            with free(files):
                assert main([name, *commands.get(name, ["--help"])]) == 2
            shown = capsys.readouterr().err
            assert shown.startswith("liftax: 64 files cannot be open") and shown.count("\n") == 1
    assert os.listdir() == ["a.safetensors"]


def test_a_library_does_not_take_that_for_a_missing_package(tmp_path):
    path = tmp_path / "a.safetensors"
    nn.save_checkpoint(path, VARIABLES)
    with free(0):
        with pytest.raises(OSError, match="open files"):
            load_checkpoint(path)
        assert how_to_install("train").startswith("pip install")


def test_few_files_may_be_open_in_a_process_of_its_own(tmp_path):
    """With as few as it takes to start Python, and with as many as a command asks for."""
    w = {"params": {"w": np.arange(3, dtype=np.float32)}}
    nn.save_checkpoint(tmp_path / "a.msgpack", w, layout=nn.Stacking.of("w", 3))
    command = [sys.executable, "-m", "liftax", "convert", "a.msgpack", "b", "--layout", "stacked"]
    ends = []
    for files in (8, 72):
        limit = f"import resource as r; r.setrlimit(r.RLIMIT_NOFILE, ({files}, {files}))"
        start = f"{limit}; import os; os.execv({command[0]!r}, {command!r})"
        done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path, capture_output=True)
        ends.append((done.returncode, done.stderr.count(b"\n")))
        assert ends in ([(2, 1)], [(2, 1), (0, 0)]), done.stderr
