"""Damaged, foreign and hostile checkpoints: one line that says what is wrong, and nothing made."""

import io
import json
import pickle
import struct
import tracemalloc

import flax.serialization
import jax
import msgpack
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from hypothesis import example, given, settings
from hypothesis import strategies as st

import liftax as nn
from liftax.checkpoint.files import open_checkpoint
from liftax.errors import LiftaxError, MissingExtraError

TREE = {"params": {"blocks": {"w": np.ones((2, 3), np.float32)}, "head": np.ones(5)}, "step": 3}
BLOCKS = nn.Stacking.of("blocks", 2)
DATA = flax.serialization.msgpack_serialize(TREE)


def refused(source, message=None):
    """Opening it fails with one of our errors, of one short line."""
    with pytest.raises(LiftaxError, match=message) as caught:
        open_checkpoint(source)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def ext(code, payload):
    return msgpack.ExtType(code, payload)


def array(shape, dtype, data):
    return ext(1, msgpack.packb((shape, dtype, data)))


# -- msgpack -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", range(len(DATA)))
def test_msgpack_cut_short(size):
    refused(DATA[:size])


def test_msgpack_cut_short_names_the_variable():
    at = DATA.index(b"head")
    refused(DATA[: at + 30], "^params/head: cut short, .* bytes should follow where .* are left")


@given(st.lists(st.tuples(st.integers(0, len(DATA) - 1), st.integers(0, 255)), max_size=8))
@settings(max_examples=300)
@example([(0, 0xDF)])
def test_msgpack_with_bytes_changed(changes):
    """Whatever the bytes say: an error of ours, or a tree; never more memory than the file."""
    data = bytearray(DATA)
    for at, byte in changes:
        data[at] = byte
    tracemalloc.start()
    try:
        found = nn.load_checkpoint(bytes(data))
        sum(np.size(leaf) for leaf in jax.tree.leaves(found))
    except LiftaxError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"a": array((2, 3), "float32", b"0" * 20)},
            r"^a: 20 bytes for float32\[2, 3\], which tak",
        ),
        ({"a": array((2**40, 2**40), "float32", b"")}, r"^a: 0 bytes for float32\[1099511627776"),
        ({"a": array((-1,), "float32", b"")}, "^a: an array has a size that is no count"),
        ({"a": array((1.5,), "float32", b"")}, "^a: an array has a size that is no count"),
        ({"a": array((True,), "int8", b"0")}, "^a: an array has a size that is no count"),
        ({"a": array((1,), "object", b"0" * 8)}, "^a: the dtype 'object' is not known"),
        ({"a": array((1,), "O", b"0" * 8)}, "^a: the dtype 'O' is not known"),
        ({"a": array((1,), "<U4", b"0" * 16)}, "^a: the dtype '<U4' is not known"),
        ({"a": array((1,), ["f4"], b"0" * 4)}, "^a: the dtype .* is not known"),
        ({"a": array([1] * 70, "int8", b"0")}, "^a: an array with 70 axes"),
        ({"a": array("x", "int8", b"0")}, "^a: an array has no shape"),
        ({"a": array((1,), "int8", "0")}, "^a: an array has no bytes"),
        ({"a": ext(1, msgpack.packb((1, 2)))}, "^a: expected a list of 3 parts"),
        ({"a": ext(1, msgpack.packb(((1,), "int8", b"0")) + b"1")}, "^a: 1 bytes too many"),
        ({"a": ext(1, b"")}, "^a: cut short"),
        ({"a": ext(2, msgpack.packb(("x", 1)))}, "^a: not a complex number"),
        ({"a": ext(9, b"")}, "^a: extension type 9 is none of Linen's"),
        ({"a": b"bytes"}, "^a: byte 0xc4 begins nothing that a checkpoint of Linen has"),
        ({"a": {3: 1}}, "^a: a name is int, not a string"),
        ({"a": {"__msgpack_chunked_array__": True}}, "^a: an array in chunks lacks its shape"),
        (
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2**50},
                    "chunks": {"0": array((1,), "int8", b"0")},
                }
            },
            "^a: its chunks hold 1 elements, its shape",
        ),
        (
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 1},
                    "chunks": {"1": array((1,), "int8", b"0")},
                }
            },
            "^a: the chunks of an array do not fit together",
        ),
        ([1, 2], "a checkpoint|it holds"),
        (7, "it holds int, not variables"),
    ],
)
def test_hostile_msgpack(tree, message):
    data = msgpack.packb(tree)
    if isinstance(tree, list):  # read as a mapping from numbers, as flax writes tuples
        assert nn.load_checkpoint(data) == {"0": 1, "1": 2}
    else:
        refused(data, message)


def test_lengths_that_promise_too_much():
    refused(b"\xdf\xff\xff\xff\xff", "cut short")
    refused(b"\x81\xa1a\xdd\xff\xff\xff\xff", "^a/0: cut short")
    refused(b"\x81\xa1a\xdb\xff\xff\xff\xff", "^a: cut short, 4,294,967,295 bytes should follow")
    refused(b"\x81\xa1a\xc9\xff\xff\xff\xff\x01", "^a: cut short")


def test_nesting_without_end():
    refused(b"\x81\xa1a" * 200_000, "^a/a/a: nested deeper than 100 levels")
    refused(b"\x81\xa1a" + b"\x91" * 200_000, "nested deeper than 100 levels")
    nested = b""
    for _ in range(200):
        nested = msgpack.packb(ext(1, b"\x93\x91" + nested + b"\xa4int8\xc4\x00"))
    refused(b"\x81\xa1a" + nested, "nested deeper than 100 levels|is no count")


def test_names_that_occur_twice_and_what_follows():
    refused(b"\x82\xa1a\x01\xa1a\x02", "^a: occurs twice")
    refused(b"\x81\xa1a\x01\x00", "1 bytes follow the end")
    refused(b"\x81\xa1\xff\x01", "a string is not UTF-8")


# -- files -------------------------------------------------------------------------------------


def npz():
    file = io.BytesIO()
    np.savez(file, a=np.ones(3))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "this is empty"),
        (b"PK", "this is none of these"),
        (npz(), "a checkpoint is a safetensors file, a msgpack file of Linen, or a direc.*none of"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 99, "not a whole msgpack checkpoint|none of these"),
        (b"hello, world\n", "none of these"),
        (struct.pack("<Q", 2**60) + b"{}", "none of these"),
        (struct.pack("<Q", 90) + b"{}", "not a whole safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "not a whole safetensors file"),
        (DATA[:40], "not a whole msgpack checkpoint: params/blocks/w: cut short"),
    ],
)
def test_foreign_files(content, message, tmp_path):
    path = tmp_path / "x"
    path.write_bytes(content)
    refused(path, message)


class Bomb:
    """Unpickling it fails the test."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_never_opened(protocol, tmp_path):
    path = tmp_path / "x.msgpack"
    path.write_bytes(pickle.dumps({"params": Bomb()}, protocol))
    refused(path)


def saved(tmp_path, tree=TREE):
    path = tmp_path / "a.safetensors"
    nn.save_checkpoint(path, tree, layout=BLOCKS)
    return path


def test_safetensors_cut_short(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        refused(path)
    path.write_bytes(whole[:-1])
    refused(path, "params/blocks/w ends at byte .* but the file at .*: it was cut short")
    path.write_bytes(whole + b"0")
    refused(path, "the file has more bytes than its header speaks of")


@given(st.lists(st.tuples(st.integers(0, 1200), st.integers(0, 255)), min_size=1, max_size=6))
@settings(max_examples=150)
def test_safetensors_with_bytes_changed(tmp_path_factory, changes):
    """A change is seen: in the header by its form, in the data by the checksums."""
    path = saved(tmp_path_factory.mktemp("damage"))
    data = bytearray(path.read_bytes())
    for at, byte in changes:
        data[at % len(data)] = byte
    path.write_bytes(data)
    tracemalloc.start()
    try:
        found = nn.load_checkpoint(path, verify=True)
        sum(np.size(leaf) for leaf in jax.tree.leaves(found))
    except LiftaxError as error:
        assert "\n" not in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 1 << 20


def test_data_that_changed(tmp_path):
    path = saved(tmp_path)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    nn.load_checkpoint(path)  # not looked at unless asked for
    with pytest.raises(LiftaxError, match="^params/blocks/layers_1/w is damaged: its checksum"):
        nn.load_checkpoint(path, verify=True)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", "the metadata of liftax are damaged"),
        ("[]", "the metadata of liftax are damaged"),
        ("[" * 100_000, "the metadata of liftax are damaged"),
        (json.dumps({"version": 2}), "version 2 of the metadata is not known"),
        (
            json.dumps(
                {"version": 1, "stackings": [{}], "values": {}, "empty": [], "variables": {}}
            ),
            "not the description of a stack",
        ),
        (
            json.dumps(
                {"version": 1, "stackings": [], "values": {"a/b": 1}, "empty": [], "variables": {}}
            ),
            "a/b lies inside of another variable",
        ),
    ],
)
def test_metadata_of_ours_that_are_damaged(about, message, tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2)}, path, {"liftax": about})
    refused(path, message)


def test_names_in_safetensors_that_contradict_each_other(tmp_path):
    path = tmp_path / "a.safetensors"
    safetensors.numpy.save_file({"a": np.ones(2), "a/b": np.ones(2)}, path)
    refused(path, "a/b lies inside of another variable")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_checkpoint(tmp_path / "none")


# -- Orbax -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def orbax(tmp_path_factory):
    import warnings

    path = tmp_path_factory.mktemp("orbax") / "checkpoint"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), TREE)
    return path


def test_orbax_directories(orbax, tmp_path):
    found = nn.load_checkpoint(orbax)
    np.testing.assert_array_equal(found["params"]["blocks"]["w"], TREE["params"]["blocks"]["w"])
    refused(tmp_path, "which has a file _METADATA; found nothing")
    (tmp_path / "notes.txt").write_text("x")
    refused(tmp_path, "found notes.txt")
    (tmp_path / "default").symlink_to(orbax)  # a step of a CheckpointManager
    assert nn.load_checkpoint(tmp_path)["step"] == 3


def test_orbax_array_that_is_not_as_described(orbax, monkeypatch):
    """Each array is held against its description when it is read."""
    other = jax.tree.map(lambda leaf: np.ones((3, 3)), TREE)
    monkeypatch.setattr(ocp.PyTreeCheckpointer, "restore", lambda *args, **more: other)
    with pytest.raises(LiftaxError, match=r"w is float64\[3, 3\], described as float32\[2, 3\]"):
        nn.load_checkpoint(orbax)


def test_orbax_damaged(orbax, tmp_path, capfd):
    import shutil

    broken = tmp_path / "broken"
    shutil.copytree(orbax, broken)
    for file in (broken / "d").iterdir():
        file.write_bytes(file.read_bytes()[:10])
    refused(broken, "the description of the checkpoint is damaged|not a whole Orbax")
    assert capfd.readouterr() == ("", "")
    (broken / "_METADATA").write_text("{")
    refused(broken, "the description of the checkpoint is damaged|not a whole Orbax")


def test_reads_that_come_back_too_late_say_nothing(orbax, tmp_path):
    """Orbax closes its event loop while arrays are being read; none of them may print that."""
    import asyncio

    from liftax.checkpoint import orbax as reader

    seen = []

    def call():
        loop = asyncio.new_event_loop()
        seen.append(loop)
        loop.close()
        loop.call_soon_threadsafe(seen.append, "never")
        raise ValueError("cut short")

    with pytest.raises(LiftaxError, match="not a whole Orbax checkpoint: cut short"):
        reader._tried(orbax, call)
    (loop,) = seen
    loop.call_soon_threadsafe(seen.append, "never")
    assert seen == [loop]
    other = asyncio.new_event_loop()  # what is made outside of a read is Python's own
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.call_soon_threadsafe(print)


@pytest.mark.parametrize(
    ("package", "kind"), [("safetensors", "safetensors"), ("orbax.checkpoint", "orbax")]
)
def test_packages_that_are_missing(package, kind, orbax, monkeypatch, tmp_path):
    import sys

    path = orbax if kind == "orbax" else saved(tmp_path)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install .*\[checkpoints\]"):
        open_checkpoint(path)
