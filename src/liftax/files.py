"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[tuple[BinaryIO, Path]]:
    """A new file, to write and read, and its name; it becomes ``path`` when the block ends well.

    Until then, and for good when the block raises (Ctrl-C included), ``path`` stays as it is. What
    a killed process left behind on its way to the same ``path`` is removed.

    Raises:
      OSError: the disk is full, the folder is read-only, and the like.

    Example:
      >>> import pathlib, tempfile
      >>> from liftax.files import replacing
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = pathlib.Path(folder, "a.txt")
      ...     with replacing(path) as (file, _):
      ...         _ = file.write(b"whole")
      ...     path.read_bytes()
      b'whole'
    """
    target = path.resolve()  # a link stays a link
    # Of the name, a sum: with more added to it, a long one would be too long.
    mark = f".{hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}."
    _remove_left(target.parent, mark)
    handle, name = tempfile.mkstemp(prefix=f"{mark}{os.getpid()}.", dir=target.parent)
    _locked(handle)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file, temporary
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(_mode(target))
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """A name for a directory to be made; it becomes ``path`` when the block ends well.

    What a killed process left behind on its way to the same ``path`` is removed.

    Raises:
      OSError: ``path`` is there already, and the like.
    """
    target = path.resolve()
    mark = f".{hashlib.blake2b(os.fsencode(target.name), digest_size=8).hexdigest()}."
    for left in target.parent.glob(f"{mark}*"):
        pid = left.name.removeprefix(mark).partition(".")[0]
        if left.is_dir() and pid.isdecimal() and not _lives(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(
        prefix=f"{mark}{os.getpid()}.", dir=target.parent, ignore_cleanup_errors=True
    ) as folder:
        made = Path(folder, "made")
        yield made
        os.rename(made, target)  # fails where something is there that is no empty directory


def room_for(count: int) -> bool:
    """Whether so many more files may be open in this process.

    >>> room_for(1)
    True
    """
    held = []
    try:
        for _ in range(count):
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        return error.errno not in (errno.EMFILE, errno.ENFILE)
    finally:
        for handle in held:
            os.close(handle)
    return True


def _locked(handle: int) -> bool:
    """Takes the lock of a file that is being written; its process holds it as long as it lives."""
    try:
        import fcntl
    except ModuleNotFoundError:  # not on this system: nothing is ever taken for left behind
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _remove_left(folder: Path, mark: str) -> None:
    """Removes what processes that are no more left on their way to a file."""
    for left in folder.glob(f"{mark}*"):
        pid = left.name.removeprefix(mark).partition(".")[0]
        with contextlib.suppress(OSError):
            # Between making a file and locking it, only its process says that it is in use.
            if pid.isdecimal() and not _lives(int(pid)):
                with left.open("rb") as file:
                    if _locked(file.fileno()):
                        left.unlink()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # another user's
    return True


def _mode(target: Path) -> int:
    """The permissions of the file to be replaced, or of a new one."""
    with contextlib.suppress(FileNotFoundError):
        return stat.S_IMODE(target.stat().st_mode)
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
