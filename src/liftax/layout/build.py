"""`layout`: a model's layout from one abstract trace of its initialisation.

A recorder (see `core.record`) notes the lifts as their bodies are entered, and for each variable
the deepest nest in which it was seen. Afterwards the axes follow from the outside in: of the full
shape, the outermost lift's axis is taken away, then the next one's, and what remains is the
layer's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from ..core.boxes import AxisMetadata
from ..core.events import LiftEvent, class_line, recorder, users_line
from ..core.trees import abstract
from ..core.types import Path
from ..errors import TransformTargetError
from ..module import Module, intercept_methods
from ..module.state import LIFTED
from ..module.summary import summary
from ..pytrees import is_array
from .cost import forward_cost
from .data import (
    Along,
    Axis,
    Enclosing,
    LiftNode,
    Measured,
    ModuleNode,
    StackNode,
    VariableLayout,
)
from .labels import axis_labels
from .notes import findings_of
from .progress import said
from .residuals import residuals_of
from .shapes import described
from .shown import Layout
from .staged import Staged


def layout(module: Any, rngs: Any, *args: Any, grads: bool = False, **kwargs: Any) -> Layout:
    """Where every variable of a model would lie, before anything runs.

    The model is initialised abstractly, with one trace: no array is made, nothing is computed.

    Args:
      module: the model, not bound.
      rngs: a key, or a mapping of stream to key, as for `module.init`; shapes will do.
      *args: arguments of the model; arrays or `jax.ShapeDtypeStruct`.
      grads: whether to trace a gradient of the outputs too, and to tell what its backward pass
        keeps, module by module, and what of that is cheap to compute again: `kept`.
      **kwargs: further arguments, as for `module.init` (`method` and `mutable` included).

    Returns:
      A `Layout`. Print it for a table, `to_html(path)` writes a page, `with_cost()` adds what a
      forward pass costs.

    Raises:
      TransformTargetError: `module` is no module.
      Whatever `module.init` raises for the same arguments.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...   @nn.compact
      ...   def __call__(self, x, _):
      ...     return nn.relu(nn.Dense(4)(x)), None
      >>> stack = nn.scan(
      ...     Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)()
      >>> x = jax.ShapeDtypeStruct((2, 4), 'float32')
      >>> kernel = nn.layout(stack, jax.random.key(0), x, None)['params/Dense_0/kernel']
      >>> [(axis.label, axis.size) for axis in kernel.axes]
      [('scan', 3), ('in', 4), ('out', 4)]
    """
    if not isinstance(module, (type, Module)):
        raise TransformTargetError(
            f"layout: expected a module, e.g. Model(...); found {type(module).__name__}"
        )
    call = _Call(module, rngs, args, kwargs)
    record = _Record()
    # The recorder hears the engine, the interceptor the modules: the core knows scopes alone.
    token = recorder.set(record)
    try:
        with (
            intercept_methods(record.see_layer),
            said(f"tracing {type(module).__name__}", lambda: f"{len(record.called):,} modules"),
        ):
            variables = call.abstract_init()
    finally:
        recorder.reset(token)
    lifts, modules = record.lifts(variables), record.modules()

    # A second trace, of a gradient, which may cost as much again: only where it is asked for.
    kept = None
    if grads:
        with said("tracing a gradient"):
            kept = residuals_of(*call.forward(variables), call.mutable(variables) is not False)

    # Compiling takes longer than all else, so it waits until somebody asks for the cost.
    def measure() -> Measured:
        with said("compiling one forward pass"):
            cost = forward_cost(*call.forward(variables))
        with said("counting the FLOPs of each module"):
            return cost, call.flops(modules, lifts)

    found = Layout(
        module=type(module).__name__,
        variables=record.variables(variables),
        lifts=lifts,
        stacks=record.stacks(variables),
        arguments=call.text(),
        file_line=class_line(type(module)),
        modules=modules,
        absent=tuple(sorted(record.asked - {*call.streams()})),
        kept=kept,
        measure=measure,
    )
    return found.replace(findings=findings_of(found))


_OF_INIT = ("method", "mutable", "capture_intermediates")


class _Call:
    """The arguments of an initialisation, with arrays told from everything else."""

    def __init__(self, module: Any, rngs: Any, args: tuple[Any, ...], kwargs: dict[str, Any]):
        self.module = module
        # Flattened once: `init`, the forward pass and the counting of FLOPs are functions of the
        # same arrays, with everything else closed over.
        leaves, self.treedef = jax.tree.flatten((rngs, args, kwargs), is_leaf=is_array)
        self.arrays = [_shape(leaf) for leaf in leaves if is_array(leaf)]
        # The layout may outlive the arrays that it was made for, so only their shapes are kept.
        self.others = [_ARRAY if is_array(leaf) else leaf for leaf in leaves]
        self.args = jax.tree.map(_shape, args)
        self.kwargs = {k: v for k, v in kwargs.items() if k not in _OF_INIT}

    def streams(self) -> Iterable[str]:
        """The names of the streams that were given."""
        rngs = self.filled(list(self.arrays))[0]
        return rngs if isinstance(rngs, Mapping) else ("params",)

    def filled(self, arrays: list[Any]) -> Any:
        left = iter(arrays)
        leaves = [next(left) if leaf is _ARRAY else leaf for leaf in self.others]
        return jax.tree.unflatten(self.treedef, leaves)

    def abstract_init(self) -> Mapping[str, Any]:
        def init(arrays: list[Any]) -> Any:
            rngs, args, kwargs = self.filled(arrays)
            return self.module.init_with_output(rngs, *args, **kwargs)[1]

        return jax.eval_shape(init, self.arrays)

    def mutable(self, variables: Mapping[str, Any]) -> Any:
        """What a forward pass may write: all but the parameters, where nothing else was said."""
        states = [name for name in variables if name != "params"]
        return self.filled(list(self.arrays))[2].get("mutable", states or False)

    def forward(self, variables: Mapping[str, Any]) -> tuple[Callable[..., Any], Any, Any]:
        """The forward pass as a function of variables and arrays, and both as shapes."""
        mutable = self.mutable(variables)

        def apply(variables: Any, arrays: list[Any]) -> Any:
            rngs, args, kwargs = self.filled(arrays)
            kwargs = {**kwargs, "mutable": mutable}
            # `init` takes one key for all streams, `apply` wants to know them by name.
            streams = dict(rngs) if isinstance(rngs, Mapping) else {"params": rngs}
            return self.module.apply(variables, *args, rngs=streams, **kwargs)

        return apply, variables, self.arrays

    def flops(self, modules: Iterable[ModuleNode], lifts: Sequence[LiftNode]) -> dict[Path, float]:
        """The FLOPs of each module's calls by its path, as often as the lifts around it run."""
        rngs = self.filled(list(self.arrays))[0]
        # The lifts multiply: a summary counts what one iteration of a module does.
        rows = summary(self.module, rngs, show_repeated=True, compute_flops=True)
        times = {node.path: math.prod(lifts[i].size or 1 for i in node.lifts) for node in modules}
        found: dict[Path, float] = {}
        for row in rows(*self.args, **self.kwargs):
            # One that cannot be counted alone, in a vmap whose axis it names, is left out.
            if row.flops is not None and row.path in times:
                found[row.path] = found.get(row.path, 0) + times[row.path] * row.flops
        return found

    def text(self) -> str:
        """`f32[8,64], train=False`."""
        return _call_text(self.args, self.kwargs)


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

    module: Module
    lifts: tuple[int, ...]
    takes: str
    gives: str = ""
    uses: list[str] = field(default_factory=list)


@dataclass
class _Sighting:
    nest: tuple[int, ...]
    shapes: list[tuple[int, ...]]


class _Record:
    """The recorder: a tree of lifts, and where each variable was seen deepest."""

    def __init__(self) -> None:
        self.nodes: list[_Node] = []
        self.nest: tuple[int, ...] = ()
        self.known: dict[tuple[Any, ...], int] = {}
        self.seen: dict[tuple[str, Path], _Sighting] = {}
        self.layers: dict[Path, Any] = {}
        self.called: dict[Path, _Called] = {}
        self.calls: list[tuple[Path, str]] = []  # those under way: path and method
        self.asked: set[str] = set()
        self.staged: dict[Path, Staged | None] = {}  # of stacks, by their places
        self.described: dict[Path, tuple[Any, list[LiftEvent], bool]] = {}
        self.renaming: list[
            Any
        ] = []  # the layouts of stacks stored under other names than they run

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
        node.takes = _call_text(args, kwargs) if jax.tree.leaves((args, kwargs)) else ""

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

    def variable(self, collection: str, path: Path, value: Any) -> None:
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

    def see_layer(self, call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        """An interceptor of methods: notes which module stands at which path."""
        # A lifted class and the class that it lifts stand at one path: the inner one comes last.
        path = self.stored(context.module.path)
        self.layers[path] = context.module
        # By attribute: stacks import the layout's data, so the layout cannot import them.
        describe = getattr(context.module, "_stack_layout", None)
        if describe is not None and context.method_name == "__call__":
            around = [self.nodes[index].event for index in self.nest]
            around = [event for event in around if event.size is not None]
            told = describe(path), around, context.module._is_scanned()
            if path not in self.described:
                self.described[path] = told
                self.renaming += [told[0]] if told[0].order else []
            self.staged[path] = context.module._staged(*args[:1])
        method = context.method_name
        if method in ("setup", LIFTED) or (self.calls and self.calls[-1][0] == path):
            return call(*args, **kwargs)  # a module that calls itself is not used once more
        known = self.called.get(path)
        if known is None:
            takes = _call_text(args, kwargs)
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

    def lifts(self, variables: Mapping[str, Any]) -> tuple[LiftNode, ...]:
        # Only collections that have variables in a lift: a filter such as True names any number
        # more.
        used: dict[int, set[str]] = {}
        for (collection, _), sighting in self.seen.items():
            if collection in variables:
                for index in sighting.nest:
                    used.setdefault(index, set()).add(collection)
        order = {name: i for i, name in enumerate(variables)}
        made = []
        for index, node in enumerate(self.nodes):
            event = node.event
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
                    # The loop of a stack stands at the first position of its pattern.
                    staged=self.staged.get(self.stored(event.path)[:-1])
                    if event.kind == "stack"
                    else None,
                    order=self._order(event),
                )
            )
        return tuple(made)

    def _order(self, event: LiftEvent) -> tuple[int, ...]:
        found = self.described.get(self.stored(event.path)[:-1])
        return tuple(found[0].order or ()) if found and event.kind == "stack" else ()

    def stacks(self, variables: Mapping[str, Any]) -> tuple[StackNode, ...]:
        def roles(role_of: Callable[[str], Any]) -> dict[str, Any]:
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
                        # The loop of a stack stands at the first position of its pattern.
                        self.stored(event.path)[:-1] if event.kind == "stack" else None,
                    )
                    for event in around
                ),
                scanned,
                at.order and tuple(at.order),
            )
            for path, (at, around, scanned) in self.described.items()
        )

    def variables(self, variables: Mapping[str, Any]) -> tuple[VariableLayout, ...]:
        rows: list[VariableLayout] = []
        for collection, tree in variables.items():
            self._walk(collection, (), tree, rows)
        # JAX sorts the names in a dict; the order in which a model makes its variables says more.
        order = {key: i for i, key in enumerate(self.seen)}
        last = len(order)
        return tuple(sorted(rows, key=lambda v: order.get((v.collection, v.path), last)))

    def _walk(self, collection: str, path: Path, value: Any, rows: list[VariableLayout]) -> None:
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
        leaf: Any,
        nest: tuple[int, ...],
        inner: tuple[int, ...] | None,
        names: Any,
    ) -> VariableLayout:
        shape = tuple(leaf.shape)
        layer = self.layers.get(path[:-1])
        left = list(range(len(shape)))  # the axes not yet accounted for
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


_ARRAY = object()
"""Stands where an array was."""


def _is_box(value: Any) -> bool:
    return isinstance(value, AxisMetadata)


def _shape(leaf: Any) -> Any:
    return abstract(leaf) if is_array(leaf) else leaf


def _role(role: Any) -> Any:
    if isinstance(role, int):
        return "stacked"
    words = {"broadcast": "shared", "carry": "carried", "through": "through", None: "absent"}
    return words.get(role, str(role))


_CARRYING = ("scan", "stack", "pipeline")
"""The kinds of lifts whose body takes a carry first, and returns it with what else it returns."""


def _call_text(args: Sequence[object], kwargs: Mapping[str, object]) -> str:
    return ", ".join(
        [*map(described, args), *(f"{name}={described(value)}" for name, value in kwargs.items())]
    )
