"""Orbax checkpoints: a directory, read one array after the other."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextvars import Context
from pathlib import Path
from typing import Any, TypeVar, TypeVarTuple, Unpack

import jax
import numpy as np

from ..core.types import Path as Names
from ..errors import CheckpointError
from ..installed import needed
from ..stack.arrays import Lazy, is_array
from ..stack.stacking import name_of
from .tensors import Keep, Kept, to_plain

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

BESIDE = "liftax.json"
"""In a directory that liftax has written: what it says of the checkpoint."""
_MARK = "_METADATA"
_ABOUT = "_CHECKPOINT_METADATA"


def orbax_directory(path: Path) -> Path:
    """The directory that has the arrays: ``path``, or the only item in it.

    Raises:
      CheckpointError: there is no such directory.
    """
    if (path / _MARK).is_file():
        return path
    inside = sorted(item for item in path.iterdir() if (item / _MARK).is_file())
    if len(inside) == 1:
        return inside[0]
    found = ", ".join(item.name for item in (inside or sorted(path.iterdir()))[:5]) or "nothing"
    raise CheckpointError(
        f"{path}: not the directory of an Orbax checkpoint, which has a file {_MARK}; found {found}"
    )


def _orbax() -> Any:
    said = "Orbax checkpoints need the package orbax-checkpoint"
    return needed("orbax.checkpoint", "checkpoints", said)


def read_orbax(path: Path) -> object:
    """The tree of a checkpoint, with arrays that are not read yet.

    Shapes and dtypes come from the checkpoint's own description; each array is read when its turn
    comes, and held against them.

    Raises:
      CheckpointError: the directory is no checkpoint, or is damaged.
      MissingExtraError: the package orbax-checkpoint is not installed.
    """
    ocp = _orbax()
    directory = orbax_directory(path).absolute()
    # A whole step is described one folder above its arrays, the arrays in their own.
    for folder in {directory, path.absolute()}:
        _check_json(folder / _ABOUT, path)
    checkpointer = ocp.PyTreeCheckpointer()
    described = _tried(path, lambda: checkpointer.metadata(directory)).item_metadata
    if described is None:
        raise CheckpointError(f"{path}: the description of the checkpoint is damaged")
    leaves, treedef = jax.tree.flatten(described.tree, is_leaf=is_array)

    def read(number: int) -> np.ndarray:
        # Orbax restores trees and not arrays: all others of this one are left out.
        wanted = [0 if i == number else ocp.PLACEHOLDER for i in range(len(leaves))]
        as_numpy = [ocp.RestoreArgs(restore_type=np.ndarray) for _ in leaves]
        options = ocp.args.PyTreeRestore(
            item=jax.tree.unflatten(treedef, wanted),
            restore_args=jax.tree.unflatten(treedef, as_numpy),
        )
        restored = _tried(path, lambda: checkpointer.restore(directory, args=options))
        return np.asarray(jax.tree.leaves(restored)[number])

    keep = Keep()
    made = [
        _Stored(leaf, number, functools.partial(read, number), keep, path)
        if is_array(leaf)
        else leaf
        for number, leaf in enumerate(leaves)
    ]
    return to_plain(jax.tree.unflatten(treedef, made))


def write_orbax(path: Path, tree: object, step: Callable[[str, int], None]) -> None:
    """Writes nested dicts of arrays as a new directory; all of them are in memory at once.

    Args:
      path: the directory to be made.
      tree: nested dicts of arrays.
      step: called after each array was read, with its name and its bytes.

    Raises:
      MissingExtraError: the package orbax-checkpoint is not installed.
    """
    ocp = _orbax()

    def read(leaf: object, at: Names) -> object:
        if not isinstance(leaf, Lazy):
            return leaf
        array = np.asarray(leaf.read())
        step("/".join(at), leaf.nbytes)
        return array

    arrays = to_plain(tree, read)
    # Orbax takes no relative path.
    _tried(path, lambda: ocp.PyTreeCheckpointer().save(path.absolute(), arrays))


def _check_json(file: Path, path: Path) -> None:
    """Orbax itself goes on without a description that it cannot read, after a line in the log."""
    try:
        json.loads(file.read_bytes())
    except FileNotFoundError:
        pass
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: {file.name} is damaged") from error


class _Stored(Kept):
    """An array of the checkpoint."""

    def __init__(
        self, described: Any, number: int, restore: Callable[[], np.ndarray], keep: Keep, path: Path
    ):
        self.order, self.restore, self.keep, self.path = (number,), restore, keep, path
        self.name = str(described.name)
        try:
            self.shape = tuple(int(size) for size in described.shape)
            self.dtype = np.dtype(described.dtype)
        except (TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: {self.name}: {error}") from error

    def load(self) -> np.ndarray:
        """The array, from the checkpoint."""
        found = self.restore()
        # The description is a file of its own, and may be that of other arrays.
        if found.shape != self.shape or found.dtype != self.dtype:
            raise CheckpointError(
                f"{self.path}: {self.name} is {found.dtype}{list(found.shape)}, described as "
                f"{self.dtype}{list(self.shape)}"
            )
        return found


class _Loop(asyncio.SelectorEventLoop):
    """An event loop that lets go of what comes when it is closed already.

    When one array cannot be read, Orbax closes its event loop while others are being read. Each of
    those comes back from a thread of its own, finds the loop closed, and would have Python print
    that, when the caller has long been told what is wrong.
    """

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        try:
            return super().call_soon_threadsafe(callback, *args, context=context)
        except RuntimeError:
            if not self.is_closed():
                raise
            return asyncio.Handle(callback, args, self, context)


class _Policy(asyncio.DefaultEventLoopPolicy):
    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        return _Loop()


@contextlib.contextmanager
def _loops_may_be_closed() -> Iterator[None]:
    """Has what runs inside make loops of that kind."""
    before = asyncio.get_event_loop_policy()
    asyncio.set_event_loop_policy(_Policy())
    try:
        yield
    finally:
        asyncio.set_event_loop_policy(before)


def _tried(path: Path, call: Callable[[], T]) -> T:
    """What a call of Orbax returns; whatever it raises is a damaged checkpoint."""
    log = logging.getLogger("absl")
    level = log.level
    try:
        log.setLevel(logging.ERROR)  # what is wrong is said once, in the error
        with _loops_may_be_closed(), warnings.catch_warnings():
            # Where arrays lay on the devices of another machine does not matter here.
            warnings.simplefilter("ignore")
            return call()
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path}: not a whole Orbax checkpoint: {name_of(first[:200])}"
        ) from error
    finally:
        log.setLevel(level)
