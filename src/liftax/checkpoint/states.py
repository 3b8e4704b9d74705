"""States of optimizers, held against the parameters that they belong to.

Sizes alone do not tell what may be taken apart: a memory of three steps has an axis of three, and
so have three layers. What a state keeps belongs to a parameter by its place in the tree, and is
like it if a layer of it has the shape of that parameter in a layer. Everything else that stands
among the layers of a stack is refused here, before anything is converted.

What the parameters are is said by the trees called `params` (or by other collections) in the same
pytree, and by the layout where it was taken from a model. Where nothing says it, the trees of a
state must at least be like one another.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..core.boxes import is_axis_metadata
from ..core.types import Path
from ..errors import StackingError
from ..stack.arrays import Array, Lazy, View, is_array
from ..stack.convert import Converter
from ..stack.stacking import Stackings, name_of
from ..stack.trees import arrays_in, get, opened, put
from ..words import described
from .roots import Root, find_trees
from .tensors import unboxed

BY_LAYER = "by_layer"
"""The field of `nn.PerLayerState`."""

Shapes = Mapping[Path, Array]
"""By place in the layers form: an array there."""


_WHY = (
    "what an optimizer keeps for a parameter is converted where it is one array like the "
    "parameter; make a state like this one anew, from the converted parameters"
)


class _Named(Lazy):
    """Where an array lies, and its shape; there is nothing to read."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: Any):
        # For messages: that of keys is one of JAX's, and a layout has its name alone.
        self.path, self.shape, self.dtype = path, shape, dtype

    def read(self) -> np.ndarray:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class _Known:
    """What the parameters may be, and who says so."""

    shapes: Shapes
    source: str


def check_states(tree: object, stackings: Stackings, collection: str | None) -> None:
    """Makes sure that the trees in a pytree which are taken for copies of the parameters are.

    Args:
      tree: any pytree.
      stackings: the layout.
      collection: as for `to_layers`.

    Raises:
      StackingError: something among the layers is like no parameter. The message names it.
    """
    name = collection or "params"
    states: list[Root] = []
    others: list[Root] = []
    for root in find_trees(tree, stackings, collection):
        if BY_LAYER in root.path:
            continue  # has the axis of the layers in all that it keeps for them
        like = root.collection == name and root.path and root.path[-1] != name
        (states if like else others).append(root)
    if not states:
        return

    def shapes(root: Root) -> Shapes:
        # The converter itself says what lies where: it works on names as it does on arrays.
        convert = Converter("layers", root.collection)
        try:
            layers = convert(_named(root.tree, root.path), stackings, root.path)
        except StackingError as error:
            if not any(root is one for one in states):
                raise
            raise StackingError(f"{error}; {_WHY}") from None
        places = [path for s in stackings for path in s.layers]
        return {at: leaf for path in places for at, leaf in arrays_in(get(layers, path), path)}

    known = [_Known(shapes(root), name_of(root.path) if root.path else "it") for root in others]
    # The layout of a traced model knows the shapes of its parameters, whatever else is there.
    layout = _of_layout(stackings) if name == "params" else {}
    if layout:
        known.append(_Known(shapes(Root(layout, name, (name,))), "the model of the layout"))
    told = bool(known)
    for root in states:
        found = shapes(root)
        if not any(_first_unlike(found, one.shapes) is None for one in known):
            # A tree without a name of its own may be another collection, or another model's.
            nameless = not told or root.path[-1].isdecimal()
            if not (nameless and _apart(found, known)):
                raise _refused(found, known, told)
        if not told:
            known.append(_Known(found, name_of(root.path)))


def _named(node: object, at: Path) -> object:
    """A tree with the places of arrays for the arrays, and no boxes.

    A box that is more than names may change its value with the axis: then sizes say nothing.
    """
    if is_axis_metadata(node) and not hasattr(node, "names"):
        return None
    node = unboxed(node)
    if is_array(node):
        return _Named(at, tuple(node.shape), node.dtype)
    level = opened(node)
    if level is None:
        return node
    return level.rebuilt([_named(part, (*at, name)) for name, part in level.parts])


def _of_layout(stackings: Stackings) -> object:
    """The parameters in the stacks of a traced model, as a tree."""
    known = {path: found for stacking in stackings for path, found in stacking.shapes.items()}
    named = {path: _Named(path, shape, dtype) for path, (shape, dtype) in known.items()}
    return put({}, named)


def _first_unlike(found: Shapes, known: Shapes) -> Path | None:
    """The first place with an array that is not like the parameter there."""
    for place, leaf in found.items():
        if place not in known or known[place].shape != leaf.shape:
            return place
    return None


def _around(place: Path, known: Shapes) -> Array | None:
    """The parameter at a place, or the one in whose place something more lies."""
    ends = range(len(place), 0, -1)
    return next((known[place[:end]] for end in ends if place[:end] in known), None)


def _apart(found: Shapes, known: list[_Known]) -> bool:
    """Whether a tree has to do with none of the parameters: of another collection or model."""
    return not any(
        any(_around(place, one.shapes) is not None for place in found)
        or any(_around(place, found) is not None for place in one.shapes)
        for one in known
    )


def _refused(found: Shapes, known: list[_Known], told: bool) -> StackingError:
    # Of what the parameters may be, that which has the most in common.
    best = max(known, key=lambda one: sum(place in one.shapes for place in found))
    place = _first_unlike(found, best.shapes)
    assert place is not None
    source = _source(found[place])
    what = f"{name_of(source.path)} is {described(source)}"
    if not told:
        return StackingError(
            f"{what}, which {best.source} has not, and only one of them can be like the "
            f"parameters; to say which, convert the parameters with the state, as in "
            f"{{'params': params, 'opt_state': state}}"
        )
    other = _around(place, best.shapes)
    if other is None:
        return StackingError(
            f"{what} and lies in the stack, but there is no such variable in {best.source}: it "
            f"belongs to no parameter, and what it is to be in the other form cannot be told"
        )
    there = _source(other)
    return StackingError(
        f"{what}, for the parameter {name_of(there.path)}, {described(there)}; {_WHY}"
    )


def _source(leaf: Array | None) -> _Named:
    while isinstance(leaf, View):
        leaf = leaf.base
    assert isinstance(leaf, _Named)
    return leaf
