"""Work on one layer after the other: a function of each, norms, counts."""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from ..core.boxes import is_axis_metadata
from ..core.types import Path
from ..errors import StackingError
from ..stack.arrays import Array, InMemory, is_array
from ..stack.convert import LayerAxis, form_of, split, unite
from ..stack.stacking import Stacking, Stackings, name_of
from ..stack.trees import MISSING, arrays_in, get, put, remove
from ..words import described
from .find import as_stackings
from .roots import find_roots

Measure = Callable[[Array, int | None], InMemory]
"""Of an array: one number, or one for each slice along an axis."""
Collections = dict[str, object]


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
        without the layer axis, in the form of ``variables``: `{collection: tree}`, or the tree of
        the one collection. Collections that it does not return stay; it may return others.
      variables: the variables of a model, or the tree of one collection.
      *rest: trees of which ``fn`` gets the layers too; they may be in the other form.
      layout: as for `to_layers`.
      outside: `(tree, *rest) -> tree`, called once with what is in no layer; None leaves that.
      collection: the collection of a tree that is only one.

    Returns:
      The results in the form of ``variables``. Where that is stacked: arrays are stacked along the
      layer axis; a number, one for each array or for a whole subtree, becomes an array that
      broadcasts against the stacked one; a label or a bool must be the same in all layers, and
      stays one.

    Raises:
      StackingError: there is no stack in ``variables``; the results for two layers differ in their
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
    made: Collections = {}
    for s in stackings:
        # A layout may be of a whole model, and the tree one collection of it.
        if not main.forms(s):
            continue
        views = [tree.take_layers(s) for tree in trees]
        # In the order in which they run, each called by its number in the whole stack, wherever in
        # the pattern it is stored.
        results = []
        for i, number in enumerate(s.in_order):
            layer = Layer(number, depths[s.owner], name_of(s.owner))
            mine, *others = (tree.closed(view[i]) for tree, view in zip(trees, views, strict=True))
            results.append(main.opened(fn(layer, mine, *others), views[0][i]))
        _collect(made, results, views[0], main, s)
    # Whatever was in no layer, once.
    remains = [tree.closed(tree.left) for tree in trees]
    if outside is not None:
        main.left = main.opened(outside(*remains), main.left)
    return main.closed({**_merged(main.left, made)})


class _Tree:
    """Variables, or the tree of one collection, as a mapping of collections."""

    def __init__(self, tree: object, stackings: Stackings, collection: str | None):
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

    def take_layers(self, s: Stacking) -> list[Collections]:
        """For each layer its tree by collection; what is in no layer is left."""
        views: list[Collections] = [{} for _ in s.layers]
        for name, form in self.forms(s).items():
            root, paths = self.roots[name], list(s.layers)
            parts = [get(root, path) for path in paths]
            # Slices of the stacked arrays, as the converter would cut them.
            if form == "stacked":
                paths, axis = [s.path], LayerAxis(s, self.names[name])
                parts = split(get(root, s.path), axis, self.at(name) + s.path)
            self.left[name] = remove(self.left[name], paths)
            for view, part in zip(views, parts, strict=True):
                view[name] = part
        return views

    def closed(self, roots: Collections) -> object:
        """As the user's functions see it."""
        return next(iter(roots.values()), {}) if self.bare else dict(roots)

    def opened(self, result: object, like: Collections) -> Collections:
        """What a user's function returned, by collection, with the structure of its variables."""
        if self.bare:
            made = {next(iter(self.roots)): result}
        elif isinstance(result, Mapping):
            made = dict(result)
        else:
            made = dict.fromkeys(like, result)
        return {k: _expanded(v, like[k]) if k in like else v for k, v in made.items()}


def _depths(stackings: Stackings) -> Mapping[Path, int]:
    found: Counter[Path] = Counter()
    for s in stackings:
        found[s.owner] += len(s.layers)
    return found


def _collect(
    made: Collections,
    results: list[Collections],
    views: list[Collections],
    tree: _Tree,
    s: Stacking,
) -> None:
    """Puts the results for the layers of one stacking where the layers came from."""
    forms = tree.forms(s)
    # A collection that the function makes anew lies as the others of its stack do.
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
        new = dict(zip(s.layers, nodes, strict=True))
        if forms.get(name, usual) == "stacked":
            axis = LayerAxis(s, tree.names.get(name, name))
            like = get(tree.roots.get(name), s.path)
            paths = [tree.at(name) + path for path in s.layers]
            new = {s.path: _united(nodes, like, axis, (), paths)}
        made[name] = put(made.get(name), new)


def _expanded(result: object, like: object) -> object:
    """A result with one value for a whole subtree, brought to the structure of the subtree."""
    if isinstance(result, Mapping):
        if not isinstance(like, Mapping):
            return result
        return {k: _expanded(v, like[k]) if k in like else v for k, v in result.items()}
    if is_axis_metadata(result) or not (_is_number(result) or isinstance(result, (str, bool))):
        return result
    return jax.tree.map(lambda _: result, like, is_leaf=is_axis_metadata)


def _united(
    nodes: list[object], like: object, axis: LayerAxis, at: Path, paths: list[Path]
) -> object:
    """Results for all layers in the stacked form."""
    first = nodes[0]
    # One repeat has no axis: the result is the stacked form already.
    if axis.moved_only:
        return first
    trees = [node for node in nodes if isinstance(node, Mapping)]
    if len(trees) == len(nodes) and all(tree.keys() == trees[0].keys() for tree in trees):
        return {
            name: _united(
                [tree[name] for tree in trees], get(like, (name,)), axis, (*at, name), paths
            )
            for name in trees[0]
        }
    numbers = [jnp.asarray(node) for node in nodes if _is_number(node)]
    if len(numbers) == len(nodes):
        # One number a layer: an axis for the layers, and ones so that it broadcasts.
        arrays = [leaf for _, leaf in arrays_in(like)]
        shape = [1] * (arrays[0].ndim if arrays else 1)
        shape[axis.places(len(shape), paths[0] + at).axis if arrays else 0] = len(nodes)
        return jnp.stack(numbers).reshape(shape)
    # A label has no axis that could tell the layers apart.
    if all(isinstance(node, (str, bool)) for node in nodes):
        for path, node in zip(paths, nodes, strict=True):
            if type(node) is not type(first) or node != first:
                raise StackingError(
                    f"map_layers: {name_of(paths[0] + at)} got {described(first)} and "
                    f"{name_of(path + at)} got {described(node)}, but the layers are stacked and "
                    f"have one value; call nn.to_layers first, or return what all layers share"
                )
        return first
    return unite(nodes, axis, at, paths)


def _is_number(value: object) -> TypeGuard[jax.Array | complex]:
    if is_array(value):
        return len(value.shape) == 0 and not isinstance(value, jax.ShapeDtypeStruct)
    return isinstance(value, (int, float, complex)) and not isinstance(value, bool)


def _merged(one: Mapping[str, object], other: Mapping[str, object]) -> dict[str, object]:
    made = {**one, **other}
    for name, part in one.items():
        more = other.get(name)
        if isinstance(part, Mapping) and isinstance(more, Mapping):
            made[name] = _merged(part, more)
    return made


# --- norms and counts ---------------------------------------------------------


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
    squares = _per_layer(variables, layout, collection, _squares)
    return {name: jnp.sqrt(jnp.stack([*map(jnp.asarray, per)])) for name, per in squares.items()}


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

    def count(leaf: Array, axis: int | None) -> InMemory:
        shape = leaf.shape if axis is None else leaf.shape[:axis] + leaf.shape[axis + 1 :]
        return np.full(() if axis is None else leaf.shape[axis], math.prod(shape))

    counts = _per_layer(variables, layout, collection, count)
    return {name: tuple(map(int, per)) for name, per in counts.items()}


def _squares(leaf: Array, axis: int | None) -> InMemory:
    if not jnp.issubdtype(leaf.dtype, np.number):
        return jnp.zeros(() if axis is None else leaf.shape[axis], jnp.float32)
    sizes = jnp.abs(jnp.asarray(leaf))
    # Wide enough that the sum of many squares in half precision does not overflow.
    squares = jnp.square(sizes.astype(jnp.promote_types(sizes.dtype, jnp.float32)))
    return jnp.sum(squares, tuple(i for i in range(leaf.ndim) if i != axis))


def _per_layer(
    variables: object,
    layout: object,
    collection: str | None,
    measure: Measure,
) -> dict[str, list[InMemory | int]]:
    """By stack, the sum over the variables of each layer of what is measured."""
    stackings = as_stackings(layout)
    tree = _Tree(variables, stackings, collection)
    depths = _depths(stackings)
    found: dict[str, list[InMemory | int]] = {}
    for s in stackings:
        for name, form in tree.forms(s).items():
            label = "/".join((*tree.at(name), *s.owner)) or "/"
            sums = found.setdefault(label, [0] * depths[s.owner])
            root, axis = tree.roots[name], LayerAxis(s, tree.names[name])
            if form == "stacked" and not axis.moved_only:
                # Stacked arrays are measured once, for all layers.
                stacked = arrays_in(get(root, s.path), tree.at(name) + s.path)
                sizes = [measure(leaf, axis.of(leaf, at).axis) for at, leaf in stacked]
                each = [*functools.reduce(operator.add, sizes)] if sizes else [0] * axis.count
            else:
                paths = s.layers if form == "layers" else (s.path,)
                layers = [arrays_in(get(root, path)) for path in paths]
                each = [sum(measure(leaf, None) for _, leaf in layer) for layer in layers]
            for number, value in zip(s.in_order, each, strict=True):
                sums[number] = value
    return found
