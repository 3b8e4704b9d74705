"""Reading batches and replacing files whole."""

import io
import os
import stat
import zipfile

import numpy as np
import pytest

from liftax.cli import CommandError, _files


def npy_bytes(array, **keywords):
    buffer = io.BytesIO()
    np.save(buffer, array, **keywords)
    return buffer.getvalue()


GOOD = npy_bytes(np.arange(6, dtype=np.float32).reshape(2, 3))


def write(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f8", "i1", "i8", "u2", "?"])
def test_npy_of_any_real_dtype(tmp_path, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    batch = _files.read_batch(write(tmp_path, "x.npy", npy_bytes(array)))
    assert batch.dtype == np.float32
    np.testing.assert_array_equal(batch, array)


def test_npy_in_fortran_order(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(
        _files.read_batch(write(tmp_path, "x.npy", npy_bytes(array))), array
    )


@pytest.mark.parametrize(
    "text",
    [
        "1,2.5\n-3e2,.5\n",
        "1,2.5\n-3e2,.5",
        "\ufeff1, 2.5\r\n-3E+2 ,.5\r\n\r\n",
        '"1","2.5"\n"-300","0.5"\n\n',
    ],
)
def test_csv(tmp_path, text):
    batch = _files.read_batch(write(tmp_path, "x.CSV", text))
    np.testing.assert_array_equal(batch, np.float32([[1, 2.5], [-300, 0.5]]))


class Harmful:
    def __reduce__(self):
        return (os.mkdir, ("harm",))


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", GOOD)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.txt", "1,2", r"read from a \.npy or a \.csv file"),
        ("x", "1,2", r"read from a \.npy or a \.csv file"),
        ("x.npy", b"", "the file is empty"),
        ("x.npy", b"nonsense", "not a whole .npy file"),
        ("x.npy", GOOD[:5], "not a whole .npy file"),
        ("x.npy", GOOD[:60], "not a whole .npy file"),
        ("x.npy", GOOD[:-3], "not a whole .npy file"),
        ("x.npy", GOOD + b"more", "has 156 bytes where its header says 152"),
        ("x.npy", GOOD.replace(b"(2, 3)", b"(2, -3"), "not a whole .npy file"),
        ("x.npy", GOOD.replace(b"(2, 3), ", b"(9**9,),"), "not a whole .npy file"),
        ("x.npy", GOOD.replace(b"(2, 3), }  ", b"(2, 3000)} "), "not a whole .npy file"),
        ("x.npy", zipped(), "not a whole .npy file"),
        ("x.npy", npy_bytes(np.array([[Harmful()]])), "not a whole .npy file"),
        ("x.npy", npy_bytes(np.array([["a"]])), "holds <U1, not real numbers"),
        ("x.npy", npy_bytes(np.ones((1, 1), complex)), "holds complex128, not real numbers"),
        ("x.npy", npy_bytes(np.zeros((1, 1), [("a", "f4")])), "not real numbers"),
        ("x.npy", npy_bytes(np.ones(3)), r"shape \(3,\); a batch has two axes"),
        ("x.npy", npy_bytes(np.ones((2, 8, 8))), r"shape \(2, 8, 8\); a batch has two axes"),
        ("x.npy", npy_bytes(np.float32(1)), r"shape \(\)"),
        ("x.npy", npy_bytes(np.ones((0, 3))), "empty"),
        ("x.npy", npy_bytes(np.ones((3, 0))), "empty"),
        ("x.npy", npy_bytes(np.float32([[1, 2], [3, np.nan]])), "row 2, column 2 is nan, not fin"),
        ("x.npy", npy_bytes(np.float32([[1, -np.inf]])), "row 1, column 2 is -inf, not finite"),
        ("x.npy", npy_bytes(np.array([[1e300]])), r"1e\+300, too large for float32"),
        ("x.csv", "", "the file is empty"),
        ("x.csv", "\n \n,\n", "holds no numbers"),
        ("x.csv", "a,b\n1,2\n", "line 1, column 1: 'a' is not a number; a header line has to go"),
        ("x.csv", "1,2\n3,four\n", "line 2, column 2: 'four' is not a number$"),
        ("x.csv", "1,2\n3,\n", "line 2, column 2: '' is not a number"),
        ("x.csv", "1,2\n3\n", "line 2 has 1 numbers, the lines before it 2"),
        ("x.csv", "1;2\n", "'1;2' is not a number"),
        ("x.csv", "1_0\n", "'1_0' is not a number"),
        ("x.csv", "1,nan\n", "row 1, column 2 is nan, not finite"),
        ("x.csv", "-Infinity,1\n", "row 1, column 1 is -inf, not finite"),
        ("x.csv", "1e39\n", "too large for float32"),
        ("x.csv", "1e999\n", "row 1, column 1 is inf, not finite"),
        ("x.csv", b"\xff\xfe1\x00", "not a text file in UTF-8"),
        ("x.csv", '"1\n', "line 1: unexpected end of data"),
        ("x.csv", "9" * 100 + "x", "is not a number"),
    ],
)
def test_bad_batches(tmp_path, name, content, message):
    path = write(tmp_path, name, content)
    with pytest.raises(CommandError, match=message) as caught:
        _files.read_batch(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(path))
    assert os.listdir(tmp_path) == [name]


def test_missing_folder_or_file(tmp_path):
    with pytest.raises(CommandError, match="No such file"):
        _files.read_batch(tmp_path / "x.npy")
    (tmp_path / "y.npy").mkdir()
    with pytest.raises(CommandError, match="is a folder"):
        _files.read_batch(tmp_path / "y.npy")


def test_check_output(tmp_path):
    _files.check_output(tmp_path / "x.npy", ".npy")
    assert not list(tmp_path.iterdir())
    with pytest.raises(CommandError, match=r"the output is a \.npy file"):
        _files.check_output(tmp_path / "x.txt", ".npy")
    with pytest.raises(CommandError, match="does not exist"):
        _files.check_output(tmp_path / "none" / "x.npy", ".npy")
    (tmp_path / "y.npy").mkdir()
    with pytest.raises(CommandError, match="is a folder"):
        _files.check_output(tmp_path / "y.npy", ".npy")


class TestReplacing:
    def test_replaces_whole(self, tmp_path):
        path = write(tmp_path, "a.bin", "old")
        with _files.replacing(path) as file:
            file.write(b"new")
            assert path.read_bytes() == b"old"
        assert path.read_bytes() == b"new"
        assert os.listdir(tmp_path) == ["a.bin"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_leaves_the_old_file_when_the_block_raises(self, tmp_path, error):
        path = write(tmp_path, "a.bin", "old")
        with pytest.raises(error, match="stop"), _files.replacing(path) as file:
            file.write(b"half")
            raise error("stop")
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["a.bin"]

    def test_a_full_disk_is_the_users_to_know(self, tmp_path):
        path = write(tmp_path, "a.bin", "old")
        with (
            pytest.raises(CommandError, match="cannot be written: No space left on device"),
            _files.replacing(path),
        ):
            raise OSError(28, "No space left on device")
        assert path.read_bytes() == b"old"

    def test_keeps_permissions(self, tmp_path):
        old = write(tmp_path, "old.bin", "old")
        old.chmod(0o640)
        new = tmp_path / "new.bin"
        before = os.umask(0o027)
        try:
            for path in (old, new):
                with _files.replacing(path) as file:
                    file.write(b"x")
        finally:
            os.umask(before)
        assert stat.S_IMODE(old.stat().st_mode) == 0o640
        assert stat.S_IMODE(new.stat().st_mode) == 0o640

    def test_follows_links(self, tmp_path):
        path = write(tmp_path, "a.bin", "old")
        link = tmp_path / "link.bin"
        link.symlink_to(path)
        with _files.replacing(link) as file:
            file.write(b"new")
        assert link.is_symlink()
        assert path.read_bytes() == b"new"
