"""From one checkpoint to another, one tensor after the other.

The layers form is the common ground: each of its variables is read once, its checksum is taken
while it is written, and the new file, read back and brought to the layers form, must have the
same bytes, or checksums, before it takes the place of anything.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..core.types import Path as Names
from ..errors import CheckpointError
from ..files import new_directory, replacing
from ..stack.arrays import Lazy
from ..stack.convert import form_of
from ..stack.stacking import Stacking, Stackings, name_of
from .convert import to_layers, to_stacked
from .find import as_stackings
from .msgpack import read_msgpack
from .msgpack_out import write_msgpack
from .orbax import BESIDE, read_orbax, write_orbax
from .roots import find_trees
from .safetensors import KEY, file_size, header_of, read_safetensors, tensors_of, write_safetensors
from .tensors import Summed, checksums, combined, escape, flat, kind_of, nested, summed

_PARTS = {"version", "stackings", "values", "empty", "layers", "variables"}
OUTSIDE = "outside of any stack"
_THREADS = 4


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a conversion would write.

    Attributes:
      tree: nested dicts of what goes into the file, with arrays that are not read yet.
      variables: the variables in the layers form, by name.
      layers: layer -> the names of its variables.
      stackings: how the layers are stacked in the new file, and are to be stacked again.
    """

    tree: object
    variables: Mapping[str, Summed]
    layers: Mapping[str, list[str]]
    stackings: Stackings

    @property
    def tensors(self) -> Mapping[str, Lazy]:
        """What goes into the file, by name."""
        return tensors_of(self.tree)[0]

    def checksums(self) -> dict[str, str]:
        """The checksum of each variable in the layers form; reads what was not read before."""
        return checksums(self.variables)

    def by_layer(self) -> dict[str, str]:
        """One checksum for each layer."""
        return self.layer_sums(self.checksums())

    def layer_sums(self, sums: Mapping[str, str]) -> dict[str, str]:
        """One checksum for each layer, from those of the variables."""
        return {
            layer: combined({name: sums[name] for name in names})
            for layer, names in self.layers.items()
        }


def planned(
    tree: object,
    source: object = None,
    *,
    form: str | None = None,
    target: object = None,
    recorded: Mapping[str, str] | None = None,
) -> Plan:
    """Works out a conversion from shapes alone.

    Args:
      tree: nested dicts with arrays that are not read yet.
      source: the layout of ``tree``; None for a tree without stacks.
      form: `"layers"` or `"stacked"`; None to leave everything as it is.
      target: the layout of the result, by default that of the source.
      recorded: the checksums that the source has: those of the plan are made as they were.

    Raises:
      StackingError: the tree and the layouts disagree.
    """
    kind = kind_of(recorded or {})
    if source is None:
        source = target
    if source is None:
        variables = summed(tree, kind)
        return Plan(variables, dict(_leaves(variables)), _layers(variables, ()), ())
    before = as_stackings(source)
    after = before if target is None else as_stackings(target)
    # Both forms are made of the same arrays in the layers form: what is written has been summed.
    layers = summed(to_layers(tree, before), kind)
    made = tree if form is None else layers
    if form is not None:
        made = (to_stacked if form == "stacked" else to_layers)(layers, after)
    return Plan(made, dict(_leaves(layers)), _layers(layers, after), after)


def _leaves(tree: object) -> Iterator[tuple[str, Summed]]:
    return ((name, leaf) for name, leaf in flat(tree) if isinstance(leaf, Summed))


def _layers(tree: object, stackings: Stackings) -> dict[str, list[str]]:
    """Which variables of a tree in the layers form belong to which layer, in order."""
    found: dict[tuple[Names, int], str] = {}
    prefixes: dict[str, str] = {}
    for root in find_trees(tree, stackings) if stackings else ():
        for s in stackings:
            if form_of(s, root.tree, root.collection, root.path) == "layers":
                for number, path in zip(s.in_order, s.layers, strict=True):
                    found[s.owner, number] = label = "/".join(path)
                    prefixes["/".join(map(escape, root.path + path))] = label
    layers: dict[str, list[str]] = {found[place]: [] for place in sorted(found)}
    # The longest prefix counts: a layer in a layer is the inner one's.
    for name, _ in _leaves(tree):
        parts = name.split("/")
        heads = ("/".join(parts[:end]) for end in range(len(parts), 0, -1))
        label = next((prefixes[head] for head in heads if head in prefixes), OUTSIDE)
        layers.setdefault(label, []).append(name)
    return {label: names for label, names in layers.items() if names}


# --- what a file says of itself -----------------------------------------------


def described(plan: Plan, extra: Mapping[str, str], checksums: Mapping[str, str]) -> dict[str, str]:
    """The metadata of a file: the layout, the checksums, and all that is no array.

    Raises:
      CheckpointError: something is neither an array nor a plain value.
    """
    values: dict[str, object] = {}
    empty = []
    for name, value in tensors_of(plan.tree)[1].items():
        if isinstance(value, Mapping):
            empty.append(name)
        elif value is None or isinstance(value, (bool, int, float, str)):
            values[name] = value
        elif isinstance(value, complex):
            values[name] = {"complex": [value.real, value.imag]}
        else:
            raise CheckpointError(
                f"{name_of(name)} is {type(value).__name__}: neither an array nor a number, a "
                f"string or None"
            )
    # Layouts that are functions are written out for the collections in the file, and `params`,
    # which a state has under other names.
    collections = {name.split("/")[0] for name in plan.variables}
    about: dict[str, object] = {
        "version": 1,
        "stackings": [s.to_dict(sorted({"params", *collections})) for s in plan.stackings],
        "values": values,
        "empty": empty,
        "layers": plan.layer_sums(checksums),
        "variables": dict(checksums),
    }
    about["sum"] = _sum_of(about, extra)
    return {**extra, KEY: json.dumps(about, separators=(",", ":"))}


def _sum_of(about: Mapping[str, object], extra: Mapping[str, str]) -> str:
    """A checksum of all that a file says of itself."""
    # Sorted: JSON has no order of names, and whoever writes the file anew may use another.
    text = json.dumps([about, dict(extra)], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def compare(recorded: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Holds the checksums of variables against those in their file.

    Raises:
      CheckpointError: one differs, or a variable is in only one of them. The message names it.
    """
    for name in sorted(recorded.keys() | found.keys()):
        if name not in recorded:
            raise CheckpointError(f"{name_of(name)} is damaged: the file has no checksum for it")
        if name not in found:
            raise CheckpointError(
                f"{name_of(name)} is missing: the file has its checksum, but no such variable"
            )
        if found[name] != recorded[name]:
            raise CheckpointError(
                f"{name_of(name)} is damaged: its checksum is {found[name]}, the file says "
                f"{recorded[name]}"
            )


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is open, with arrays that are not read yet.

    Attributes:
      tree: nested dicts.
      kind: `"safetensors"`, `"msgpack"` or `"orbax"`.
      stackings: its layout, where it has one in its metadata.
      checksums: those in its metadata, of variables in the layers form.
      metadata: what else it says of itself.
    """

    tree: object
    kind: str
    stackings: Stackings = ()
    checksums: Mapping[str, str] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)


def read_described(tree: object, metadata: dict[str, str], kind: str) -> Checkpoint:
    """Takes what `described` wrote out of the metadata of a file; nothing in that of another.

    Args:
      tree: the tensors of the file.
      metadata: without what is taken, when this returns.
      kind: the file's.

    Raises:
      CheckpointError: it is something else, or not as it was written.
    """
    text = metadata.pop(KEY, None)
    if text is None:
        for name, other in metadata.items():
            if other.startswith('{"version":') and '"stackings":' in other:
                raise CheckpointError(
                    f"the metadata of liftax are damaged: they are called {name_of(name)}"
                )
        return Checkpoint(tree, kind, metadata=metadata)
    try:
        about = json.loads(text)
        if about["version"] != 1:
            raise CheckpointError(f"version {about['version']!r} of the metadata is not known")
        # The first files had no sum; one that is called otherwise is a damaged one.
        told = about.pop("sum", None)
        if about.keys() - _PARTS or (told is not None and told != _sum_of(about, metadata)):
            raise CheckpointError(
                "the metadata of liftax are damaged: their checksum is not the one in the file"
            )
        values: dict[str, object] = {name: {} for name in about["empty"]}
        for name, value in about["values"].items():
            values[name] = complex(*value["complex"]) if isinstance(value, dict) else value
        stackings = tuple(Stacking.from_dict(plain) for plain in about["stackings"])
        checksums = dict(about["variables"])
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"the metadata of liftax are damaged: {name_of(str(error))}"
        ) from error
    if values:
        tree = nested({**dict(flat(tree) if tree else ()), **values})
    return Checkpoint(tree, kind, stackings, checksums, metadata)


# --- writing ------------------------------------------------------------------


def write(
    path: Path,
    plan: Plan,
    *,
    kind: str = "safetensors",
    extra: Mapping[str, str] | None = None,
    recorded: Mapping[str, str] | None = None,
    step: Callable[[str, int], None] = lambda name, size: None,
) -> dict[str, str]:
    """Writes a checkpoint, reads it back, and only then puts it in its place.

    Args:
      path: the file to be made or replaced; of Orbax, the directory to be made.
      plan: what goes into it.
      kind: `"safetensors"`, `"msgpack"` (Linen's) or `"orbax"`.
      extra: metadata that the file has besides.
      recorded: checksums that the source has of its own variables.
      step: called after each tensor with its name and its bytes.

    Returns:
      The checksums of all variables, by their names in the layers form.

    Raises:
      CheckpointError: a checksum differs, or there is no room. The message names the variable.
      OSError: from the file system.
    """
    tensors, extra = plan.tensors, dict(extra or {})
    if isinstance(plan.tree, Mapping) and "" in plan.tree and "" in dict(flat(plan.tree)):
        raise CheckpointError("a variable at the top is called '': it could not be read back")
    # The sums are known when all has been written: until then, something of the same length.
    blank = {name: "0" * leaf.kind.length for name, leaf in plan.variables.items()}
    head = described(plan, extra, blank)
    _check_room(path, file_size(tensors, head))

    def known() -> tuple[dict[str, str], dict[str, str]]:
        """All has been read: the sums, and the description with them, of the same length."""
        sums = plan.checksums()
        if recorded:
            compare(recorded, sums)
        return sums, described(plan, extra, sums)

    if kind == "orbax":
        with new_directory(path) as made:
            write_orbax(made, nested(dict(tensors)), step)
            sums, about = known()
            (made / BESIDE).write_text(json.dumps(about), encoding="utf-8")
            _verify(read_orbax(made), json.loads((made / BESIDE).read_bytes()), kind, plan, sums)
        return sums
    with replacing(path) as (file, temporary):
        if kind == "msgpack":
            at = write_msgpack(file, plan.tree, json.dumps(head), step)
            sums, about = known()
            if at:
                file.seek(at)
                file.write(json.dumps(about).encode())
        else:
            write_safetensors(file, tensors, head, step)
            sums, about = known()
            file.seek(0)
            file.write(header_of(tensors, about)[0])
        file.flush()
        with ThreadPoolExecutor(1) as pool:  # the disk has its own pace
            synced = pool.submit(os.fsync, file.fileno())
            # From the file, not from what was meant to be in it: this is what a reader will see.
            if kind == "msgpack":
                tree, told = read_msgpack(np.memmap(temporary, np.uint8, mode="r"))
                _verify(tree, {} if told is None else json.loads(told), kind, plan, sums)
            else:
                _verify(*read_safetensors(temporary), kind, plan, sums)
            synced.result()
    return sums


def kind_of_target(path: Path) -> str:
    """The format that a name asks for: by its suffix, a directory of Orbax where it has none.

    Raises:
      CheckpointError: it is none that liftax writes.
    """
    suffix = path.suffix.lower()
    kinds = {".safetensors": "safetensors", ".msgpack": "msgpack", ".orbax": "orbax", "": "orbax"}
    if suffix not in kinds:
        raise CheckpointError(
            f"{path}: the output is a .safetensors file, a .msgpack file of Linen, or a directory "
            f"of Orbax (.orbax, or no suffix)"
        )
    return kinds[suffix]


def _verify(
    tree: object, metadata: dict[str, str], kind: str, plan: Plan, sums: Mapping[str, str]
) -> None:
    read_described(tree, metadata, kind)  # it must be possible to load it, too
    layers = to_layers(tree, plan.stackings) if plan.stackings else tree
    found = dict(_leaves(summed(layers, kind_of(sums))))
    if found.keys() != sums.keys():
        name = min(found.keys() ^ sums.keys())
        raise CheckpointError(
            f"{name_of(name)} is in only one of what was read and what was written"
        )
    read = plan.variables
    # Bytes that lie in two files are compared in a tenth of the time that another sum takes.
    mapped = {n for n, leaf in found.items() if leaf.base.in_file and read[n].base.in_file}
    summed_again = checksums({n: leaf for n, leaf in found.items() if n not in mapped})

    def same(name: str) -> bool:
        if name in mapped:
            return found[name].same_as(read[name])
        return summed_again[name] == sums[name]

    with ThreadPoolExecutor(_THREADS) as pool:
        alike = dict(zip(found, pool.map(same, found), strict=True))
    for name, is_same in alike.items():
        if not is_same:
            raise CheckpointError(
                f"{name_of(name)} was not written as it was read: is the disk damaged, or the "
                f"memory?"
            )


def _check_room(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.resolve().parent).free
    if needed > free:
        raise CheckpointError(f"{path}: takes {needed:,} bytes, and {free:,} are free there")
