"""Layouts of what is no model: variables, and checkpoints; and how any two of these differ."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..core.types import Path as Names
from ..errors import StackingError, TransformTargetError
from ..layout.build import layout
from ..layout.data import Along, Axis, LiftNode, VariableLayout
from ..layout.diff import Difference, LayoutDiff, diff
from ..layout.shown import Layout
from ..module.attach import is_module
from ..stack.arrays import Lazy, is_array
from ..stack.convert import Converter, Form, form_of
from ..stack.stacking import Stacking, Stackings
from ..words import class_or_type
from .files import open_checkpoint
from .find import from_layout
from .tensors import to_plain

Source = str | os.PathLike[str]


def layout_diff(
    a: object,
    b: object,
    rngs: object = None,
    *args: object,
    names: tuple[str, str] = ("a", "b"),
    **kwargs: object,
) -> LayoutDiff:
    """How two models, two storages of a model, or a model and a checkpoint differ.

    Nothing is computed and no array is read: shapes, dtypes and lifts are compared. Where the same
    layers are stored as one subtree on one side and one by one on the other, that is one
    difference, and the layers are compared all the same. Variables and checkpoints say nothing of
    lifts, so beside these only paths, shapes and dtypes are compared.

    Args:
      a: a `Layout`, a module (unbound, or a class), variables (a mapping of collections), or the
        path of a checkpoint (safetensors, msgpack, a directory of Orbax).
      b: the same.
      rngs: for a module, as for `nn.layout`.
      *args: for a module, the arguments of its call, as for `nn.layout`.
      names: what the words call the two.
      **kwargs: for a module, further arguments of its call.

    Returns:
      A `LayoutDiff`: a sequence of `Difference`, empty where the two are alike. Each has a `kind`
      ("missing", "extra", "renamed", "axes", "names", "dtype", "role", "lift", "split", "storage"),
      a `path`, what both sides have there (``a``, ``b``), the `lift` it is about, and a `message`.
      These attributes stay as they are; kinds may be added. Print it for a table.

    Raises:
      TransformTargetError: something else was given, or a module without ``rngs``.
      CheckpointError: the file is damaged or of another kind.
      OSError: the file cannot be read.
      Whatever `module.init` raises for the same arguments.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...   @nn.compact
      ...   def __call__(self, x, _):
      ...     return nn.Dense(4)(x), None
      >>> def stack(**roles):
      ...   return nn.scan(Block, length=3, **roles)()
      >>> x = jax.ShapeDtypeStruct((2, 4), 'float32')
      >>> found = nn.layout_diff(
      ...   stack(variable_axes={'params': 0}, split_rngs={'params': True}),
      ...   stack(variable_broadcast='params', split_rngs={'params': False}),
      ...   jax.random.key(0), x, None)
      >>> [(d.kind, d.path, d.a, d.b) for d in found.of('role')]
      [('role', 'params/Dense_0/kernel', 'stacked', 'shared'), \
('role', 'params/Dense_0/bias', 'stacked', 'shared')]
      >>> print(found.of('split')[0])
      /: stream 'params' of scan × 3 over Block is split in a, not split in b
    """
    first, second = (_side(one, rngs, args, kwargs) for one in (a, b))
    first, second = first.beside(second), second.beside(first)
    second, found = _in_one_storage(first, second, names)
    plain = {d.path.strip("/") for d in found}
    prefixes = [tuple(path.split("/")) if path else () for path in plain]
    return diff(first.layout, second.layout, names, plain=prefixes, found=found)


@dataclasses.dataclass(frozen=True)
class _Side:
    """One of the two: its layout, its stackings, and the tree it was read from, if any."""

    layout: Layout
    stackings: Stackings = ()
    tree: object = None

    def beside(self, other: _Side) -> _Side:
        """The side with its tree read as parameters, if it has none of the other's collections."""
        mine = {v.collection for v in self.layout}
        theirs = {v.collection for v in other.layout}
        if self.tree is None or mine & theirs or "params" not in theirs:
            return self
        made = layout_of({"params": self.tree}, self.layout.module, self.stackings)
        return dataclasses.replace(self, layout=made)


def _side(given: object, rngs: object, args: Any, kwargs: Any) -> _Side:
    if isinstance(given, Layout):
        return _traced(given)
    if isinstance(given, (str, os.PathLike)):
        return _stored(given)
    if is_module(given) or isinstance(given, type):
        if rngs is None:
            raise TransformTargetError(
                f"layout_diff: a module needs keys and the arguments of its call, as in "
                f"layout_diff({class_or_type(given)}, other, jax.random.key(0), x); or hand in "
                f"nn.layout(module, rngs, *args) of each"
            )
        return _traced(layout(given, rngs, *args, **kwargs))
    if isinstance(given, Mapping):
        return _Side(layout_of(given, "variables"), tree=given)
    raise TransformTargetError(
        f"layout_diff: expected a Layout, a module, a mapping of collections or the path of a "
        f"checkpoint; found {class_or_type(given)}"
    )


def _traced(found: Layout) -> _Side:
    try:
        return _Side(found, from_layout(found))
    except StackingError:
        return _Side(found)  # scans that no stacking describes are compared as they are


def _stored(source: Source) -> _Side:
    found = open_checkpoint(source)
    made = layout_of(found.tree, Path(source).name, found.stackings)
    return _Side(made, found.stackings, found.tree)


def read_layout(source: Source, *, values: bool = False) -> Layout:
    """The layout of a checkpoint, from its own names, shapes and metadata.

    Args:
      source: a file, or a directory of Orbax.
      values: read the arrays too, one at a time, for what their numbers are like.

    Raises:
      CheckpointError: it is damaged, or of another kind.
      OSError: it cannot be read.
    """
    found = _stored(source)
    if not values:
        return found.layout
    tree = to_plain(found.tree, lambda leaf, at: leaf.read() if isinstance(leaf, Lazy) else leaf)
    assert isinstance(tree, Mapping)
    return found.layout.with_values(tree)


def layout_of(tree: object, name: str, stackings: Iterable[Stacking] = ()) -> Layout:
    """The layout of variables that lie there, as far as they and their stackings tell.

    Args:
      tree: collection -> variables: arrays, shapes, or what is not read yet.
      name: what it is called.
      stackings: which subtrees are stacked; each that has an axis is a lift of its own.
    """
    told = _Told()
    plain = to_plain(tree)
    for collection, part in plain.items() if isinstance(plain, Mapping) else ():
        told.see(part, collection, tuple(stackings))
    return Layout(name, tuple(told.rows), tuple(told.lifts), traced=False)


class _Told:
    """What a tree and its stackings say: a row for each array, a lift for each stack."""

    def __init__(self) -> None:
        self.rows: list[VariableLayout] = []
        self.lifts: list[LiftNode] = []
        self.known: dict[tuple[int | None, Names], int] = {}

    def see(
        self,
        node: object,
        collection: str,
        stackings: Stackings,
        at: Names = (),
        here: Names = (),
        nest: tuple[tuple[int, Stacking], ...] = (),
    ) -> None:
        """Goes down from ``at``, which lies at ``here`` from where all paths begin."""
        for s in stackings:
            if s.path == here and s.axes is not None and _stacked(s, node, collection):
                index = self.lift(s, collection, at, nest)
                self.see(node, collection, s.inside, at, (), (*nest, (index, s)))
                return
            # One of several subtrees of layers: within it the paths begin anew.
            if here in s.layers:
                self.see(node, collection, s.inside, at, (), nest)
                return
        if isinstance(node, Mapping):
            for name, part in node.items():
                self.see(part, collection, stackings, (*at, name), (*here, name), nest)
        elif is_array(node):
            self.rows.append(self.row(node, collection, at, nest))

    def lift(
        self, s: Stacking, collection: str, at: Names, nest: tuple[tuple[int, Stacking], ...]
    ) -> int:
        parent = nest[-1][0] if nest else None
        # A stack is one lift, however many collections have it: each adds its role.
        index = self.known.setdefault((parent, at), len(self.lifts))
        roles = {collection: "stacked"}
        if index == len(self.lifts):
            target = at[-1] if at else "the layers"
            self.lifts.append(
                LiftNode(
                    index,
                    "stack",
                    target,
                    at,
                    parent,
                    len(s.layers),
                    roles=roles,
                    order=tuple(s.order or ()),
                )
            )
        else:
            node = self.lifts[index]
            self.lifts[index] = dataclasses.replace(node, roles={**node.roles, **roles})
        return index

    def row(
        self, leaf: Any, collection: str, at: Names, nest: tuple[tuple[int, Stacking], ...]
    ) -> VariableLayout:
        shape = tuple(leaf.shape)
        left = list(range(len(shape)))
        origin: dict[int, int] = {}
        gone: frozenset[Names] = frozenset()
        # From the outside in: where an axis lies is said without those of the stacks around it.
        for index, s in nest:
            try:
                place = s.places(collection, len(left), gone).axis
            except StackingError:
                continue  # the file contradicts itself; whoever converts it is told so
            if place < len(left):
                origin[left.pop(place)] = index
                gone |= {s.mark}
        axes = tuple(
            Axis(size, self.lifts[origin[i]].label if i in origin else None, origin.get(i))
            for i, size in enumerate(shape)
        )
        places = {index: axis for axis, index in origin.items()}
        along = tuple(Along(i, "stacked", places[i]) for i, _ in nest if i in places)
        # What numpy has no dtype for, as a random key, has a size that nobody knows here.
        size = math.prod(shape) * np.dtype(leaf.dtype).itemsize if _plain(leaf.dtype) else 0
        return VariableLayout(collection, at, shape, str(leaf.dtype), size, axes, along)


def _plain(dtype: object) -> bool:
    try:
        np.dtype(dtype)  # type: ignore[call-overload]
    except TypeError:
        return False
    return True


def _stacked(s: Stacking, node: object, collection: str) -> bool:
    """Whether a node at a stacking's path holds its layers as one."""
    below = [layer[len(s.path) :] for layer in s.layers if layer[: len(s.path)] == s.path]
    in_layers = any(isinstance(node, Mapping) and path[0] in node for path in below if path)
    return not in_layers and s.stacks(collection)


# --- two storages -------------------------------------------------------------


class _Row(Lazy):
    """A row of a layout, to be renamed and resized as an array would be."""

    def __init__(self, row: VariableLayout):
        self.row = row
        self.shape = row.shape
        self.dtype = row.dtype  # type: ignore[assignment]  # a key's dtype is no numpy's

    def read(self) -> np.ndarray:
        """There is nothing in it."""
        raise NotImplementedError


def _in_one_storage(a: _Side, b: _Side, names: tuple[str, str]) -> tuple[_Side, list[Difference]]:
    """The second with its layers stored as in the first, and one difference for each such stack."""
    mine, theirs = _tree(a.layout), _tree(b.layout)
    found: dict[Names, Difference] = {}
    # Where both have a stack at one path the first's own counts, whose storage is to come out.
    known = {s.path: s for s in (*b.stackings, *a.stackings)}
    for s in known.values():
        for collection in mine:
            forms = [_form(s, tree.get(collection), collection) for tree in (mine, theirs)]
            if set(forms) != {"stacked", "layers"}:
                continue
            form: Form = "stacked" if forms[0] == "stacked" else "layers"
            try:
                theirs[collection] = Converter(form, collection)(theirs[collection], (s,))
            except StackingError:
                continue  # they are not the same layers: what is missing is said by its name
            found.setdefault(s.owner, _stored_otherwise(s, forms, names))
    # Both stacked, but one by the stages of a pipeline: another name and another order of rows.
    for s, other in itertools.product(b.stackings, a.stackings):
        if s.order == other.order or s.owner != other.owner or {*s.layers} != {*other.layers}:
            continue
        for collection in mine:
            trees = (other, mine.get(collection)), (s, theirs.get(collection))
            if any(_form(one, tree, collection) != "stacked" for one, tree in trees):
                continue
            layers = Converter("layers", collection)(theirs[collection], (s,))
            theirs[collection] = Converter("stacked", collection)(layers, (other,))
            forms = ["circular" if one.order else "stacked" for one in (other, s)]
            found.setdefault(s.owner, _stored_otherwise(s, forms, names))
    if not found:
        return b, []
    rows = [row for name, tree in theirs.items() for row in _rows(tree, name, ())]
    changed = b.layout.replace(variables=tuple(rows))
    return dataclasses.replace(b, layout=changed), list(found.values())


def _stored_otherwise(s: Stacking, forms: list[str], names: tuple[str, str]) -> Difference:
    words = {
        "stacked": "stacked, one subtree",
        "layers": "stored one by one",
        "circular": "stacked by the stages of a pipeline",
    }
    path = "/" + "/".join(s.owner)
    said = ", ".join(f"{words[form]} in {name}" for form, name in zip(forms, names, strict=True))
    text = f"{path}: the layers are {said} (nn.to_stacked and nn.to_layers convert)"
    return Difference("storage", path, forms[0], forms[1], text)


def _form(s: Stacking, tree: object, collection: str) -> str:
    try:
        return form_of(s, tree, collection)
    except StackingError:
        return "neither"


def _tree(found: Layout) -> dict[str, Any]:
    """The rows of a layout by collection and path."""
    made: dict[str, Any] = {}
    for v in found:
        *above, last = [v.collection, *v.path, *([v.leaf] if v.leaf else [])]
        node = made
        for name in above:
            node = node.setdefault(name, {})
            if not isinstance(node, dict):
                return {}  # a file in which one name is a variable and a module
        node[last] = _Row(v)
    return made


def _rows(tree: Any, collection: str, at: Names) -> Iterable[VariableLayout]:
    if isinstance(tree, _Row):
        yield tree.row
    elif isinstance(tree, Lazy):
        # A name like `[0]` or `.mu` is no module's: it leads into a variable that is a pytree.
        leaf = at[-1] if at[-1][:1] in "[." else ""
        path = at[:-1] if leaf else at
        axes = tuple(Axis(size) for size in tree.shape)
        yield VariableLayout(collection, path, tree.shape, str(tree.dtype), 0, axes, leaf=leaf)
    else:
        for name, part in tree.items():
            yield from _rows(part, collection, (*at, name))
