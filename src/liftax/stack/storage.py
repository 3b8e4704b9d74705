"""Where the variables of a stack lie, in either storage, and the way from one to the other.

Layers are numbered in the order in which they run: those of ``before``, the pattern
``repeats`` times, those of ``after``. See stack.py for the names.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..core import boxes
from ..core.events import Path
from ..core.lift.crossing import Opening
from ..core.roles import THROUGH, through_roles
from ..core.scope import Scope
from ..errors import StackError, where
from ..layout.build import layout
from ..layout.data import StackNode

RoleOf = Callable[[str], Any]
Collections = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Enclosing:
    """A lift around a stack.

    Attributes:
      kind: ``"vmap"``, ``"scan"``, ...; ``"stack"`` for a stack's own loop.
      size: the length of its axis, None where it adds none.
      role_of: collection -> the axis that the lift adds to its variables, an int, or
        a word where it adds none.
      stack: for a stack's own loop, that stack's path.
    """

    kind: str
    size: int | None
    role_of: RoleOf = dataclasses.field(compare=False)
    stack: Path | None = None

    def axis_of(self, collection: str) -> int | None:
        """Returns the axis that the lift adds to a collection's variables."""
        role = self.role_of(collection)
        return role if isinstance(role, int) else None


@dataclasses.dataclass(frozen=True)
class _Told:
    """The roles of collections, as a trace has found them."""

    roles: Mapping[str, Any]

    def __call__(self, collection: str) -> Any:
        return self.roles.get(collection, self.roles["*"])


@dataclasses.dataclass(frozen=True)
class StackLayout:
    """Where the variables of one stack lie.

    Attributes:
      path: the stack's place in the model; around it, names of stacked storage.
      before, positions, repeats, after: how many layers stand before the pattern, in
        it, how often it runs, and how many stand after it.
      store: ``"stacked"`` or ``"layers"``, as the module says.
      role_of: collection -> the axis that its layers are stacked along, or a word
        where they are not stacked.
      metadata_params: as handed to boxed variables for the axis.
      enclosing: the lifts around the stack, outermost first.

    Example:
      >>> import liftax as nn
      >>> stack = nn.Stack([nn.Dense(4)] * 2, repeats=3, before=[nn.Dense(4)])
      >>> places = stack.layout()
      >>> len(places), places.place(0), places.place(4)
      (7, ('before_0', None), ('block_1', 1))
    """

    path: Path
    before: int
    positions: int
    repeats: int
    after: int
    store: str
    role_of: RoleOf = dataclasses.field(compare=False)
    metadata_params: Mapping[Any, Any] = dataclasses.field(default_factory=dict, compare=False)
    enclosing: tuple[Enclosing, ...] = ()

    @classmethod
    def of_node(cls, node: StackNode) -> StackLayout:
        """Returns what a layout knows of a stack, as a layout of that stack."""
        return cls(
            node.path,
            node.before,
            node.positions,
            node.repeats,
            node.after,
            node.store,
            _Told(node.roles),
            node.metadata_params,
            tuple(Enclosing(e.kind, e.size, _Told(e.roles), e.stack) for e in node.around),
        )

    def __len__(self) -> int:
        return self.before + self.positions * self.repeats + self.after

    def __bool__(self) -> bool:
        return True

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self)

    def axis_of(self, collection: str) -> int | None:
        """Returns the axis along which layers are stacked, of the stack's own arrays.

        It counts in the stacked array, from its end where it is negative. None for a
        collection that all layers share or hand on.
        """
        role = self.role_of(collection)
        return role if isinstance(role, int) else None

    def full_axis(self, collection: str, ndim: int) -> int | None:
        """Returns the axis among all ``ndim`` axes that an array has in the whole model."""
        axis = self.axis_of(collection)
        if axis is None:
            return None
        outer = [lift.axis_of(collection) for lift in self.enclosing]
        added = [a for a in outer if a is not None]
        size = ndim - len(added)
        axis = axis + size if axis < 0 else axis
        for other in reversed(added):
            size += 1
            if (other + size if other < 0 else other) <= axis:
                axis += 1
        return axis

    def place(self, layer: int) -> tuple[str, int | None]:
        """Returns the subtree of a layer in stacked storage, and its index on the axis.

        Raises:
          IndexError: there is no such layer.
        """
        count = len(self)
        if not -count <= layer < count:
            raise IndexError(f"layer {layer} of a stack of {count} layers")
        layer = layer % count
        if layer < self.before:
            return f"before_{layer}", None
        repeat, position = divmod(layer - self.before, self.positions)
        if repeat < self.repeats:
            return f"block_{position}", repeat
        return f"after_{layer - self.before - self.positions * self.repeats}", None

    def layer_name(self, layer: int) -> str:
        """Returns the subtree of a layer in storage by layers."""
        return f"layers_{layer % len(self)}"

    def numbers(self, position: int) -> list[int]:
        """Returns the layers at a position of the pattern."""
        first = self.before + position
        return [first + repeat * self.positions for repeat in range(self.repeats)]


def stack_trees(trees: Sequence[Any], axis: int, params: Mapping[Any, Any]) -> Any:
    """Stacks the variables of layers along a new axis, and names it in boxes."""
    stacked = jax.tree.map(lambda *parts: jnp.stack(parts, axis), *trees)
    return boxes.add_axis(stacked, axis, params)


def unstack_trees(tree: Any, axis: int, size: int, params: Mapping[Any, Any]) -> list[Any]:
    """Undoes `stack_trees`."""
    leaves, treedef = jax.tree.flatten(boxes.remove_axis(tree, axis, params))
    parts = [jnp.unstack(leaf, axis=axis) for leaf in leaves]
    return [jax.tree.unflatten(treedef, [p[i] for p in parts]) for i in range(size)]


def take_layer(tree: Any, axis: int, index: int, params: Mapping[Any, Any]) -> Any:
    """Returns the variables of one layer."""
    tree = boxes.remove_axis(tree, axis, params)
    return jax.tree.map(lambda x: jax.lax.index_in_dim(x, index, axis, keepdims=False), tree)


def stacked(variables: Collections, at: StackLayout) -> Collections:
    """Brings a stack's collections from storage by layers to stacked storage.

    Raises:
      StackError: a layer lacks what others at its position have.
    """
    return {col: _stacked(node, col, at) for col, node in variables.items()}


def _stacked(node: Mapping[str, Any], col: str, at: StackLayout) -> dict[str, Any]:
    found = dict(node)
    layers = {i: found.pop(at.layer_name(i)) for i in range(len(at)) if at.layer_name(i) in found}
    for i, part in layers.items():
        name, index = at.place(i)
        if index is None:
            found[name] = part
    axis = at.axis_of(col)
    if axis is None:
        return found
    for position in range(at.positions):
        numbers = at.numbers(position)
        have = [i for i in numbers if i in layers]
        if not have:
            continue
        trees = [layers.get(i) for i in numbers]
        shape: Any = jax.tree.structure(layers[have[0]])
        for i, tree in zip(numbers, trees, strict=True):
            if tree is None or jax.tree.structure(tree) != shape:
                raise StackError(
                    f"{where(at.path)}: the layers of a stack differ.\n"
                    f"found: {col}/{at.layer_name(i)} lacks or adds variables beside "
                    f"{col}/{at.layer_name(have[0])}\n"
                    f"expected: the same variables in layers {numbers}"
                )
        found[f"block_{position}"] = stack_trees(trees, axis, at.metadata_params)
    return found


def by_layers(variables: Collections, at: StackLayout) -> Collections:
    """Brings a stack's collections from stacked storage to storage by layers."""
    return {col: _by_layers(node, col, at) for col, node in variables.items()}


def _by_layers(node: Mapping[str, Any], col: str, at: StackLayout) -> dict[str, Any]:
    found = dict(node)
    axis = at.axis_of(col)
    split: dict[str, list[Any]] = {}
    for i in range(len(at)):
        name, index = at.place(i)
        if index is None:
            if name in found:
                found[at.layer_name(i)] = found.pop(name)
        elif axis is not None and (name in found or name in split):
            if name not in split:
                split[name] = unstack_trees(found.pop(name), axis, at.repeats, at.metadata_params)
            found[at.layer_name(i)] = split[name][index]
    return found


def frozen(variables: Collections, at: StackLayout, layers: frozenset[int]) -> Collections:
    """Cuts the gradients of some layers' parameters, in stacked storage."""
    if "params" not in variables:
        return variables
    params = dict(variables["params"])
    axis = at.axis_of("params")
    for i in sorted(layers):
        name, index = at.place(i)
        if index is None and name in params:
            params[name] = jax.lax.stop_gradient(params[name])
    for position in range(at.positions):
        name = f"block_{position}"
        rows = [i in layers for i in at.numbers(position)]
        if name not in params or not any(rows):
            continue
        if all(rows):
            params[name] = jax.lax.stop_gradient(params[name])
        elif axis is None:
            raise StackError(
                f"{where(at.path)}: frozen= names layers that share their parameters with "
                f"others; freeze all layers at position {position} or none"
            )
        else:
            params[name] = jax.tree.map(partial(_masked, axis=axis, rows=rows), params[name])
    return {**variables, "params": params}


def _masked(x: Any, axis: int, rows: list[bool]) -> Any:
    shape = [1] * x.ndim
    shape[axis] = len(rows)
    return jnp.where(jnp.asarray(rows).reshape(shape), jax.lax.stop_gradient(x), x)


def restored(
    fn: Callable[..., Any],
    into: Callable[[Collections], Collections],
    back: Callable[[Collections], Collections],
) -> Callable[..., Any]:
    """Lifts a function of scopes: it sees the first scope's variables through ``into``.

    What it writes there goes out through ``back``.
    """
    roles = through_roles("stack", True, True)

    def run(scopes: Sequence[Scope], *args: Any, **kwargs: Any) -> Any:
        opening = Opening(roles, list(scopes), fn)
        first, *others = opening.values(THROUGH)
        body = opening.body(fn, see=_unheard)
        y, ((written, *rest),) = body([(into(first), *others)], [opening.keys(False)], args, kwargs)
        opening.write_back((back(written), *rest))
        return y

    return run


def _unheard(inner: Sequence[Scope]) -> None:
    """A layout shows the names of the storage, not those inside."""
    inner[0].call.rec = None


def stack_layouts(model: Any, rngs: Any, *args: Any, **kwargs: Any) -> tuple[StackLayout, ...]:
    """Finds the stacks of a model, and where the variables of each lie.

    The model is initialised abstractly: no array is made, nothing is computed.

    Args:
      model: a module, not bound.
      rngs, *args, **kwargs: as for ``model.init``; shapes will do.

    Returns:
      one `StackLayout` for each stack, those outside before those within.

    Example:
      >>> import jax, liftax as nn
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.Stack(nn.Dense(4), depth=3, name="decoder")(x)
      >>> x = jax.ShapeDtypeStruct((2, 4), "float32")
      >>> [(s.path, s.layers) for s in nn.stack_layouts(Model(), jax.random.key(0), x)]
      [(('decoder',), 3)]
    """
    nodes = layout(model, rngs, *args, **kwargs).stacks
    return tuple(StackLayout.of_node(node) for node in nodes)
