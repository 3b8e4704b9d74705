"""The one converter: the trees of a stack's layers as one stacked tree, and the other way.

A stacked tree is a renaming of paths. `path/kernel`, with an axis for the layers, is
`layers_0/kernel`, `layers_1/kernel`, ... without it. `Converter` carries that out for the tree of
one collection and all stackings in it, whatever the leaves are: the arrays of checkpoints that are
not read yet, shapes, or the tracers of a stack that runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

import jax

from ..core.boxes import AxisMetadata, is_axis_metadata
from ..core.types import Path
from ..errors import LiftaxError, StackingError
from ..words import described
from .arrays import Array, Places, apart, inverse, is_array, permuted, together
from .stacking import NONE_GONE, Stacking, Stackings, name_of
from .trees import MISSING, Level, arrays_in, get, has, opened, put, remove

Form = Literal["stacked", "layers"]
Found = Literal["stacked", "layers", "shared", "absent"]
Done = Callable[[Array], None]


def _kept(array: Array) -> None:
    pass


def form_of(stacking: Stacking, tree: object, collection: str, at: Path = ()) -> Found:
    """How a stack lies in the tree of a collection.

    Returns:
      `"stacked"`, `"layers"`, `"shared"` (the collection has no layer axis) or `"absent"`.

    Raises:
      StackingError: both forms at once, a layer missing, or a layer too many.
    """
    whole = get(tree, stacking.path)
    # Looked up by path, never searched for: the time is that of the layers, however large the
    # tree around them is.
    there = [path for path in stacking.layers if has(tree, path)]
    # Layers may lie below the place of the stacked form: what is left there without them counts.
    depth = len(stacking.path)
    inside = [path[depth:] for path in there if path[:depth] == stacking.path]
    if inside:
        whole = remove(whole, inside) or MISSING
    if whole is MISSING and not there:
        return "absent"
    if stacking.axes is not None and not stacking.stacks(collection):
        return "absent" if whole is MISSING else "shared"
    # One layer more than the layout has is another model: converted, it would be lost.
    for path in stacking.beyond:
        if has(tree, path):
            raise StackingError(
                f"{name_of(at + path)} is one more than the layout has: the layout of the stack "
                f"at {name_of(at + stacking.owner)} is that of a smaller model"
            )
    if not there:
        return "stacked"
    if whole is not MISSING:
        raise StackingError(
            f"{name_of(at + there[0])} is called as a layer of {name_of(at + stacking.path)}, "
            f"which also has variables that are stacked; where that is a name in the block itself, "
            f"give the layers other names (names= of Stacking.of)"
        )
    if len(there) < len(stacking.layers):
        missing = next(path for path in stacking.layers if path not in there)
        raise StackingError(
            f"{name_of(at + missing)} is missing, but there is {name_of(at + there[0])}: the "
            f"layout has {len(stacking.layers)} layers there; does it belong to another model?"
        )
    return "layers"


@dataclasses.dataclass(frozen=True)
class LayerAxis:
    """The layer axis of a stacking in the arrays of one collection.

    Attributes:
      stacking: whose axis it is.
      collection: the collection.
      removed: the stacks around it whose axes are gone from the arrays.
    """

    stacking: Stacking
    collection: str
    removed: frozenset[Path] = NONE_GONE

    @property
    def count(self) -> int:
        """The number of layers."""
        return len(self.stacking.layers)

    @property
    def moved_only(self) -> bool:
        """Whether there is one layer and no axis."""
        return self.stacking.axes is None

    def of(self, array: Array, at: Path) -> Places:
        """Where the axis lies in a stacked array.

        Raises:
          StackingError: it has no such axis, or its size is not the number of layers.
        """
        places = self.places(len(array.shape), at)
        size = array.shape[places.axis]
        if size != self.count:
            raise StackingError(
                f"{name_of(at)} is {described(array)}: size {size} along axis {places.axis}, "
                f"where the layout has {self.count} layers for {name_of(self.stacking.path)}"
            )
        return places

    def places(self, ndim: int, at: Path) -> Places:
        """Where the axis lies in a stacked array of ``ndim`` axes."""
        try:
            return self.stacking.places(self.collection, ndim, self.removed)
        except StackingError as error:
            raise StackingError(
                f"{name_of(at)} {error}; it is in the stack {name_of(self.stacking.path)}"
            ) from None

    def stacked(self, layer: Array, at: Path) -> Places:
        """Where the axis comes to lie, from the array of one layer."""
        return self.places(len(layer.shape) + 1, at)

    def named(self, ndim: int, at: Path) -> int:
        """Where the name of the axis lies among the names of a box around a stacked array.

        Names may stop before the last axes, so an axis that lifts count from the end is counted
        from the end here too.
        """
        if self.stacking.present(self.collection, self.removed):
            return self.places(ndim, at).axis
        axis = self.stacking.axis_of(self.collection)
        assert axis is not None
        return axis

    def checked(self, node: object, at: Path) -> None:
        """Holds the arrays of a stacked subtree to the number of layers."""
        if not self.moved_only:
            for path, leaf in arrays_in(node, at):
                self.of(leaf, path)


def split(node: object, axis: LayerAxis, at: Path, done: Done = _kept) -> list[object]:
    """A stacked subtree as one tree for each layer.

    Args:
      node: the subtree.
      axis: the layer axis.
      at: the path of the subtree, for messages.
      done: called with each array that has been taken apart.
    """
    if axis.moved_only:
        return [node]
    if is_array(node):
        made = apart(node, axis.of(node, at))
        done(node)  # array by array, so that no more than one is there twice
        return [*made]
    if is_axis_metadata(node):
        return _split_box(node, axis, at, done)
    level = opened(node)
    if level is None:
        return [node] * axis.count  # a label holds for every layer
    columns = [split(part, axis, (*at, name), done) for name, part in level.parts]
    return [level.rebuilt([column[i] for column in columns]) for i in range(axis.count)]


def _split_box(box: AxisMetadata, axis: LayerAxis, at: Path, done: Done) -> list[object]:
    # The lifts tell the outermost box of an axis, and so is it here: those within stay.
    stacked = [leaf for leaf in jax.tree.leaves(box) if is_array(leaf)]
    if stacked:
        # It may change its value too: what stands for all layers becomes one for each.
        index = axis.named(stacked[0].ndim, at)
        with _naming(at):
            box = box.remove_axis(index, axis.stacking.metadata_params)
    leaves, treedef = jax.tree.flatten(box)
    contents = [split(leaf, axis, at, done) for leaf in leaves]
    boxes = [jax.tree.unflatten(treedef, [c[i] for c in contents]) for i in range(axis.count)]
    ndim = next((leaf.ndim for leaf in leaves if is_array(leaf)), None)
    if ndim is None:
        return boxes
    order = axis.places(ndim, at).order
    with _naming(at):
        return [_names_permuted(b, order) for b in boxes]


def _names_permuted(box: AxisMetadata, order: tuple[int, ...] | None) -> AxisMetadata:
    """The box with the names of its axes in another order."""
    if order is None:
        return box
    names, replace = getattr(box, "names", None), getattr(box, "replace", None)
    if not isinstance(names, tuple) or replace is None:
        raise StackingError(
            f"a lift around the stack has its axis elsewhere where layers are stored one by one, "
            f"and {type(box).__name__} cannot put the names of its axes in that order: only boxes "
            f"with names= can"
        )
    return replace(names=permuted((*names, *(None,) * (len(order) - len(names))), order))


@contextlib.contextmanager
def _naming(at: Path) -> Iterator[None]:
    """Errors say which variable they are about."""
    try:
        yield
    except LiftaxError as error:
        raise type(error)(f"{name_of(at)}: {error}") from None


def unite(
    nodes: Sequence[object], axis: LayerAxis, at: Path, paths: Sequence[Path], done: Done = _kept
) -> object:
    """The trees of all layers as one stacked subtree.

    Args:
      nodes: one tree for each layer, in order.
      axis: the layer axis.
      at: the path within the layer, for messages.
      paths: the paths of the layers, for messages.
      done: called with each array that has been stacked.

    Raises:
      StackingError: the layers differ.
    """
    first = nodes[0]
    if axis.moved_only:
        return first
    if is_axis_metadata(first):
        return _unite_boxes(nodes, axis, at, paths, done)
    # The first layer is the measure: whoever differs from it is named, with its own path.
    levels = [opened(node) for node in nodes]
    for path, node, level in zip(paths, nodes, levels, strict=True):
        if not _alike(first, levels[0], node, level):
            raise _unlike(paths[0] + at, first, path + at, node)
    parts = [dict(level.parts) for level in levels if level is not None]
    if parts:
        for path, other in zip(paths, parts, strict=True):
            _check_names(parts[0], other, paths[0] + at, path + at)
            _check_names(other, parts[0], path + at, paths[0] + at)
        assert levels[0] is not None
        return levels[0].rebuilt(
            unite([part[name] for part in parts], axis, (*at, name), paths, done)
            for name in parts[0]
        )
    arrays = [node for node in nodes if is_array(node)]
    if not arrays:
        return first  # a label that all layers have
    with _naming(paths[0] + at):
        made = together(arrays, axis.stacked(arrays[0], paths[0] + at))
    for array in arrays:
        done(array)
    return made


def _unite_boxes(
    nodes: Sequence[object], axis: LayerAxis, at: Path, paths: Sequence[Path], done: Done
) -> object:
    first, where = nodes[0], paths[0] + at
    treedef: object = jax.tree.structure(first)
    for path, node in zip(paths, nodes, strict=True):
        if jax.tree.structure(node) != treedef:  # the names of axes are a part of it
            raise _unlike(where, first, path + at, node)
    rows = zip(*map(jax.tree.leaves, nodes), strict=True)
    made = jax.tree.unflatten(treedef, [unite(row, axis, at, paths, done) for row in rows])
    arrays = [leaf for leaf in jax.tree.leaves(first) if is_array(leaf)]
    if not arrays:
        return made
    with _naming(where):
        ndim = arrays[0].ndim + 1
        made = _names_permuted(made, inverse(axis.places(ndim, where).order))
        return made.add_axis(axis.named(ndim, where), axis.stacking.metadata_params)


def _check_names(
    mine: Mapping[str, object], yours: Mapping[str, object], mine_at: Path, yours_at: Path
) -> None:
    for name in mine:
        if name not in yours:
            raise StackingError(
                f"{name_of((*yours_at, name))} is missing, but there is "
                f"{name_of((*mine_at, name))}; the layers of a stack have the same variables"
            )


def _alike(one: object, level: Level | None, other: object, other_level: Level | None) -> bool:
    if is_array(one) and is_array(other):
        return tuple(one.shape) == tuple(other.shape) and one.dtype == other.dtype
    if level is not None and other_level is not None:
        return level.kind == other_level.kind
    return type(one) is type(other) and bool(one == other)


def _unlike(one_at: Path, one: object, other_at: Path, other: object) -> StackingError:
    return StackingError(
        f"{name_of(other_at)} is {_in_words(other)}, but {name_of(one_at)} is {_in_words(one)}; "
        f"the layers of a stack are alike"
    )


def _in_words(node: object) -> str:
    if is_axis_metadata(node):
        names = getattr(node, "names", None)
        return type(node).__name__ + ("" if names is None else f" with the names {names}")
    return "a mapping of variables" if isinstance(node, Mapping) else described(node)


@dataclasses.dataclass(frozen=True)
class Converter:
    """Brings the stackings in the tree of one collection to one form.

    Attributes:
      form: the form.
      collection: whose axes hold.
      done: called with each array that is not needed any more.
    """

    form: Form
    collection: str
    done: Done = _kept

    def __call__(
        self,
        tree: object,
        stackings: Stackings,
        at: Path = (),
        removed: frozenset[Path] = NONE_GONE,
    ) -> object:
        """A root, or a layer of one, in the form.

        Args:
          tree: nested mappings.
          stackings: with paths from ``tree``.
          at: where the tree lies, for messages.
          removed: the stacks around it whose axes are gone from its arrays.

        Raises:
          StackingError: the tree and the stackings contradict each other.
        """
        for s in stackings:
            found = form_of(s, tree, self.collection, at)
            axis = LayerAxis(s, self.collection, removed)
            if found == "absent":
                continue
            if found == "stacked" and self.form == "layers":
                if _stands_for_all(get(tree, s.path), s):
                    continue
                tree, found = self._apart(tree, axis, at), "layers"
            elif found == "stacked":
                axis.checked(get(tree, s.path), at + s.path)
            # What lies inside is converted in single layers wherever there are such: so the
            # outermost axis is the first to go, and the last to come back.
            if s.inside:
                paths = s.layers if found == "layers" else (s.path,)
                gone = removed | {s.mark} if found == "layers" else removed
                inside = {p: self(get(tree, p), s.inside, at + p, gone) for p in paths}
                tree = put(tree, inside)
            if found == "layers" and self.form == "stacked":
                tree = self._together(tree, axis, at)
        return tree

    def _apart(self, tree: object, axis: LayerAxis, at: Path) -> object:
        s = axis.stacking
        pieces = split(get(tree, s.path), axis, at + s.path, self.done)
        tree = remove(tree, [s.path])
        for path in s.layers:
            if _taken(tree, path):
                raise StackingError(
                    f"{name_of(at + path)} is there already, where a layer of "
                    f"{name_of(at + s.path)} would go; give the layers other names (names= of "
                    f"Stacking.of)"
                )
        return put(tree, dict(zip(s.layers, pieces, strict=True)))

    def _together(self, tree: object, axis: LayerAxis, at: Path) -> object:
        s = axis.stacking
        layers = [get(tree, path) for path in s.layers]
        # The layers go first: the stacked form may lie where they lay.
        tree = remove(tree, s.layers)
        if _taken(tree, s.path):
            raise StackingError(
                f"{name_of(at + s.path)} is there already, where the layers "
                f"{name_of(at + s.layers[0])}, ... would be stacked"
            )
        paths = [at + path for path in s.layers]
        return put(tree, {s.path: unite(layers, axis, (), paths, self.done)})


def _stands_for_all(node: object, s: Stacking) -> bool:
    """Whether a node without arrays holds the place of a stack, as masks of optimizers leave it.

    It holds that of the layers as well where they lie at the same path.
    """
    below = all(path[: len(s.path)] == s.path for path in s.layers)
    return below and not isinstance(node, Mapping) and not jax.tree.leaves(node)


def _taken(tree: object, path: Path) -> bool:
    """Whether something stands at a path, or in the way to it."""
    for end in range(len(path) + 1):
        found = get(tree, path[:end])
        if found is MISSING:
            return False
        if not isinstance(found, Mapping):
            return True
    return bool(get(tree, path))
