"""Work on one layer after the other: a function of each, norms, counts."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..core.boxes import is_axis_metadata
from ..errors import StackingError
from .arrays import described, is_array
from .convert import LayerAxis, split, unite
from .find import as_stackings
from .roots import MISSING, find_roots, form_of, get, names_of, put, remove
from .stacking import Path, Stacking, Stackings, name_of


@dataclasses.dataclass(frozen=True)
class Layer:
    """One layer of a stack, as `map_layers` tells its function of it.

    Attributes:
      index: its number, in the order in which the layers of the stack run.
      depth: the number of layers of the stack.
      stack: the path of the stack, as in `"decoder/blocks"`.
    """

    index: int
    depth: int
    stack: str


def map_layers(
    fn: Callable[..., Any],
    variables: Any,
    *rest: Any,
    layout: Any,
    outside: Callable[..., Any] | None = None,
    collection: str | None = None,
) -> Any:
    """Calls a function with each layer's own variables, whatever form they are in.

    For updates of one layer after the other (deltas of low rank, pruning), and for values that
    optimizers want in the structure of the parameters (learning rates, masks, labels).

    Args:
      fn: `(layer, tree, *rest) -> tree`. `layer` is a `Layer`; `tree` has the layer's variables
        without the layer axis, in the form of `variables`: `{collection: tree}`, or the tree of
        the one collection. Collections that it does not return stay; it may return others.
      variables: the variables of a model, or the tree of one collection.
      *rest: trees of which `fn` gets the layers too; they may be in the other form.
      layout: as for `to_layers`.
      outside: `(tree, *rest) -> tree`, called once with what is in no layer; None leaves that.
      collection: the collection of a tree that is only one.

    Returns:
      The results in the form of `variables`. Where that is stacked: arrays are stacked along the
      layer axis; a number, one for each array or for a whole subtree, becomes an array that
      broadcasts against the stacked one; a label or a bool must be the same in all layers, and
      stays one.

    Raises:
      StackingError: there is no stack in `variables`; the results for two layers differ in their
        structure, shapes or labels.

    Example:
      >>> import numpy as np, liftax as nn
      >>> blocks = nn.Stacking.of("blocks", 2)
      >>> params = {"blocks": {"kernel": np.ones((2, 3, 4))}, "head": {"bias": np.ones(5)}}
      >>> rates = nn.map_layers(
      ...     lambda layer, _: 0.1 * 0.5 ** layer.index, params, layout=blocks,
      ...     outside=lambda tree: jax.tree.map(lambda _: 0.1, tree))
      >>> rates["blocks"]["kernel"].shape, rates["head"]["bias"]
      ((2, 1, 1), 0.1)
    """
    stackings = as_stackings(layout)
    trees = [_Tree(tree, stackings, collection) for tree in (variables, *rest)]
    main = trees[0]
    depths = _depths(stackings)
    made: dict[str, Any] = {}
    for s in stackings:
        if not main.forms(s):
            continue
        views = [tree.take_layers(s) for tree in trees]
        results = []
        for i, number in enumerate(s.numbers or range(len(s.layers))):
            layer = Layer(number, depths[s.owner], name_of(s.owner))
            mine, *others = (tree.closed(view[i]) for tree, view in zip(trees, views, strict=True))
            results.append(_expanded(main.opened(fn(layer, mine, *others), mine), views[0][i]))
        _collect(made, results, views[0], main, s)
    remains = [tree.closed(tree.left) for tree in trees]
    if outside is not None:
        main.left = _expanded(main.opened(outside(*remains), main.left), main.left)
    return main.closed(_merged(main.left, made))


class _Tree:
    """Variables, or the tree of one collection, as a mapping of collections."""

    def __init__(self, tree: Any, stackings: Stackings, collection: str | None):
        self.bare, self.names, self.roots = find_roots(tree, stackings, collection)
        self.left = dict(self.roots)

    def at(self, name: str) -> Path:
        """Where a collection lies, for messages."""
        return () if self.bare else (name,)

    def forms(self, s: Stacking) -> dict[str, str]:
        """The form of a stack by collection, where it has layers there."""
        found = {
            name: form_of(s, self.roots[name], c, self.at(name)) for name, c in self.names.items()
        }
        return {name: form for name, form in found.items() if form in ("stacked", "layers")}

    def take_layers(self, s: Stacking) -> list[dict[str, Any]]:
        """For each layer its tree by collection; what is in no layer is left."""
        views: list[dict[str, Any]] = [{} for _ in s.layers]
        for name, form in self.forms(s).items():
            root = self.roots[name]
            if form == "stacked":
                axis = LayerAxis(s, self.names[name])
                parts = split(get(root, s.path), axis, self.at(name) + s.path)
            else:
                parts = [get(root, path) for path in s.layers]
            for path in [s.path] if form == "stacked" else s.layers:
                self.left[name] = remove(self.left[name], path)
            for view, part in zip(views, parts, strict=True):
                view[name] = part
        return views

    def closed(self, roots: Mapping[str, Any]) -> Any:
        """As the user's functions see it."""
        return next(iter(roots.values()), {}) if self.bare else dict(roots)

    def opened(self, result: Any, like: Any) -> dict[str, Any]:
        """What a user's function returned, as a mapping of collections."""
        if self.bare:
            return {next(iter(self.roots)): result}
        return dict(result) if isinstance(result, Mapping) else dict.fromkeys(like, result)


def _depths(stackings: Stackings) -> dict[Path, int]:
    found: dict[Path, int] = {}
    for s in stackings:
        found[s.owner] = found.get(s.owner, 0) + len(s.layers)
    return found


def _collect(
    made: dict[str, Any],
    results: list[dict[str, Any]],
    views: list[dict[str, Any]],
    tree: _Tree,
    s: Stacking,
) -> None:
    """Puts the results for the layers of one stacking where the layers came from."""
    forms = tree.forms(s)
    usual = next(iter(forms.values()))
    for name in dict.fromkeys([*forms, *results[0]]):
        nodes = [
            r.get(name, view.get(name, MISSING)) for r, view in zip(results, views, strict=True)
        ]
        if MISSING in nodes:
            raise StackingError(
                f"map_layers: the function returned the collection {name!r} for some layers of "
                f"{name_of(s.owner)}, but not for all"
            )
        root = made.get(name, {})
        if forms.get(name, usual) == "layers":
            for path, node in zip(s.layers, nodes, strict=True):
                root = put(root, path, node)
        else:
            axis = LayerAxis(s, tree.names.get(name, name))
            like = get(tree.roots.get(name, {}), s.path)
            paths = [tree.at(name) + path for path in s.layers]
            root = put(root, s.path, _united(nodes, like, axis, (), paths))
        made[name] = root


def _expanded(result: Any, like: Any) -> Any:
    """A result with one value for a whole subtree, brought to the structure of the subtree."""
    if isinstance(result, Mapping):
        if not isinstance(like, Mapping):
            return result
        return {k: _expanded(v, like[k]) if k in like else v for k, v in result.items()}
    if is_axis_metadata(result) or not (_is_number(result) or _is_label(result)):
        return result
    return jax.tree.map(lambda _: result, like, is_leaf=is_axis_metadata)


def _united(nodes: list[Any], like: Any, axis: LayerAxis, at: Path, paths: list[Path]) -> Any:
    """Results for all layers in the stacked form."""
    first = nodes[0]
    if axis.moved_only:
        return first
    if all(isinstance(node, Mapping) for node in nodes) and all(
        node.keys() == first.keys() for node in nodes
    ):
        return {
            name: _united(
                [node[name] for node in nodes], get(like, (name,)), axis, (*at, name), paths
            )
            for name in first
        }
    if all(_is_number(node) for node in nodes):
        arrays = [a for a in jax.tree.leaves(like) if is_array(a)] if like is not MISSING else []
        shape = [1] * (arrays[0].ndim if arrays else 1)
        where = axis.places(len(shape), paths[0] + at).axis if arrays else 0
        shape[where] = len(nodes)
        return jnp.stack([jnp.asarray(node) for node in nodes]).reshape(shape)
    if all(_is_label(node) for node in nodes):
        for path, node in zip(paths, nodes, strict=True):
            if type(node) is not type(first) or node != first:
                raise StackingError(
                    f"map_layers: {name_of(paths[0] + at)} got {described(first)} and "
                    f"{name_of(path + at)} got {described(node)}, but the layers are stacked and "
                    f"have one value; call nn.to_layers first, or return what all layers share"
                )
        return first
    return unite(nodes, axis, at, paths)


def _is_number(value: Any) -> bool:
    if is_array(value):
        return value.ndim == 0 and not isinstance(value, jax.ShapeDtypeStruct)
    return isinstance(value, (int, float, complex)) and not isinstance(value, bool)


def _is_label(value: Any) -> bool:
    return isinstance(value, (str, bool))


def _merged(one: Any, other: Any) -> Any:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        shared = {k: _merged(one[k], other[k]) for k in one if k in other}
        return {**one, **other, **shared}
    return other


# -- norms and counts --------------------------------------------------------------------------


def layer_norms(variables: Any, layout: Any, *, collection: str | None = None) -> dict[str, Any]:
    """The Euclidean norm of all that each layer has: of parameters, or of their gradients.

    Args:
      variables: the variables of a model or the tree of one collection, in either form. Keys of
        random streams and labels do not count.
      layout: as for `to_layers`.
      collection: the collection of a tree that is only one.

    Returns:
      `{"params/blocks": norms}` by collection and path of the stack, with `float32[depth]` (or
      wider, as the variables are): entry `i` is for the layer that runs as number `i`.

    Example:
      >>> import numpy as np, liftax as nn
      >>> params = {"blocks": {"kernel": np.array([[3.0, 4.0], [0.0, 1.0]])}}
      >>> norms = nn.layer_norms({"params": params}, nn.Stacking.of("blocks", 2))
      >>> norms["params/blocks"]
      Array([5., 1.], dtype=float32)
    """
    squares = _per_layer(variables, layout, collection, _squares, 0.0)
    return {
        name: jnp.sqrt(jnp.stack([jnp.asarray(v) for v in per])) for name, per in squares.items()
    }


def layer_counts(
    variables: Any, layout: Any, *, collection: str | None = None
) -> dict[str, tuple[int, ...]]:
    """The number of elements that each layer has.

    Args:
      variables: as for `layer_norms`; shapes will do.
      layout: as for `to_layers`.
      collection: the collection of a tree that is only one.

    Returns:
      `{"params/blocks": counts}`, one count for each layer in the order in which they run.

    Example:
      >>> import liftax as nn
      >>> params = {"blocks": {"kernel": jax.ShapeDtypeStruct((2, 3, 4), "float32")}}
      >>> nn.layer_counts({"params": params}, nn.Stacking.of("blocks", 2))
      {'params/blocks': (12, 12)}
    """

    def count(leaf: Any, axis: int | None) -> Any:
        size = math.prod(leaf.shape)
        return size if axis is None else np.full(leaf.shape[axis], size // leaf.shape[axis])

    return {
        name: tuple(map(int, per))
        for name, per in _per_layer(variables, layout, collection, count, 0).items()
    }


def _squares(leaf: Any, axis: int | None) -> Any:
    """The sum of squares; by slice, where there is an axis."""
    if not jnp.issubdtype(leaf.dtype, np.number):
        return 0.0 if axis is None else jnp.zeros(leaf.shape[axis])
    sizes = jnp.abs(jnp.asarray(leaf))
    squares = jnp.square(sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32)))
    return jnp.sum(squares, tuple(i for i in range(leaf.ndim) if i != axis))


def _per_layer(
    variables: Any, layout: Any, collection: str | None, measure: Any, zero: Any
) -> dict[str, list[Any]]:
    """By stack, the sum over the variables of each layer of `measure(leaf, layer axis)`."""
    stackings = as_stackings(layout)
    tree = _Tree(variables, stackings, collection)
    depths = _depths(stackings)
    found: dict[str, list[Any]] = {}
    for s in stackings:
        numbers = s.numbers or range(len(s.layers))
        for name, form in tree.forms(s).items():
            label = "/".join((*tree.at(name), *s.owner)) or "/"
            sums = found.setdefault(label, [zero] * depths[s.owner])
            root, axis = tree.roots[name], LayerAxis(s, tree.names[name])
            if form == "stacked" and not axis.moved_only:
                at = tree.at(name) + s.path
                whole: Any = zero
                for keys, leaf in jax.tree_util.tree_flatten_with_path(get(root, s.path))[0]:
                    if is_array(leaf):
                        whole = whole + measure(leaf, axis.of(leaf, at + names_of(keys)).axis)
                for number, value in zip(numbers, whole, strict=True):
                    sums[number] = sums[number] + value
                continue
            for path, number in zip(
                s.layers if form == "layers" else [s.path], numbers, strict=True
            ):
                for leaf in jax.tree.leaves(get(root, path)):
                    if is_array(leaf):
                        sums[number] = sums[number] + measure(leaf, None)
    return found
