"""What is seen while a model is traced for its layout.

A recorder (see `core.events`) notes the lifts as their bodies are entered, and for each variable
the deepest nest in which it was seen; an interceptor notes the modules. Afterwards the axes follow
from the outside in: of the full shape, the outermost lift's axis is taken away, then the next
one's, and what remains is the layer's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeGuard

import jax
import numpy as np

from ..core.boxes import AxisMetadata
from ..core.events import LiftEvent, users_line
from ..core.roles import Role
from ..core.types import Function, Metadata, Path, Tree
from ..module.methods import InterceptorContext
from ..module.state import LIFTED
from .data import Along, Axis, Enclosing, LiftNode, ModuleNode, StackNode, VariableLayout
from .labels import axis_labels
from .shapes import call_text, described
from .staged import Staged


@dataclass
class _Node:
    event: LiftEvent
    parent: int | None
    called_at: str | None
    streams: set[str] = field(default_factory=set)
    takes: str = ""
    carries: str = ""
    gives: str = ""


@dataclass
class _Called:
    """A module, as it was called first, and from where each time."""

    module: object
    lifts: tuple[int, ...]
    takes: str
    gives: str = ""
    uses: list[str] = field(default_factory=list)


class _Described(Protocol):
    """What a stack says of where its variables lie, as its own layout has it."""

    before: int
    positions: int
    repeats: int
    after: int
    store: str
    role_of: Callable[[str], Role | None]
    metadata_params: Metadata
    order: Any  # of the repeats, None where they lie as they run

    def stored_path(self, collection: str, path: Path) -> Path:
        """Where the variables lie of what has a path in the model as it runs."""


@dataclass
class _Sighting:
    nest: tuple[int, ...]
    shapes: list[tuple[int, ...]]


class Record:
    """The recorder: a tree of lifts, and where each variable was seen deepest."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.nest: tuple[int, ...] = ()
        self.known: dict[tuple[object, ...], int] = {}
        self.seen: dict[tuple[str, Path], _Sighting] = {}
        self.layers: dict[Path, object] = {}
        self.called: dict[Path, _Called] = {}
        self.calls: list[tuple[Path, str]] = []  # those under way: path and method
        self.asked: set[str] = set()
        self.staged: dict[Path, Staged | None] = {}  # of stacks, by their places
        self.described: dict[Path, tuple[_Described, list[LiftEvent], bool]] = {}
        # The layouts of stacks that are stored under other names than they run.
        self.renaming: list[_Described] = []

    # --- what the engine calls ------------------------------------------------

    def enter(self, event: LiftEvent) -> None:
        parent = self.nest[-1] if self.nest else None
        # A lift that is called or traced again at its place is still one lift.
        key = (parent, event.kind, event.path, event.name, event.size, event.axis_name)
        index = self.known.setdefault(key, len(self.nodes))
        if index == len(self.nodes):
            self.nodes.append(_Node(event, parent, users_line()))
        self.nest = (*self.nest, index)

    def exit(self) -> None:
        self.nest = self.nest[:-1]

    def took(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        node = self.nodes[self.nest[-1]]
        # Its first argument goes from one iteration to the next and is told by itself.
        if node.event.kind in _CARRYING:
            first, *args = args
            node.carries = described(first) if node.event.carry and first is not None else ""
        node.takes = call_text(args, kwargs) if jax.tree.leaves((args, kwargs)) else ""

    def gave(self, value: object) -> None:
        node = self.nodes[self.nest[-1]]
        if node.event.kind in _CARRYING and isinstance(value, (tuple, list)) and len(value) == 2:
            value = value[1]
        node.gives = described(value) if jax.tree.leaves(value) else ""

    def stored(self, path: Path, collection: str = "params") -> Path:
        """Where the variables lie of what has a path in the model as it runs."""
        for at in self.renaming:  # those around others first
            path = at.stored_path(collection, path)
        return path

    def variable(self, collection: str, path: Path, value: Tree) -> None:
        path = self.stored(path, collection)
        before = self.seen.get((collection, path))
        # Outside a lift the same variable is seen whole; what its layer made is seen deepest
        # inside.
        if before is None or len(before.nest) < len(self.nest):
            shapes = [np.shape(leaf) for leaf in jax.tree.leaves(value)]
            self.seen[collection, path] = _Sighting(self.nest, shapes)

    def stream(self, asked: str, name: str, path: Path) -> None:
        self.asked.add(asked)
        for index in self.nest:
            self.nodes[index].streams.add(name)

    def see_layer(
        self,
        call: Function,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: InterceptorContext,
    ) -> object:
        """An interceptor of methods: notes which module stands at which path."""
        # A lifted class and the class that it lifts stand at one path: the inner one comes last.
        path = self.stored(context.module.path)
        self.layers[path] = context.module
        # By attribute: stacks import the layout's data, so the layout cannot import them.
        describe = getattr(context.module, "_stack_told", None)
        if describe is not None and context.method_name == "__call__":
            around = [self.nodes[index].event for index in self.nest]
            around = [event for event in around if event.size is not None]
            at, scanned, self.staged[path] = describe(path, *args[:1])
            if path not in self.described:
                self.described[path] = at, around, scanned
                self.renaming += [at] if at.order else []
        method = context.method_name
        if method in ("setup", LIFTED) or (self.calls and self.calls[-1][0] == path):
            return call(*args, **kwargs)  # a module that calls itself is not used once more
        known = self.called.get(path)
        if known is None:
            takes = call_text(args, kwargs)
            known = self.called[path] = _Called(context.module, self.nest, takes)
        above, from_method = self.calls[-1] if self.calls else ((), "")
        known.uses.append(f"/{'/'.join(above)}.{from_method}" if from_method else "")
        self.calls.append((path, method))
        try:
            y = call(*args, **kwargs)
        finally:
            self.calls.pop()
        known.gives = known.gives or described(y)
        return y

    # --- what came of it ------------------------------------------------------

    def modules(self) -> tuple[ModuleNode, ...]:
        return tuple(
            ModuleNode(
                path=path,
                layer=type(called.module).__name__,
                takes=called.takes,
                gives=called.gives,
                uses=tuple(called.uses),
                lifts=called.lifts,
            )
            for path, called in self.called.items()
        )

    def lifts(self, variables: Mapping[str, Tree]) -> tuple[LiftNode, ...]:
        # Only collections that have variables in a lift: a filter such as True names any number
        # more.
        used: dict[int, set[str]] = {}
        for (collection, _), sighting in self.seen.items():
            if collection in variables:
                for index in sighting.nest:
                    used.setdefault(index, set()).add(collection)

        # Roles in the order in which the variables have the collections, whatever was seen first.
        order = {name: i for i, name in enumerate(variables)}
        made = []
        for index, node in enumerate(self.nodes):
            event, stack = node.event, self._stack_of(node.event)
            known = None if stack is None else self.described.get(stack)
            roles = {
                collection: _role(event.role_of(collection))
                for collection in sorted(used.get(index, ()), key=order.__getitem__)
            }
            splits = {s: event.split_of(s) for s in sorted(node.streams)}
            made.append(
                LiftNode(
                    index=index,
                    kind=event.kind,
                    target=event.name,
                    path=self.stored(event.path),
                    parent=node.parent,
                    size=event.size,
                    axis_name=event.axis_name,
                    file_line=event.file_line,
                    carry=event.carry,
                    roles=roles,
                    splits={s: split for s, split in splits.items() if split is not None},
                    details={k: str(v) for k, v in event.details.items()},
                    takes=node.takes,
                    carries=node.carries,
                    gives=node.gives,
                    made_at=event.made.line,
                    called_at=node.called_at,
                    quiet=tuple(sorted(event.made.quiet)),
                    batch=event.batch,
                    staged=None if stack is None else self.staged.get(stack),
                    order=tuple(known[0].order or ()) if known is not None else (),
                )
            )
        return tuple(made)

    def _stack_of(self, event: LiftEvent) -> Path | None:
        """The path of the stack whose loop a lift is: the loop stands at its first position."""
        return self.stored(event.path)[:-1] if event.kind == "stack" else None

    def stacks(self, variables: Mapping[str, Tree]) -> tuple[StackNode, ...]:
        def roles(role_of: Callable[[str], Role | None]) -> dict[str, Role | None]:
            return {**{name: role_of(name) for name in variables}, "*": role_of("any other")}

        return tuple(
            StackNode(
                path,
                at.before,
                at.positions,
                at.repeats,
                at.after,
                at.store,
                roles(at.role_of),
                dict(at.metadata_params),
                tuple(
                    Enclosing(
                        event.kind,
                        event.size,
                        roles(event.role_of),
                        self._stack_of(event),
                    )
                    for event in around
                ),
                scanned,
                at.order and tuple(at.order),
            )
            for path, (at, around, scanned) in self.described.items()
        )

    def variables(self, variables: Mapping[str, Tree]) -> tuple[VariableLayout, ...]:
        rows: list[VariableLayout] = []
        for collection, tree in variables.items():
            self._walk(collection, (), tree, rows)
        # JAX sorts the names in a dict; the order in which a model makes its variables says more.
        order = {key: i for i, key in enumerate(self.seen)}
        last = len(order)
        return tuple(sorted(rows, key=lambda v: order.get((v.collection, v.path), last)))

    def _walk(self, collection: str, path: Path, value: Tree, rows: list[VariableLayout]) -> None:
        sighting = self.seen.get((collection, path)) if path else None
        if isinstance(value, Mapping) and (sighting is None or not _is_box(value)):
            for name, part in value.items():
                self._walk(collection, (*path, name), part, rows)
            return
        # A box may name the axes that its layer made; these go before the table of labels.
        names = getattr(value, "names", None) if _is_box(value) else None
        if _is_box(value):
            value = value.unbox()
        # One that `init` was given, or that was written whole, was never seen under its own path.
        nest = sighting.nest if sighting else self._nest_above(path, collection)
        seen = sighting.shapes if sighting else []
        leaves = jax.tree_util.tree_leaves_with_path(value)
        for i, (keys, leaf) in enumerate(leaves):
            inner = seen[i] if len(seen) == len(leaves) else None
            rows.append(
                self._row(collection, path, jax.tree_util.keystr(keys), leaf, nest, inner, names)
            )

    def _nest_above(self, path: Path, collection: str) -> tuple[int, ...]:
        """The nest of a variable that is a mapping, seen whole under a shorter path."""
        for end in range(len(path) - 1, 0, -1):
            sighting = self.seen.get((collection, path[:end]))
            if sighting is not None:
                return sighting.nest
        return ()

    def _row(
        self,
        collection: str,
        path: Path,
        leaf_name: str,
        leaf: jax.ShapeDtypeStruct,
        nest: tuple[int, ...],
        inner: tuple[int, ...] | None,
        names: Sequence[object] | None,
    ) -> VariableLayout:
        shape = tuple(leaf.shape)
        layer = self.layers.get(path[:-1])

        # From the outside in: each lift takes its axis away from what those before it have left.
        left = list(range(len(shape)))
        came_from: dict[int, int] = {}
        along = []
        for index in nest:
            event = self.nodes[index].event
            role = event.role_at(collection, path)
            axis = None
            if isinstance(role, int) and left:
                axis = left.pop(role if role >= 0 else len(left) + role)
                came_from[axis] = index
            split = None
            if collection == "params" and event.size is not None:
                split = event.split_of("params")
            along.append(Along(index, _role(role), axis, split))

        # What is left is the layer's own; names that a box gives go before those of the table.
        own = axis_labels(layer, path[-1], len(left))
        if inner is not None and tuple(shape[i] for i in left) != inner:
            own = (None,) * len(left)  # the variable was changed on its way out (map_variables)
        labels = dict(zip(left, own, strict=True))
        if names is not None and len(names) == len(shape):
            labels.update({i: str(n) for i, n in enumerate(names) if n is not None and i in left})

        axes = []
        for i, size in enumerate(shape):
            if i in came_from:
                event = self.nodes[came_from[i]].event
                axes.append(Axis(size, event.axis_name or event.kind, came_from[i]))
            else:
                axes.append(Axis(size, labels[i]))
        return VariableLayout(
            collection=collection,
            path=path,
            shape=shape,
            dtype=str(leaf.dtype),
            bytes=leaf.size * leaf.dtype.itemsize,
            axes=tuple(axes),
            along=tuple(along),
            layer=type(layer).__name__ if layer is not None else None,
            leaf=leaf_name,
        )


def _is_box(value: object) -> TypeGuard[AxisMetadata]:
    return isinstance(value, AxisMetadata)


def _role(role: Role | None) -> Any:
    if isinstance(role, int):
        return "stacked"
    words = {"broadcast": "shared", "carry": "carried", "through": "through", None: "absent"}
    return words.get(role, str(role))


_CARRYING = ("scan", "stack", "pipeline")
"""The kinds of lifts whose body takes a carry first, and returns it with what else it returns."""
