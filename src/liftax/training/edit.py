"""Layers of a stack taken out, put in, moved and merged, and what belongs to them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..checkpoint.find import as_stackings
from ..checkpoint.roots import Root, roots_replaced
from ..checkpoint.states import check_states
from ..core.types import Path, Tree
from ..errors import StackingError
from ..stack.convert import Converter, form_of
from ..stack.stacking import Stacking, Stackings, name_of
from ..stack.trees import MISSING, get, put, remove

Source = tuple[int, ...] | Mapping[str, Tree]
"""What a layer is made of: the mean of some that there were, or variables given for it."""


@dataclasses.dataclass(frozen=True)
class LayerEdit:
    """The layers that a stack will have, from those that it has; see `edit_layers`.

    Each method returns another edit, whose numbers are those of the layers as they are then.

    Attributes:
      given: the variables.
      stacking: the layers as they are.
      sources: for each layer that there will be, what it is made of.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=6)
      >>> edit = nn.edit_layers(stack.init(jax.random.key(0), jnp.ones(4)), stack)
      >>> edit.depth, edit.drop(0).drop(0).depth  # the second was layer 1
      (6, 4)
    """

    given: Tree = dataclasses.field(repr=False)
    stacking: Stacking
    sources: tuple[Source, ...]
    others: Stackings = ()

    def drop(self, *numbers: int) -> LayerEdit:
        """Takes layers out."""
        gone = {self._at(n, "drop") for n in numbers}
        return self._with(s for i, s in enumerate(self.sources) if i not in gone)

    def insert(self, number: int, tree: Tree) -> LayerEdit:
        """Puts a layer in, in front of layer ``number``; at the end where there is none.

        Args:
          number: the number that it will have.
          tree: its variables, ``{collection: variables}`` or the parameters alone. What an
            optimizer keeps for it is zero.
        """
        # One past the last is a place too: the end.
        if number != len(self.sources) + self._first:
            self._at(number, "insert")
        one = dict(tree) if isinstance(tree, Mapping) and "params" in tree else {"params": tree}
        at = number - self._first
        return self._with([*self.sources[:at], one, *self.sources[at:]])

    def move(self, number: int, to: int) -> LayerEdit:
        """Puts layer ``number`` elsewhere; it will have the number ``to``."""
        at, place = self._at(number, "move"), self._at(to, "move")
        rest = [s for i, s in enumerate(self.sources) if i != at]
        return self._with([*rest[:place], self.sources[at], *rest[place:]])

    def average(self, numbers: Sequence[int]) -> LayerEdit:
        """Makes one layer of several, the mean of them, in the place of the first."""
        places = sorted({self._at(n, "average") for n in numbers})
        if len(places) < 2:
            raise StackingError(f"edit_layers: average of {list(numbers)}; it takes two or more")
        # Means of means would weigh the layers unequally, so an average of averages is that of all
        # the layers that went into them.
        merged: list[int] = []
        for source in (self.sources[i] for i in places):
            if isinstance(source, Mapping):
                raise StackingError("edit_layers: average of a layer that was inserted just now")
            merged += source
        kept = [s for i, s in enumerate(self.sources) if i not in places[1:]]
        kept[places[0]] = tuple(merged)
        return self._with(kept)

    @property
    def depth(self) -> int:
        """How many repeats the stack has afterwards: its ``depth=``."""
        return len(self.sources)

    @property
    def layout(self) -> Stackings:
        """The layers as they will be, for `to_layers` and whatever else takes a layout."""
        return self._after, *self.others

    @property
    def variables(self) -> Any:
        """The variables with these layers."""
        return self.of(self.given)

    def of(self, tree: Tree) -> Any:
        """Does to another tree what is done to the variables: a state of an optimizer, an average.

        Args:
          tree: any pytree in which trees like the variables occur, as for `to_layers`.

        Raises:
          StackingError: as `to_layers`.
        """
        stackings = (self.stacking, *self.others)
        # Before anything is changed: a state half edited fits no parameters.
        check_states(tree, stackings, None)
        return roots_replaced(tree, stackings, None, self._changed)

    # --- inside ---------------------------------------------------------------

    @property
    def _first(self) -> int:
        return min(self.stacking.in_order)

    @property
    def _after(self) -> Stacking:
        # Numbered anew without gaps, as the model with the new depth will make them.
        count, first, s = len(self.sources), self._first, self.stacking
        paths = [_numbered(_running(s)[0], i) for i in range(count + 1)]
        rows: Sequence[int] = range(count)
        if s.order is not None:
            groups = s.order.stages * s.order.repeats
            if count % groups:
                raise StackingError(
                    f"edit_layers: {count} layers cannot be stored by {s.order.stages} stages and "
                    f"{s.order.repeats} repeats; expected a multiple of {groups}; or nn.to_layers "
                    f"first, and the layout of a stack with store='stacked'"
                )
            rows = s.order.rows(count)
        return dataclasses.replace(
            s,
            layers=tuple(paths[i] for i in rows),
            numbers=tuple(first + i for i in rows),
            # The first number that is no layer's: a tree which has it as well is not of this depth.
            beyond=(paths[-1],),
            # What was known of the old layers' shapes says nothing of those that were inserted.
            shapes={},
        )

    def _at(self, number: int, what: str) -> int:
        first, count = self._first, len(self.sources)
        if not first <= number < first + count:
            raise StackingError(
                f"edit_layers: {what} has layer {number}; the repeated layers of "
                f"{name_of(self.stacking.owner)} are {first} to {first + count - 1} now"
            )
        return number - first

    def _with(self, sources: Iterable[Source]) -> LayerEdit:
        found = tuple(sources)
        if not found:
            raise StackingError("edit_layers: no layer would be left")
        return dataclasses.replace(self, sources=found)

    def _changed(self, root: Root) -> object:
        s, name = self.stacking, root.collection
        form = form_of(s, root.tree, name, root.path)
        if form not in ("stacked", "layers"):
            return root.tree  # has no axis of layers
        if form == "layers" and self.others and len(self.sources) != len(s.layers):
            raise StackingError(
                f"edit_layers: {name_of(root.path)} has its layers one by one, and others besides "
                f"the repeated ones, whose numbers would change: nn.to_stacked first"
            )
        # One storage to work in, whichever was given: layer by layer every edit is of a list.
        tree = Converter("layers", name)(root.tree, (s,), root.path)
        old = [get(tree, path) for path in _running(s)]
        # Moments lie in the shape of the parameters, and under another name than theirs.
        is_state = bool(root.path) and root.path[-1] != name and name == "params"
        new = [_made(source, old, name, is_state, root.path) for source in self.sources]
        after = self._after
        tree = put(remove(tree, s.layers), dict(zip(_running(after), new, strict=True)))
        return tree if form == "layers" else Converter("stacked", name)(tree, (after,), root.path)


def edit_layers(variables: Tree, layout: object) -> LayerEdit:
    """Takes layers of a stack out, puts others in, moves and merges them.

    Args:
      variables: the variables of a model, or any pytree in which such trees occur (a train state),
        in either storage, as for `to_layers`.
      layout: the stack, as for `to_layers`; of one with one repeated layer. Layers before and after
        the repeats stay.

    Returns:
      a `LayerEdit`: its methods ``drop``, ``insert``, ``move`` and ``average`` return another one;
      ``variables`` has the result, ``of(state)`` does the same to what an optimizer keeps, and
      ``depth`` is the stack's new depth.

    Raises:
      StackingError: the layout has no stack of one repeated layer, or more than one; by the
        methods, a number that is no layer's.

    Example:
      >>> import jax, liftax as nn
      >>> stack = nn.Stack(nn.Dense(4), depth=12)
      >>> x = jax.numpy.ones(4)
      >>> variables = stack.init(jax.random.key(0), x)
      >>> edit = nn.edit_layers(variables, stack).drop(3, 4).average([7, 8]).move(0, 5)
      >>> edit.depth, edit.variables["params"]["block_0"]["kernel"].shape
      (9, (9, 4, 4))
      >>> nn.Stack(nn.Dense(4), depth=edit.depth).apply(edit.variables, x).shape
      (4,)
    """
    stackings = as_stackings(layout)
    repeated = [s for s in stackings if s.axes is not None]
    if len(repeated) != 1:
        found = ", ".join(name_of(s.path) for s in repeated) or "none"
        raise StackingError(
            f"edit_layers: the layout has {len(repeated)} repeated layers ({found}); expected one: "
            f"the layout of one stack, whose pattern is one layer"
        )
    (one,) = repeated
    sources = tuple((i,) for i in range(len(one.layers)))
    return LayerEdit(variables, one, sources, tuple(s for s in stackings if s is not one))


def _running(s: Stacking) -> list[Path]:
    """The paths of the layers in the order in which they run."""
    return [path for _, path in sorted(zip(s.in_order, s.layers, strict=True))]


def _numbered(first: Path, i: int) -> Path:
    """The path of a layer, from that of the first: the last number in it counts on."""

    def later(match: re.Match[str]) -> str:
        return str(int(match[0]) + i)

    # From the end: `block_0/layer_2` counts layers by its last number.
    for at in reversed(range(len(first))):
        name = re.sub(r"\d+(?!.*\d)", later, first[at])
        if name != first[at] or re.search(r"\d", first[at]):
            return (*first[:at], name, *first[at + 1 :])
    raise StackingError(f"edit_layers: the layer {name_of(first)} has no number in its name")


def _made(source: Source, old: list[Tree], collection: str, is_state: bool, at: Path) -> Tree:
    """The variables of one layer, in one collection."""
    if isinstance(source, Mapping):
        if is_state:
            return jax.tree.map(lambda x: jnp.zeros_like(x), old[0])
        made = source.get(collection, MISSING)
        if made is MISSING:
            raise StackingError(
                f"edit_layers: the inserted layer has no {collection}, which "
                f"{name_of(at)} has; give insert {{'params': ..., {collection!r}: ...}}"
            )
        return made
    if len(source) == 1:
        return old[source[0]]
    return jax.tree.map(_mean, *(old[i] for i in source))


def _mean(*values: jax.Array) -> jax.Array:
    if not jnp.issubdtype(jnp.result_type(values[0]), jnp.inexact):
        return values[0]  # a count, a key: of the first
    # Summed in float32 at least, or a mean of bfloat16 would round at each step.
    wide = jnp.promote_types(values[0].dtype, np.float32)
    total = sum(jnp.asarray(value, wide) for value in values) / len(values)
    return jnp.asarray(total, values[0].dtype)
