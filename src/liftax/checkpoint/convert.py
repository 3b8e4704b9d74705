"""Variables of a stack as one subtree, or as one subtree a layer: there and back without loss.

`to_layers` and `to_stacked` walk any pytree. In it they look for *roots*: mappings in which a
subtree of a stacking lies, that is the tree of a collection, or a copy of it as optimizers keep
them. Everything else in the pytree stays as it is. Within a root the stackings are applied
outermost first on the way to layers, innermost first on the way back.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ..core.boxes import is_axis_metadata
from ..errors import LiftaxError, StackingError
from .arrays import described, inverse, is_array, join, permute, take
from .find import as_stackings
from .roots import (
    MISSING,
    Root,
    form_of,
    get,
    names_of,
    put,
    put_all,
    remove,
    remove_all,
    roots_replaced,
)
from .stacking import Path, Places, Stacking, Stackings, name_of
from .states import check_states

NONE_REMOVED: frozenset[Path] = frozenset()


def to_layers(
    variables: Any, layout: Any, *, collection: str | None = None, donate: bool = False
) -> Any:
    """Gives each layer a subtree of its own.

    Args:
      variables: the variables of a model, one collection, or any pytree in which such trees occur
        (the state of an optimizer, a train state). Leaves are JAX arrays, numpy arrays or memory
        maps, or `jax.ShapeDtypeStruct`; boxes lose the name of the layer axis. Slices of numpy
        arrays are views. A leaf that is no array (a label, a bool) goes to every layer.
      layout: which subtrees are stacked, along which axis: a `Stack` (as the whole model), what
        `nn.stack_layouts`, `nn.stackings_of` or `nn.layout` found in a model, or
        `nn.Stacking.of(...)`.
      collection: the collection that every stacked subtree in `variables` belongs to; by default
        the name under which its tree is found, `"params"` for those in the state of an optimizer.
      donate: delete each stacked JAX array once its slices are made, so that no more than one
        array exists twice. Arrays that occur more than once in the tree are kept.

    Returns:
      The pytree with plain dicts where the layers are; arrays that are in no stack are the same
      objects. Stacks that are in this form already stay.

    Raises:
      StackingError: there is no stacked variable; an array has another size along the axis than
        there are layers; the names of layers are taken. The message names the first variable.
      PartitioningMismatchError: a box calls the axis otherwise than the layout does.

    Example:
      >>> import numpy as np, liftax as nn
      >>> blocks = nn.Stacking.of("blocks", 2)
      >>> variables = {"params": {"blocks": {"kernel": np.arange(6).reshape(2, 3)}}}
      >>> nn.to_layers(variables, blocks)["params"]["blocks"]["layers_1"]
      {'kernel': array([3, 4, 5])}
    """
    return _Conversion("layers", layout, collection, donate).run(variables)


def to_stacked(
    variables: Any, layout: Any, *, collection: str | None = None, donate: bool = False
) -> Any:
    """Stacks the subtrees of the layers: the inverse of `to_layers`.

    Args:
      variables: as for `to_layers`, in the layers form. Layers have the same variables with the
        same shapes and dtypes; boxes gain the name of the layer axis.
      layout: as for `to_layers`.
      collection: as for `to_layers`.
      donate: delete the JAX arrays of the layers once they are stacked.

    Returns:
      The pytree with one subtree for each stacking. Stacks in this form already stay.

    Raises:
      StackingError: there is no layer; one is missing or is one too many; two layers differ in
        their variables, shapes, dtypes or metadata. The message names the first variable.

    Example:
      >>> import numpy as np, liftax as nn
      >>> blocks = nn.Stacking.of("", 2, axis=1, names="Block_{}")
      >>> layers = {"Block_0": {"bias": np.zeros(3)}, "Block_1": {"bias": np.ones(3)}}
      >>> nn.to_stacked({"params": layers}, blocks)["params"]["bias"].shape
      (3, 2)
    """
    return _Conversion("stacked", layout, collection, donate).run(variables)


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
    removed: frozenset[Path] = NONE_REMOVED

    @property
    def count(self) -> int:
        """The number of layers."""
        return len(self.stacking.layers)

    @property
    def moved_only(self) -> bool:
        """Whether there is one layer and no axis."""
        return self.stacking.axes is None

    def of(self, array: Any, at: Path) -> Places:
        """Where the axis lies in a stacked array.

        Raises:
          StackingError: it has no such axis, or its size is not the number of layers.
        """
        places = self.places(array.ndim, at)
        size = array.shape[places.axis]
        if size != self.count:
            raise StackingError(
                f"{name_of(at)} is {described(array)}: size {size} along axis {places.axis}, "
                f"where the layout has {self.count} layers for {name_of(self.stacking.path)}"
            )
        return places

    def places(self, ndim: int, at: Path) -> Places:
        """Where the axis lies in a stacked array of `ndim` axes."""
        try:
            return self.stacking.places(self.collection, ndim, self.removed)
        except StackingError as error:
            raise StackingError(
                f"{name_of(at)} {error}; it is in the stack {name_of(self.stacking.path)}"
            ) from None

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


def split(node: Any, axis: LayerAxis, at: Path, done: Any = None) -> list[Any]:
    """A stacked subtree as one tree for each layer.

    Args:
      node: the subtree.
      axis: the layer axis.
      at: the path of the subtree, for messages.
      done: called with each array that has been taken apart.
    """
    if axis.moved_only:
        return [node]
    if isinstance(node, Mapping):
        parts = {name: split(part, axis, (*at, str(name)), done) for name, part in node.items()}
        return [{name: part[i] for name, part in parts.items()} for i in range(axis.count)]
    if is_axis_metadata(node):
        return _split_box(node, axis, at, done)
    leaves, treedef = jax.tree.flatten(node, is_leaf=_inner(node))
    if len(leaves) != 1 or leaves[0] is not node:
        keyed = jax.tree_util.tree_flatten_with_path(node, is_leaf=_inner(node))[0]
        split_leaves = [split(leaf, axis, at + names_of(keys), done) for keys, leaf in keyed]
        return [
            jax.tree.unflatten(treedef, [leaf[i] for leaf in split_leaves])
            for i in range(axis.count)
        ]
    if not is_array(node):
        return [node] * axis.count
    where, order = axis.of(node, at)
    taken = [permute(take(node, i, where), order) for i in range(axis.count)]
    if done is not None:
        done(node)
    return taken


def _split_box(box: Any, axis: LayerAxis, at: Path, done: Any) -> list[Any]:
    leaves, treedef = jax.tree.flatten(box)
    contents = [split(leaf, axis, at, done) for leaf in leaves]
    arrays = [leaf for leaf in leaves if is_array(leaf)]
    boxes = [jax.tree.unflatten(treedef, [c[i] for c in contents]) for i in range(axis.count)]
    if not arrays:
        return boxes
    ndim = arrays[0].ndim
    index, order = axis.named(ndim, at), axis.places(ndim, at).order
    with _at_variable(at):
        gone = [b.remove_axis(index, axis.stacking.metadata_params) for b in boxes]
        return [_names_permuted(b, order) for b in gone]


def _names_permuted(box: Any, order: tuple[int, ...] | None) -> Any:
    """The box with the names of its axes in another order."""
    if order is None:
        return box
    names = getattr(box, "names", None)
    if not isinstance(names, tuple) or not hasattr(box, "replace"):
        raise StackingError(
            f"a lift around the stack has its axis elsewhere where layers are stored one by one, "
            f"and {type(box).__name__} cannot put the names of its axes in that order: only boxes "
            f"with names= can"
        )
    names = (*names, *(None,) * (len(order) - len(names)))
    return box.replace(names=tuple(names[i] for i in order))


class _at_variable:
    """Errors of a box say which variable it holds."""

    def __init__(self, at: Path):
        self.at = at

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if isinstance(error, LiftaxError):
            raise type(error)(f"{name_of(self.at)}: {error}") from None


def unite(nodes: Sequence[Any], axis: LayerAxis, at: Path, paths: Any, done: Any = None) -> Any:
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
    if isinstance(first, Mapping):
        for path, node in zip(paths, nodes, strict=True):
            if not isinstance(node, Mapping):
                raise _unlike(paths[0] + at, first, path + at, node)
            _same_names(first, node, paths[0] + at, path + at)
        return {
            name: unite([node[name] for node in nodes], axis, (*at, str(name)), paths, done)
            for name in first
        }
    treedef: Any
    leaves, treedef = jax.tree.flatten(first, is_leaf=_inner(first))
    columns = [leaves]
    for path, node in zip(paths[1:], nodes[1:], strict=True):
        others, other = jax.tree.flatten(node, is_leaf=_inner(node))
        if isinstance(node, Mapping) or other != treedef:
            raise _unlike(paths[0] + at, first, path + at, node)
        columns.append(others)
    if is_axis_metadata(first) or len(leaves) != 1 or leaves[0] is not first:
        made = jax.tree.unflatten(
            treedef,
            [unite(row, axis, at, paths, done) for row in zip(*columns, strict=True)],
        )
        arrays = [leaf for leaf in leaves if is_array(leaf)]
        if is_axis_metadata(first) and arrays:
            with _at_variable(paths[0] + at):
                ndim = arrays[0].ndim + 1
                back = inverse(axis.places(ndim, at).order)
                made = _names_permuted(made, back)
                return made.add_axis(axis.named(ndim, at), axis.stacking.metadata_params)
        return made
    for path, node in zip(paths, nodes, strict=True):
        if not _alike(first, node):
            raise _unlike(paths[0] + at, first, path + at, node)
    if not is_array(first):
        return first
    where, order = axis.places(first.ndim + 1, paths[0] + at)
    try:
        made = join([permute(node, inverse(order)) for node in nodes], where)
    except StackingError as error:
        raise StackingError(f"{name_of(paths[0] + at)}: {error}") from None
    if done is not None:
        for node in nodes:
            done(node)
    return made


def _same_names(
    one: Mapping[str, Any], other: Mapping[str, Any], one_at: Path, other_at: Path
) -> None:
    both = (one, other, one_at, other_at), (other, one, other_at, one_at)
    for mine, yours, mine_at, yours_at in both:
        for name in mine:
            if name not in yours:
                raise StackingError(
                    f"{name_of((*yours_at, str(name)))} is missing, but there is "
                    f"{name_of((*mine_at, str(name)))}; the layers of a stack have the same "
                    f"variables"
                )


def _alike(one: Any, other: Any) -> bool:
    if is_array(one) and is_array(other):
        return tuple(one.shape) == tuple(other.shape) and one.dtype == other.dtype
    if is_array(one) or is_array(other):
        return False
    return type(one) is type(other) and bool(one == other)


def _unlike(one_at: Path, one: Any, other_at: Path, other: Any) -> StackingError:
    return StackingError(
        f"{name_of(other_at)} is {_in_words(other)}, but {name_of(one_at)} is {_in_words(one)}; "
        f"the layers of a stack are alike"
    )


def _in_words(node: Any) -> str:
    if is_axis_metadata(node):
        names = getattr(node, "names", None)
        return type(node).__name__ + ("" if names is None else f" with the names {names}")
    return "a mapping of variables" if isinstance(node, Mapping) else described(node)


def _inner(node: Any) -> Any:
    return lambda x: x is not node and (isinstance(x, Mapping) or is_axis_metadata(x))


class _Conversion:
    """One call of `to_layers` or `to_stacked`."""

    def __init__(self, form: str, layout: Any, collection: str | None, donate: bool):
        self.form = form
        self.stackings = as_stackings(layout)
        self.collection = collection
        self.donate = donate
        self.uses: Counter[int] = Counter()

    def run(self, tree: Any) -> Any:
        if self.donate:
            self.uses.update(id(leaf) for leaf in jax.tree.leaves(tree))
        check_states(tree, self.stackings, self.collection, self.unstacked)
        return roots_replaced(tree, self.stackings, self.collection, self.convert)

    def unstacked(self, root: Root) -> Any:
        return self.unstack(root.tree, self.stackings, root.collection, root.path, NONE_REMOVED)

    def convert(self, root: Root) -> Any:
        change = self.unstack if self.form == "layers" else self.stack
        return change(root.tree, self.stackings, root.collection, root.path, NONE_REMOVED)

    def done(self, array: Any) -> None:
        if (
            self.donate
            and isinstance(array, jax.Array)
            and not isinstance(array, jax.core.Tracer)
            and self.uses[id(array)] == 1
        ):
            array.delete()

    def unstack(
        self, tree: Any, stackings: Stackings, collection: str, at: Path, removed: frozenset[Path]
    ) -> Any:
        """A root, or a layer of one, in the layers form."""
        for s in stackings:
            form = form_of(s, tree, collection, at)
            if form == "absent":
                continue
            if form != "stacked":
                gone = removed if form == "shared" else removed | {s.mark}
                paths = [s.path] if form == "shared" else s.layers
                tree = put_all(
                    tree,
                    {
                        path: self.unstack(get(tree, path), s.inside, collection, at + path, gone)
                        for path in paths
                    },
                )
                continue
            whole = get(tree, s.path)
            if _stands_for_all(whole, s):
                continue
            axis = LayerAxis(s, collection, removed)
            pieces = split(whole, axis, at + s.path, self.done)
            tree = remove(tree, s.path)
            for path in s.layers:
                if _taken(tree, path):
                    raise StackingError(
                        f"{name_of(at + path)} is there already, where a layer of "
                        f"{name_of(at + s.path)} would go; give the layers other names (names= of "
                        f"Stacking.of)"
                    )
            gone = removed | {s.mark}
            tree = put_all(
                tree,
                {
                    path: self.unstack(piece, s.inside, collection, at + path, gone)
                    for path, piece in zip(s.layers, pieces, strict=True)
                },
            )
        return tree

    def stack(
        self, tree: Any, stackings: Stackings, collection: str, at: Path, removed: frozenset[Path]
    ) -> Any:
        """A root, or a layer of one, in the stacked form."""
        for s in stackings:
            form = form_of(s, tree, collection, at)
            if form == "absent":
                continue
            if form != "layers":
                whole = get(tree, s.path)
                axis = LayerAxis(s, collection, removed)
                if form == "stacked":
                    _check(whole, axis, at + s.path)
                inner = self.stack(whole, s.inside, collection, at + s.path, removed)
                tree = put(tree, s.path, inner)
                continue
            gone = removed | {s.mark}
            layers = [
                self.stack(get(tree, path), s.inside, collection, at + path, gone)
                for path in s.layers
            ]
            tree = remove_all(tree, s.layers)
            if _taken(tree, s.path):
                raise StackingError(
                    f"{name_of(at + s.path)} is there already, where the layers "
                    f"{name_of(at + s.layers[0])}, ... would be stacked"
                )
            paths = [at + path for path in s.layers]
            axis = LayerAxis(s, collection, removed)
            tree = put(tree, s.path, unite(layers, axis, (), paths, self.done))
        return tree


def _stands_for_all(node: Any, s: Stacking) -> bool:
    """Whether a node without arrays holds the place of a stack, as masks of optimizers leave it.

    It holds that of the layers as well where they lie at the same path.
    """
    below = all(path[: len(s.path)] == s.path for path in s.layers)
    return below and not isinstance(node, Mapping) and not jax.tree.leaves(node)


def _taken(tree: Any, path: Path) -> bool:
    """Whether something stands at a path, or in the way to it."""
    for end in range(len(path) + 1):
        found = get(tree, path[:end])
        if found is MISSING:
            return False
        if not isinstance(found, Mapping):
            return True
    return bool(get(tree, path))


def _check(node: Any, axis: LayerAxis, at: Path) -> None:
    """Holds the arrays of a stacked subtree to the number of layers."""
    if axis.moved_only:
        return
    for keys, leaf in jax.tree_util.tree_flatten_with_path(node)[0]:
        if is_array(leaf):
            axis.of(leaf, at + names_of(keys))
