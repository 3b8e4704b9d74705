"""The names that others give to the variables of a model: tables, and the way there and back.

A table in `tables/` has one row for each of their tensors: its name, ours (several where theirs is
cut into equal parts along its last axis), and what is done to the array on the way to ours, in
order: `transpose`, `heads N` and `kv_heads N` (axis N becomes two, of the heads and of the size of
one), `plus one`. `{}` stands for a layer's number. Back, everything is undone in reverse order.
"""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from ..stack.arrays import Lazy, Shape, View
from ..stack.stacking import Stacking, Stackings, name_of
from ..words import described
from .tensors import flat, nested

_ROOT = "params/"


@dataclasses.dataclass(frozen=True)
class Row:
    """One of their tensors."""

    theirs: str
    ours: tuple[str, ...]
    changes: tuple[Change, ...]

    def back(self, leaf: Lazy) -> Lazy:
        """One of our variables, or a part of one, as theirs."""
        for change in reversed(self.changes):
            leaf = change.back(leaf)
        return leaf


@dataclasses.dataclass(frozen=True)
class Table:
    """The names of one family of models.

    Attributes:
      name: the family's.
      about: which models it is of.
      base: what stands before the names of all but the head; files of the model without its head
        leave it out.
      alike: whether all layers are, so that they can be stacked without a model being named.
      sizes: `heads` and `kv_heads` -> what their configurations call the number.
      ignored: tensors of theirs that hold nothing to be kept.
      optional: tensors of theirs that only some of the models have.
      rows: one for each tensor.
    """

    name: str
    about: str
    base: str
    alike: bool
    sizes: Mapping[str, Sequence[str]]
    ignored: Sequence[str]
    optional: Sequence[str]
    rows: Sequence[Row]

    def to_ours(self, tree: object, config: Mapping[str, object]) -> tuple[object, Stackings]:
        """Brings a tree of their tensors to our names, one subtree a layer.

        Args:
          tree: their tensors, by name.
          config: what their configuration says: the numbers of heads.

        Raises:
          CheckpointError: a tensor is not in the table, missing, or of another shape. The message
            names it.
        """
        found = {str(name): leaf for name, leaf in flat(tree) if isinstance(leaf, Lazy)}
        # A model that was saved without its head lacks the prefix that its tensors have with it.
        if not any(name.startswith(self.base) for name in found):
            found = {self.base + name: leaf for name, leaf in found.items()}
        made: dict[str, object] = {}
        seen: dict[str, set[int]] = {row.theirs: set() for row in self.rows}
        for name, leaf in found.items():
            at = self._row(name)
            if at is None:
                continue
            row, number = at
            # -1 stands for what belongs to no layer.
            seen[row.theirs].add(int(number) if number else -1)
            for part, ours in zip(_cut(leaf, len(row.ours), name), row.ours, strict=True):
                for change in row.changes:
                    count = self._count(change.kind, config) if change.kind in self.sizes else 0
                    part = change.there(part, name, count)
                made[_ROOT + ours.replace("{}", number)] = part
        depth = self._check_whole(seen)
        stack = Stacking.of("blocks/block_0", depth, names="/blocks/layers_{}")
        return nested(made), (stack,)

    def to_theirs(self, tree: object) -> dict[str, Lazy]:
        """Brings our variables, one subtree a layer, to their names.

        Raises:
          CheckpointError: a variable is not in the table, or its parts are not alike.
        """
        found = {name: leaf for name, leaf in flat(tree) if isinstance(leaf, Lazy)}
        rows = {ours: row for row in self.rows for ours in row.ours}
        parts: dict[str, list[Lazy]] = {}
        for name in found:
            for ours, row in rows.items():
                number = _number(_ROOT + ours, name)
                if number is not None:
                    # Several of ours may be one of theirs, as queries, keys and values: then all
                    # must be there.
                    wanted = [_ROOT + ours.replace("{}", number) for ours in row.ours]
                    missing = [one for one in wanted if one not in found]
                    if missing:
                        raise CheckpointError(f"{name_of(missing[0])} is missing")
                    theirs = row.theirs.replace("{}", number)
                    parts[theirs] = [row.back(found[one]) for one in wanted]
                    break
            else:
                raise CheckpointError(
                    f"{name_of(name)} has no name in the table {self.name!r}, which is of "
                    f"{self.about}"
                )
        return {name: leaves[0] if len(leaves) == 1 else _Beside(leaves)
                for name, leaves in parts.items()}  # fmt: skip

    def _row(self, name: str) -> tuple[Row, str] | None:
        """The row of a tensor of theirs, with the layer's number; None for what is left out."""
        for row in self.rows:
            number = _number(row.theirs, name)
            if number is not None:
                return row, number
        if any(_number(one, name) is not None for one in self.ignored):
            return None
        # The tables name them with the prefix or without it, and so may a file.
        if f"{self.base}{name}" in self.ignored or name.removeprefix(self.base) in self.ignored:
            return None
        raise CheckpointError(
            f"{name_of(name)} is not in the table {self.name!r}, which is of {self.about}"
        )

    def _check_whole(self, seen: Mapping[str, set[int]]) -> int:
        """Returns the number of layers; raises where a tensor is missing."""
        numbers = set().union(*(found for name, found in seen.items() if "{}" in name))
        depth = len(numbers)
        # Up to the highest number: a gap between layers is a layer that is missing.
        every = set(range(max(numbers, default=-1) + 1))
        for name, found in seen.items():
            wanted = every if "{}" in name else {-1}
            # What only some models have, these have in all layers or in none.
            if wanted - found and (found or name not in self.optional):
                number = min(wanted - found)
                raise CheckpointError(f"{name.replace('{}', str(number))} is missing")
        if not depth:
            raise CheckpointError(f"no layer is called as in the table {self.name!r}")
        return depth

    def _count(self, kind: str, config: Mapping[str, object]) -> int:
        """The number of heads, or of those of keys and values."""
        # A configuration that does not tell the heads of keys and values has as many as of queries.
        names = [*self.sizes[kind], *self.sizes["heads"]]
        count = next((config[name] for name in names if name in config), None)
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise CheckpointError(
                f"the number of heads is not known: {names[0]!r} in a config.json beside the "
                f"checkpoint says it"
            )
        return count


def _number(pattern: str, name: str) -> str | None:
    """The number of the layer where a name is as a table has it, "" where it is of none."""
    match = re.fullmatch(re.escape(pattern).replace(r"\{\}", r"(\d+)"), name)
    if match is None:
        return None
    return match[1] if match.groups() else ""


@dataclasses.dataclass(frozen=True)
class Change:
    """What is done to an array on the way to ours, and undone on the way back.

    Attributes:
      kind: `transpose`, `plus one`, or whose number of heads cuts an axis: `heads`, `kv_heads`.
      axis: the axis that is cut.
    """

    kind: str
    axis: int = 0

    @classmethod
    def read(cls, text: str) -> Change:
        """A change as tables have it: `transpose`, `kv_heads 1`."""
        kind, _, axis = text.rpartition(" ")
        return cls(kind, int(axis)) if axis.isdigit() else cls(text)

    def there(self, leaf: Lazy, name: str, count: int) -> Lazy:
        """An array of theirs, changed; ``count`` is the number of heads."""
        if self.kind == "transpose":
            return self.back(leaf)  # it undoes itself
        if self.kind == "plus one":
            return _plus(leaf, 1)
        shape, at = leaf.shape, self.axis
        if at >= len(shape) or shape[at] % count:
            raise CheckpointError(
                f"{name_of(name)} is {described(leaf)}: axis {at} is not of {count} heads"
            )
        return _reshaped(leaf, (*shape[:at], count, shape[at] // count, *shape[at + 1 :]))

    def back(self, leaf: Lazy) -> Lazy:
        """An array of ours, as theirs."""
        shape, at = leaf.shape, self.axis
        if self.kind == "transpose":
            return View(leaf, shape[::-1], np.transpose)
        if self.kind == "plus one":
            return _plus(leaf, -1)
        return _reshaped(leaf, (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))


def _reshaped(leaf: Lazy, shape: Shape) -> Lazy:
    return View(leaf, shape, lambda x: x.reshape(shape))


class _Plus(View):
    """An array with a number added, in float32: the sum of a narrow one would be rounded."""

    def __init__(self, base: Lazy, shape: Shape, see: Callable[[np.ndarray], np.ndarray]):
        super().__init__(base, shape, see)
        self.dtype = np.dtype(np.float32)


def _plus(leaf: Lazy, number: int) -> Lazy:
    return _Plus(leaf, leaf.shape, lambda x: x.astype(np.float32) + np.float32(number))


def _cut(leaf: Lazy, parts: int, name: str) -> Iterator[Lazy]:
    """Equal parts of an array along its last axis."""
    if parts == 1:
        yield leaf
        return
    size, rest = divmod(leaf.shape[-1] if leaf.shape else 0, parts)
    if rest or not size:
        raise CheckpointError(f"{name_of(name)} is {described(leaf)}, not {parts} alike")

    def part(i: int) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: x[..., i * size : (i + 1) * size]

    for i in range(parts):
        yield View(leaf, (*leaf.shape[:-1], size), part(i))


class _Beside(Lazy):
    """Arrays alike, one after the other along the last axis."""

    def __init__(self, parts: Sequence[Lazy]):
        self.parts, self.dtype, self.order = parts, parts[0].dtype, parts[0].order
        if len({(part.shape, part.dtype) for part in parts}) != 1:
            raise CheckpointError(f"{' and '.join(map(described, parts))} are not alike")
        self.shape = (*parts[0].shape[:-1], parts[0].shape[-1] * len(parts))

    def read(self) -> np.ndarray:
        """A new array."""
        return np.concatenate([part.read() for part in self.parts], axis=-1)


def tables() -> list[str]:
    """The names of all tables."""
    folder = importlib.resources.files(__package__) / "tables"
    files = [item.name for item in folder.iterdir()]
    return sorted(name.removesuffix(".json") for name in files if name.endswith(".json"))


def table(name: str) -> Table:
    """The table of a family of models.

    Raises:
      CheckpointError: there is none of that name.
    """
    if name not in tables():
        raise CheckpointError(f"there is no table {name!r}; there are {', '.join(tables())}")
    file = importlib.resources.files(__package__) / "tables" / f"{name}.json"
    told = json.loads(file.read_text(encoding="utf-8"))
    rows = []
    for theirs, ours, *changes in told["variables"]:
        names = (ours,) if isinstance(ours, str) else tuple(ours)
        rows.append(Row(theirs, names, tuple(map(Change.read, changes))))
    sizes = {"heads": told["heads"], "kv_heads": told["kv_heads"]}
    return Table(
        name=name,
        about=told["about"],
        base=told["base"],
        alike=told["alike"],
        sizes=sizes,
        ignored=told["ignored"],
        optional=told["optional"],
        rows=rows,
    )


def config_beside(path: Path) -> dict[str, object]:
    """What a configuration beside a checkpoint says, empty where there is none.

    Raises:
      CheckpointError: it is no JSON object.
    """
    file = (path if path.is_dir() else path.parent) / "config.json"
    try:
        told = json.loads(file.read_bytes())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: is not JSON") from error
    if not isinstance(told, dict):
        raise CheckpointError(f"{file}: is no object")
    text = told.get("text_config")  # of a model that reads more than text
    return {**told, **(text if isinstance(text, dict) else {})}
