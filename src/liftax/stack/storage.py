"""Where the variables of a stack lie, in either storage, and the way from one to the other.

Layers are numbered in the order in which they run: those of ``before``, the pattern
``repeats`` times, those of ``after``. See stack.py for the names.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from ..core import boxes
from ..core.lift.crossing import Opening
from ..core.lift.schedule import Groups
from ..core.roles import THROUGH, through_roles
from ..core.scope import Scope
from ..core.types import Collections, Path
from ..errors import StackError, StackingError, where
from ..layout.build import layout
from ..layout.data import Enclosing, StackNode
from ..module import Module
from .convert import Converter, Form
from .stacking import Around, AskedAxes, Stacking, Stackings, placed

T = TypeVar("T")
RoleOf = Callable[[str], int | str | None]
Reorder = Callable[[jax.Array, int], jax.Array]
"""Brings the layers along an axis of an array into another order."""


@dataclasses.dataclass(frozen=True)
class StackLayout:
    """Where the variables of one stack lie.

    Attributes:
      path: the stack's place in the model; around it, names of stacked storage.
      before, positions, repeats, after: how many layers stand before the pattern, in
        it, how often it runs, and how many stand after it.
      store: ``"stacked"``, ``"layers"`` or ``"circular"``, as the module says.
      role_of: collection -> the axis that its layers are stacked along, or a word
        where they are not stacked.
      metadata_params: as handed to boxed variables for the axis.
      enclosing: the lifts around the stack, outermost first.
      order: of the repeats along their axis, None where they lie as they run.

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
    metadata_params: Mapping[str, object] = dataclasses.field(default_factory=dict, compare=False)
    enclosing: tuple[Enclosing, ...] = ()
    order: Groups | None = None

    @classmethod
    def of_node(cls, node: StackNode) -> StackLayout:
        """Returns what a layout knows of a stack, as a layout of that stack."""
        told = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
        del told["scanned"]  # how it runs is no matter of where its variables lie
        told["order"] = Groups(*node.order) if node.order else None
        return cls(role_of=_told(told.pop("roles")), enclosing=told.pop("around"), **told)

    def __len__(self) -> int:
        return self.before + self.positions * self.repeats + self.after

    def __bool__(self) -> bool:
        return True  # whatever its length is

    @property
    def layers(self) -> int:
        """The number of layers."""
        return len(self)

    def axis_of(self, collection: str) -> int | None:
        """Returns the axis along which layers are stacked, of the stack's own arrays.

        It counts in the stacked array, from its end where it is negative. None for a
        collection that all layers share or hand on.
        """
        return _axis(self.role_of(collection))

    def full_axis(self, collection: str, ndim: int) -> int | None:
        """Returns the axis among all ``ndim`` axes that an array has in the whole model."""
        axis = self.axis_of(collection)
        if axis is None:
            return None
        around = [lift.axis_of(collection) for lift in reversed(self.enclosing)]
        return placed(axis, [a for a in around if a is not None], ndim).axis

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
            row = repeat if self.order is None else self._rows.index(repeat)
            return self.block_name(position), row
        return f"after_{layer - self.before - self.positions * self.repeats}", None

    def block_name(self, position: int) -> str:
        """Returns the subtree of a position of the pattern in stacked storage.

        By stages it has a name that says so: with the rows of an array in another order it would
        else be taken for that of another stack.
        """
        return f"{self.order_name}_{position}"

    @property
    def order_name(self) -> str:
        """What these subtrees are called but for the position."""
        return "block" if self.order is None else "circular_{}x{}".format(*self.order)

    @property
    def as_run(self) -> StackLayout:
        """The same stack, stored as it runs."""
        return self if self.order is None else dataclasses.replace(self, order=None)

    @functools.cached_property
    def _rows(self) -> Sequence[int]:
        """The repeat that lies in each row."""
        return range(self.repeats) if self.order is None else self.order.rows(self.repeats)

    def stored_path(self, collection: str, path: Path) -> Path:
        """Returns where the variables lie of what runs at a path in the model."""
        depth, here = len(self.path), len(self.path) + 1
        running = {f"block_{i}": self.block_name(i) for i in range(self.positions)}
        inside = path[:depth] == self.path and path[depth:here] and path[depth] in running
        if not inside or self.order is None or self.axis_of(collection) is None:
            return path
        return (*self.path, running[path[depth]], *path[here:])

    def layer_name(self, layer: int) -> str:
        """Returns the subtree of a layer in storage by layers."""
        return f"layers_{layer % len(self)}"

    @property
    def names(self) -> frozenset[str]:
        """The subtrees of the layers, as they are stored."""
        if self.store == "layers":
            return frozenset(map(self.layer_name, range(len(self))))
        ends = {"before": self.before, "after": self.after}
        names = [f"{part}_{i}" for part, count in ends.items() for i in range(count)]
        return frozenset([*names, *map(self.block_name, range(self.positions))])

    @property
    def first_name(self) -> str:
        """The subtree of the first layer, as it is stored."""
        return self.layer_name(0) if self.store == "layers" else self.place(0)[0]

    def numbers(self, position: int) -> list[int]:
        """Returns the layers at a position of the pattern, in the order in which they lie."""
        first = self.before + position
        return [first + repeat * self.positions for repeat in self._rows]

    def stackings(self) -> Stackings:
        """Returns what the layout says of each subtree of stacked storage, as `nn.Stacking`.

        Every position of the pattern is one, and each layer before and after it, which only has
        another name in the other storage.
        """
        members: dict[str, list[int]] = {}
        for i in range(len(self)):
            name, row = self.place(i)
            position = (i - self.before) % self.positions
            members[name] = [i] if row is None else self.numbers(position)
        blocks = {self.block_name(i) for i in range(self.positions)}
        # A `Stacking` lists what is around it as its arrays meet it: from the inside out.
        around = tuple(Around(AskedAxes(e.axis_of), e.stack) for e in reversed(self.enclosing))
        # Only a stack with more layers has these: they tell that a layout is another model's.
        more = (
            f"layers_{len(self)}",
            f"before_{self.before}",
            self.block_name(self.positions),
            f"after_{self.after}",
        )
        return tuple(
            Stacking(
                path=(*self.path, name),
                layers=tuple((*self.path, self.layer_name(i)) for i in numbers),
                axes=AskedAxes(self.axis_of) if name in blocks else None,
                metadata_params=dict(self.metadata_params),
                owner=self.path,
                numbers=tuple(numbers),
                around=around,
                beyond=tuple((*self.path, one) for one in more),
                level=len(around),
                order=self.order if name in blocks else None,
            )
            for name, numbers in members.items()
        )


def _axis(role: int | str | None) -> int | None:
    return role if isinstance(role, int) else None


def _told(roles: Mapping[str, int | str | None]) -> RoleOf:
    """The roles of collections, as a trace has found them."""
    return lambda collection: roles.get(collection, roles["*"])


def stacked(variables: Collections, at: StackLayout) -> Collections:
    """Brings a stack's collections from storage by layers to stacked storage.

    Raises:
      StackError: a layer lacks what others at its position have.
    """
    # The converter speaks of files and layouts; in a running stack the layers are the subject.
    try:
        return _in_form("stacked", variables, at)
    except StackingError:
        _check_layers(variables, at)
        raise


def running(variables: Collections, at: StackLayout, rows: bool) -> Collections:
    """Brings a stack's collections from storage by stages to the names, and order, of its loop.

    Args:
      variables: the collections.
      at: where they lie.
      rows: whether the layers are to lie in the order in which they run. A pipeline of the same
        stages takes them as they are.
    """
    names = {at.block_name(i): f"block_{i}" for i in range(at.positions)}
    return _renamed(variables, at, names, at.order.running if at.order and rows else None)


def by_stages(variables: Collections, at: StackLayout, rows: bool) -> Collections:
    """Undoes `running`."""
    names = {f"block_{i}": at.block_name(i) for i in range(at.positions)}
    return _renamed(variables, at, names, at.order.by_stage if at.order and rows else None)


def _renamed(
    variables: Collections,
    at: StackLayout,
    names: Mapping[str, str],
    order: Reorder | None,
) -> Collections:
    made = {}
    for col, node in variables.items():
        axis = at.axis_of(col)
        if axis is None or not isinstance(node, Mapping):
            made[col] = node
            continue
        made[col] = {
            names.get(name, name): part
            if order is None or name not in names
            else _in_rows(part, axis, at.metadata_params, order)
            for name, part in node.items()
        }
    return made


def _in_rows(tree: Any, axis: int, params: Mapping[str, object], order: Reorder) -> Any:
    # A box may change its value as its axis comes and goes.
    bare = boxes.remove_axis(tree, axis, params)
    return boxes.add_axis(jax.tree.map(lambda leaf: order(leaf, axis), bare), axis, params)


def by_layers(variables: Collections, at: StackLayout) -> Collections:
    """Brings a stack's collections from stacked storage to storage by layers, in their order."""
    names = [at.layer_name(i) for i in range(len(at))]
    made = {}
    for col, node in _in_form("layers", variables, at).items():
        layers = {name: node[name] for name in names if name in node}
        rest = {name: part for name, part in node.items() if name not in layers}
        made[col] = {**rest, **layers}
    return made


def _in_form(form: Form, variables: Collections, at: StackLayout) -> Collections:
    # Inside of the model paths begin at the stack, and the axes of lifts around it are gone.
    here = dataclasses.replace(at, path=(), enclosing=())
    # Variables beside those of the layers are no mistake here: a module may leave some unused.
    stackings = [dataclasses.replace(part, beyond=()) for part in here.stackings()]
    made = {}
    for name, tree in variables.items():
        found = Converter(form, name)(tree, tuple(stackings), (name,))
        assert isinstance(found, dict)
        made[name] = found
    return made


def _check_layers(variables: Collections, at: StackLayout) -> None:
    """Raises StackError where the layers at one position are not alike."""
    for col, node in variables.items():
        for position in range(at.positions):
            numbers = at.numbers(position)
            first = next((i for i in numbers if at.layer_name(i) in node), at.before + position)
            shapes: dict[int, object] = {
                i: jax.tree.structure(node.get(at.layer_name(i))) for i in numbers
            }
            for i, shape in shapes.items():
                if shape != shapes[first]:
                    raise StackError(
                        f"{where(at.path)}: the layers of a stack differ.\n"
                        f"found: {col}/{at.layer_name(i)} lacks or adds variables beside "
                        f"{col}/{at.layer_name(first)}\n"
                        f"expected: the same variables in layers {numbers}"
                    )


def frozen(
    variables: Collections, at: StackLayout, layers: frozenset[int], by_stage: bool = False
) -> Collections:
    """Cuts the gradients of some layers' parameters, in stacked storage.

    With ``by_stage`` the layers lie by stages, under the names of the loop.
    """
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
        rows = [i in layers for i in (at if by_stage else at.as_run).numbers(position)]
        if name not in params or not any(rows):
            continue
        if all(rows):
            params[name] = jax.lax.stop_gradient(params[name])
        elif axis is None:  # one array for all repeats has no part that could be left out
            raise StackError(
                f"{where(at.path)}: frozen= names layers that share their parameters with "
                f"others; freeze all layers at position {position} or none"
            )
        else:
            params[name] = jax.tree.map(partial(_masked, axis=axis, rows=rows), params[name])
    return {**variables, "params": params}


def _masked(x: jax.Array, axis: int, rows: list[bool]) -> jax.Array:
    # Selected and not sliced: the gradient is one array still, zeros for these layers.
    shape = [1] * x.ndim
    shape[axis] = len(rows)
    return jnp.where(jnp.asarray(rows).reshape(shape), jax.lax.stop_gradient(x), x)


def restored(
    fn: Callable[..., T],
    into: Callable[[Collections], Collections],
    back: Callable[[Collections], Collections],
    heard: bool = False,
) -> Callable[..., T]:
    """Lifts a function of scopes: it sees the first scope's variables through ``into``.

    What it writes there goes out through ``back``. A layout shows the names of the storage, not
    those inside; ``heard`` says that it knows those of the storage from these.
    """
    roles = through_roles("stack", True, True)

    def run(scopes: Sequence[Scope], *args: object, **kwargs: object) -> T:
        recorder = scopes[0].call.rec

        def body_of(inner: Sequence[Scope], *args: object, **kwargs: object) -> T:
            if heard:
                inner[0].call.rec = recorder
            return fn(inner, *args, **kwargs)

        opening = Opening(roles, list(scopes), fn)
        first, *others = opening.values(THROUGH)
        body = opening.body(body_of, see=_unheard)
        y, ((written, *rest),) = body([(into(first), *others)], [opening.keys(False)], args, kwargs)
        opening.write_back((back(written), *rest))
        return y

    return run


def _unheard(inner: Sequence[Scope]) -> None:
    """Of the renaming itself a layout is told nothing: it is no lift of the user's."""
    inner[0].call.rec = None


def stack_layouts(
    model: Module, rngs: object, *args: object, **kwargs: Any
) -> tuple[StackLayout, ...]:
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
