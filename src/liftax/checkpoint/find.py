"""Where stackings come from: stacks, traced models, and lists of either."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..core.boxes import PARTITION_NAME
from ..core.types import Path
from ..errors import StackingError
from ..layout.build import layout
from ..layout.data import LiftNode, VariableLayout
from ..layout.shown import Layout
from ..module.attach import is_module
from ..stack.declaration import Declaration
from ..stack.stacking import Around, Stacking, Stackings, insert, name_of
from ..stack.storage import StackLayout


def as_stackings(layout: Any) -> Stackings:
    """Reads every way to describe a layout.

    Args:
      layout: a `Stacking`, the layout of a `Stack` (or an unbound `Stack`, as the root of the
        model), a `Layout` of `nn.layout`, or a sequence of these.

    Raises:
      StackingError: ``layout`` is nothing of that kind, or two descriptions contradict each other.
    """
    found = _nested(_parts(layout))
    if not found:
        raise StackingError(
            "the layout has no stacked layers: no Stack, and no scan whose variables have an axis "
            "of their own; there is nothing to convert"
        )
    return found


def _nested(parts: Iterable[Stacking], same: bool = False) -> Stackings:
    """Each stacking inside of the one around it; that one must come first."""
    found: Stackings = ()
    for part in parts:
        found = insert(found, part, same)
    return found


def _parts(layout: Any) -> Iterator[Stacking]:
    """The stackings that something describes, those around others first."""
    if isinstance(layout, Stacking):
        yield layout
    elif isinstance(layout, Layout):
        yield from from_layout(layout)
    elif isinstance(layout, StackLayout):
        yield from layout.stackings()
    elif isinstance(layout, Declaration):
        yield from layout.layout().stackings()
    elif isinstance(layout, Iterable) and not isinstance(layout, (str, bytes, Mapping)):
        # A stack around another one comes first, whatever the order they are given in.
        for part in sorted(layout, key=lambda part: len(getattr(part, "path", ()))):
            yield from _parts(part)
    else:
        hint = "; of a model, nn.stackings_of(model, rngs, *args)" if is_module(layout) else ""
        raise StackingError(
            f"a layout is a Stacking, the layout of a Stack, the result of nn.layout(), or a list "
            f"of these; found {type(layout).__name__}{hint}"
        )


def from_layout(layout: Layout) -> Stackings:
    """The stackings of a model's Stacks and scans, as `nn.layout` saw them.

    Every scan with an axis in some variables gives a stacking; axes of other lifts (`vmap`) stay
    in the arrays, where they would be if the layers were written out. The layers of a scan at
    `path` go to `path/layers_{i}`. Scans in the layers of a Stack that stores them one by one are
    left as they are.

    Args:
      layout: what `nn.layout(module, ...)` returned.

    Raises:
      StackingError: a variable of the model is already called as a layer would be.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...   @nn.compact
      ...   def __call__(self, x, _):
      ...     return nn.Dense(4)(x), None
      >>> model = nn.scan(Block, variable_axes={'params': 1}, split_rngs={'params': True}, length=3)
      >>> x = jax.ShapeDtypeStruct((2, 4), 'float32')
      >>> (found,) = from_layout(nn.layout(model(), jax.random.key(0), x, None))
      >>> found.axes, found.layers[0]
      ({'params': 1}, ('layers_0',))
    """
    stacks = [part for node in layout.stacks for part in StackLayout.of_node(node).stackings()]
    # What a Stack stores one by one has no axis in the model: a scan in it is no stack of layers.
    by_layers = [node.path for node in layout.stacks if node.store == "layers"]
    scans = [
        scan
        for scan in _scans(layout)
        if not any(scan.path[: len(stack)] == stack for stack in by_layers)
    ]
    # Of two at one path, as a scan of a scan, that with fewer lifts around it is the outer one.
    parts = sorted([*stacks, *scans], key=lambda s: (len(s.path), s.level))
    return tuple(
        dataclasses.replace(part, shapes=_shapes(part, layout))
        for part in _nested(parts, same=True)
    )


def _shapes(part: Stacking, layout: Layout) -> dict[Path, tuple[tuple[int, ...], str]]:
    """The parameters in a stack, in the form that the model has them."""
    found = {}
    for v in layout.variables:
        if v.collection == "params":
            path = v.path + tuple(re.findall(r"[^\[\]'\".]+", v.leaf))
            if any(path[: len(at)] == at for at in (part.path, *part.layers)):
                found[path] = v.shape, v.dtype
    return found


def _scans(layout: Layout) -> Iterator[Stacking]:
    """The scans one by one, those around others first."""
    for node in layout.lifts:
        if node.kind != "scan":
            continue
        # The lifts around have put their axes into the same arrays. Where those of this one lie is
        # said without them, as the scan itself sees its variables.
        above = layout.around(node)
        outer = [other.index for other in above]
        own = [v for v in layout.variables if _stacked_by(v, node.index)]
        # Beside stacked variables there may be others, of layers outside the scan or shared by it:
        # then each subtree that is stacked as a whole is a stacking of its own.
        for prefix in _cover(node.path, own, layout.variables):
            held = [v for v in own if v.path[: len(prefix)] == prefix]
            keys = frozenset(v.path[len(prefix)] for v in held if len(v.path) > len(prefix))
            axes = {**_unstacked(node), **_axes(held, node.index, outer)}
            around = tuple(
                Around({**_unstacked(other), **_axes(held, other.index, outer[:level])})
                for level, other in reversed(list(enumerate(above)))
            )
            new = dataclasses.replace(
                Stacking.of(
                    prefix,
                    node.size or 0,
                    axis=axes,
                    metadata_params={PARTITION_NAME: node.axis_name},
                    keys=keys,
                ),
                around=around,
                mark=(*prefix, f"lift {len(above)}"),
                level=len(above),
            )
            clash = {layer[len(prefix)] for layer in new.layers if len(layer) > len(prefix)} & keys
            if clash:
                raise StackingError(
                    f"the scan at {name_of(prefix)} has variables called {min(clash)!r}, as its "
                    f"layers would be: give the layers other names with "
                    f"Stacking.of(path, depth, names='iteration_{{}}')"
                )
            yield new


def _unstacked(node: LiftNode) -> dict[Any, int | None]:
    """The collections to which a lift gives no axis."""
    return {c: None for c, role in node.roles.items() if role in ("shared", "carried")}


def _stacked_by(v: VariableLayout, lift: int) -> bool:
    return any(a.lift == lift and a.role == "stacked" and a.axis is not None for a in v.along)


def _cover(
    path: Path, own: list[VariableLayout], every: Iterable[VariableLayout]
) -> Iterator[Path]:
    """The shortest paths, from ``path`` down, under which there are stacked variables only.

    Variables of a collection that the lift shares or carries do not count: the collection as a
    whole has no axis.
    """
    mine = [v for v in own if v.path[: len(path)] == path]
    if not mine:
        return
    collections = {v.collection for v in mine}
    names = {(v.collection, v.path, v.leaf) for v in mine}
    under = [v for v in every if v.collection in collections and v.path[: len(path)] == path]
    if all((v.collection, v.path, v.leaf) in names for v in under):
        yield path
        return
    for child in dict.fromkeys(v.path[len(path)] for v in mine):
        yield from _cover((*path, child), mine, under)


def _axes(held: list[VariableLayout], lift: int, outer: list[int]) -> dict[Any, int | None]:
    """By collection, the axis of a lift in the arrays that it makes: without those around it."""
    found: dict[Any, int | None] = {}
    for collection in dict.fromkeys(v.collection for v in held):
        seen = []
        for v in held:
            places = {a.lift: a.axis for a in v.along if a.role == "stacked" and a.axis is not None}
            if v.collection == collection and lift in places:
                gone = [places[o] for o in outer if o in places]
                axis = places[lift]
                seen.append((axis - sum(g < axis for g in gone), len(v.shape) - len(gone)))
        found[collection] = _one_axis(seen, held[0].path) if seen else None
    return found


def _one_axis(found: list[tuple[int, int]], path: Path) -> int:
    # Variables differ in rank, so the same axis may be the same number from the front or from the
    # end alone.
    for candidates in ({axis for axis, _ in found}, {axis - ndim for axis, ndim in found}):
        if len(candidates) == 1:
            return candidates.pop()
    raise StackingError(
        f"the variables beside {name_of(path)} are not stacked along one axis; describe each with "
        f"Stacking.of(path, depth, axis=...)"
    )


def stackings_of(model: Any, rngs: Any, *args: Any, **kwargs: Any) -> Stackings:
    """The stackings of a model: of its Stacks and of its scans.

    The model is traced abstractly; nothing is computed.

    Args:
      model: an unbound module.
      rngs: as for `model.init`, shapes will do.
      *args: the arguments of the model, arrays or `jax.ShapeDtypeStruct`.
      **kwargs: further arguments, as for `model.init`.

    Returns:
      What `to_layers` and `to_stacked` take as the layout; empty for a model without any.

    Example:
      >>> import jax, liftax as nn
      >>> model = nn.Stack(nn.Dense(4), depth=3)
      >>> x = jax.ShapeDtypeStruct((2, 4), 'float32')
      >>> (found,) = nn.stackings_of(model, jax.random.key(0), x)
      >>> found.path, found.layers
      (('block_0',), (('layers_0',), ('layers_1',), ('layers_2',)))
    """
    return from_layout(layout(model, rngs, *args, **kwargs))
