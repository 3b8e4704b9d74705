"""Checkpoints in and out: safetensors, Linen's msgpack, Orbax. Never pickle."""

from __future__ import annotations

import itertools
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ..core.types import Path as Names
from ..errors import CheckpointError
from ..stack.arrays import Lazy, is_array
from ..stack.stacking import Stackings, name_of
from ..words import described
from .convert import to_layers, to_stacked
from .find import as_stackings
from .msgpack import looks_like_msgpack, read_msgpack
from .orbax import BESIDE, read_orbax
from .safetensors import looks_like_safetensors, read_safetensors, tensors_of
from .tensors import Keep, ToSave, filled, read_all, to_plain
from .write import Checkpoint, compare, planned, read_described, write

FORMS = ("layers", "stacked")


def open_checkpoint(source: str | os.PathLike[str] | bytes) -> Checkpoint:
    """Opens a checkpoint of any kind that liftax reads, by its content.

    Args:
      source: a file, a directory (Orbax), or the bytes of a msgpack checkpoint.

    Raises:
      CheckpointError: it is damaged, or of another kind.
      OSError: it cannot be read.
    """
    if isinstance(source, bytes):
        # Only Linen's kind is handed around as bytes: `flax.serialization.to_bytes` makes them.
        return _told_in(*read_msgpack(np.frombuffer(source, np.uint8)))
    path = Path(source)
    if path.is_dir():
        return _told_beside(path, read_orbax(path))
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path}: neither a file nor a directory")
    size = status.st_size
    # By the content: the names of files say little, and one that is cut short is to be named for
    # what it was.
    with path.open("rb") as file:
        head = file.read(16)
    if looks_like_safetensors(head, size):
        tree, metadata = read_safetensors(path)
        try:
            return read_described(tree, metadata, "safetensors")
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    if looks_like_msgpack(head):
        try:
            return _told_in(*read_msgpack(np.memmap(path, np.uint8, mode="r")))
        except CheckpointError as error:
            if path.suffix == ".safetensors":
                read_safetensors(path)  # says what is wrong with it
            raise CheckpointError(f"{path}: not a whole msgpack checkpoint: {error}") from error
    what = "is empty" if size == 0 else "is none of these"
    raise CheckpointError(
        f"{path}: a checkpoint is a safetensors file, a msgpack file of Linen, or a directory of "
        f"Orbax; this {what}"
    )


def open_shards(path: Path) -> object:
    """The tree of a safetensors file, or of a folder that has it, in one file or in shards.

    Raises:
      CheckpointError: a file is damaged, or the index of the shards.
      OSError: a file cannot be read.
    """
    if not path.is_dir():
        return open_checkpoint(path).tree
    index = path / "model.safetensors.index.json"
    if not index.exists():
        return open_checkpoint(path / "model.safetensors").tree
    try:
        # Of a name only its last part: what lies elsewhere is none of this checkpoint's.
        places = {
            str(k): Path(v).name for k, v in json.loads(index.read_bytes())["weight_map"].items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index}: does not say where the tensors are") from error
    shards = {file: open_checkpoint(path / file).tree for file in {*places.values()}}
    found = {}
    for name, file in places.items():
        shard = shards[file]
        if not isinstance(shard, Mapping) or name not in shard:
            raise CheckpointError(f"{path / file}: {name_of(name)} is missing")
        found[name] = shard[name]
    return found


def _told_in(tree: object, told: str | None) -> Checkpoint:
    """A msgpack checkpoint, with what liftax says of it where liftax has written it."""
    if told is None:
        return Checkpoint(tree, "msgpack")
    found = read_described(tree, _metadata(told), "msgpack")
    # What is no array stands in such a file twice, and only once under a checksum.
    plain, summed = tensors_of(tree)[1], tensors_of(found.tree)[1]
    if repr(sorted(plain.items(), key=str)) != repr(sorted(summed.items(), key=str)):
        name = min(plain.keys() ^ summed.keys(), default="a value")
        raise CheckpointError(f"{name_of(name)} is damaged: it is not what the checksum is of")
    return found


def _metadata(told: str) -> dict[str, str]:
    """What liftax says of a file whose format has no place for it."""
    try:
        metadata = json.loads(told)
        if isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values()):
            return metadata
    except (ValueError, RecursionError):
        pass
    raise CheckpointError("what liftax says of the checkpoint is damaged")


def _told_beside(path: Path, tree: object) -> Checkpoint:
    """A directory of Orbax, with what liftax says of it where liftax has written it."""
    try:
        text = (path / BESIDE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return Checkpoint(tree, "orbax")
    except ValueError as error:
        raise CheckpointError(f"{path / BESIDE}: is damaged") from error
    try:
        return read_described(tree, _metadata(text), "orbax")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error


def load_checkpoint(
    source: str | os.PathLike[str] | bytes,
    *,
    layout: object = None,
    source_layout: object = None,
    form: str | None = None,
    like: object = None,
    verify: bool = False,
) -> Any:
    """Reads variables, or a whole train state, from a checkpoint in either form.

    Reads safetensors files, checkpoints of Linen (`flax.serialization.to_bytes`), and directories
    of Orbax; which of them is seen from the content. Sizes are held against the file before
    anything is made, and nothing in the file is ever run.

    Args:
      source: a file, a directory, or the bytes of a msgpack checkpoint.
      layout: which subtrees are stacked in the result, as for `nn.to_layers`; by default as in the
        checkpoint.
      source_layout: which are stacked in the checkpoint; by default what it says in its metadata,
        or else as ``layout`` says.
      form: `"layers"`, `"stacked"`, or None for what the checkpoint has.
      like: a pytree (variables, the state of an optimizer, shapes) whose structure and boxes the
        result takes; its shapes and dtypes must be those of the checkpoint. By default nested
        dicts, with tuples as dicts from `"0"`, `"1"`, ...
      verify: compare with the checksums in the file, which reads all of it.

    Returns:
      Numpy arrays, read-only memory maps where they lie in the file as they are asked for.

    Raises:
      CheckpointError: the checkpoint is damaged or of another kind, or disagrees with ``like``.
      StackingError: the checkpoint and the layout disagree. Messages name the first variable.
      MissingExtraError: the package for this kind is not installed.
      OSError: the file cannot be read.

    Example:
      >>> import os, tempfile, numpy as np, liftax as nn
      >>> blocks = nn.Stacking.of("blocks", 2)
      >>> variables = {"params": {"blocks": {"kernel": np.ones((2, 3), np.float32)}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = os.path.join(folder, "model.safetensors")
      ...     nn.save_checkpoint(path, variables, layout=blocks)
      ...     found = nn.load_checkpoint(path, form="layers")
      >>> sorted(found["params"]["blocks"])
      ['layers_0', 'layers_1']
    """
    if form is not None and form not in FORMS:
        raise CheckpointError(f"form={form!r} is none of 'layers', 'stacked' and None")
    found = open_checkpoint(source)
    tree = found.tree
    if verify:
        verify_sums(found)
    if form is None and (layout is not None or source_layout is not None):
        raise CheckpointError("a layout is for form='layers' or form='stacked': say which")
    if form is not None:
        if found.stackings and source_layout is not None:
            raise CheckpointError("the checkpoint says its layout itself: leave out source_layout=")
        # First to layers, by what the source is, and then on by what is wanted: two stackings of
        # the same layers need not know of one another.
        before = found.stackings or (layout if source_layout is None else source_layout)
        if not before:
            raise CheckpointError(
                f"form={form!r} needs a layout, and the checkpoint does not say it: give layout="
            )
        tree = to_layers(tree, before)
        after = before if layout is None else layout
        tree = to_stacked(tree, after) if form == "stacked" else to_layers(tree, after)
    return read_all(tree if like is None else filled(like, tree))


def verify_sums(found: Checkpoint) -> None:
    """Reads a whole checkpoint and holds it against the checksums in it, if it has any.

    Raises:
      CheckpointError: a variable differs, is missing or one too many. The message names it.
    """
    plan = planned(found.tree, found.stackings or None, recorded=found.checksums)
    if found.checksums:
        compare(found.checksums, plan.checksums())


def save_described(
    path: Path, tree: object, layout: Stackings, metadata: Mapping[str, str]
) -> None:
    """As `save_checkpoint`, with metadata of one's own beside liftax's."""
    write(path, planned(_wrapped(tree), layout or None), extra=metadata)


def save_checkpoint(path: str | os.PathLike[str], tree: object, *, layout: object = None) -> None:
    """Writes variables, or a whole train state, to a safetensors file.

    The file has the layout in its metadata, with a checksum for each layer; `nn.load_checkpoint`
    and `liftax convert` need to be told nothing else. Arrays go through memory one at a time. The
    file is read back and compared before it takes the place of another one.

    Args:
      path: the file.
      tree: variables, or any pytree of arrays, numbers, strings and None. Boxes are taken off:
        the names of axes belong to the model, and come back with `like=`.
      layout: which subtrees are stacked, as for `nn.to_layers`, in whatever form they are.

    Raises:
      CheckpointError: a leaf cannot be written, or two have one name. The message names it.
      StackingError: the tree and the layout disagree.
      MissingExtraError: the package safetensors is not installed.
      OSError: from the file system; the old file, if any, is untouched.

    Example:
      >>> import os, tempfile, jax, jax.numpy as jnp, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=3)
      >>> variables = stack.init(jax.random.key(0), jnp.ones((2, 4)))
      >>> file = os.path.join(tempfile.mkdtemp(), 'stack.safetensors')
      >>> nn.save_checkpoint(file, variables, layout=stack)
      >>> apart = nn.load_checkpoint(file, form='layers')
      >>> apart['params']['layers_2']['kernel'].shape
      (4, 4)
    """
    plan = planned(_wrapped(tree), None if layout is None else as_stackings(layout))
    write(Path(path), plan)


def _wrapped(tree: object) -> object:
    """A pytree as nested dicts of arrays that are to be read one by one."""
    keep, numbers = Keep(), itertools.count(1)

    def wrap(leaf: object, at: Names) -> object:
        if not is_array(leaf):
            return leaf
        name = name_of(at) if at else "the tree"
        if isinstance(leaf, jax.core.Tracer):
            raise CheckpointError(f"{name} is traced: save outside of jit and grad")
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise CheckpointError(f"{name} is only a shape, {described(leaf)}")
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            raise CheckpointError(f"{name} holds random keys: save jax.random.key_data of them")
        return leaf if isinstance(leaf, Lazy) else ToSave(leaf, next(numbers), keep)

    return to_plain(tree, wrap)
