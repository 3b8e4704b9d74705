"""What a stack says of variables that are another stack's, or in the other storage.

A stack's variables have names of its own making, so whatever is wrong with them is told in the
stack's arguments, and not as what a scan misses inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import jax

from ..core import boxes
from ..errors import StackError
from ..module.bound import whose
from ..words import describe, names_on
from .declaration import Declaration
from .storage import StackLayout

_PLACE = re.compile(r"(layers|before|block|after|circular_\d+x\d+)_(\d+)\Z")


def check_names(stack: Declaration, at: StackLayout) -> None:
    """Raises StackError where a layer is stored that is none of this stack's."""
    for col, node in _stored(stack):
        # What all repeats share has no axis to be stored along, and no repeats have no layers: such
        # variables keep their names.
        kept = at.axis_of(col) is None or not at.repeats
        names = {*at.names, *[f"block_{i}" for i in range(at.positions) if kept]}
        others = [name for name in node if name not in names and _PLACE.match(str(name))]
        if others:
            raise _not_its_own(stack, at, col, node, others)


def told_by(stack: Declaration, at: StackLayout) -> StackError | None:
    """Finds what is wrong with the variables of a stack that has failed, if anything is."""
    for col, node in _stored(stack):
        here = [name for name in node if name in at.names]
        if not here and col == "params":
            return StackError(
                f"{whose(stack)}: the variables are not those of a stack.\n"
                f"found: {', '.join(f'{col}/{name}' for name in list(node)[:4])}\n"
                f"expected: {col}/{at.first_name}, as init of the Stack makes it; for the "
                f"variables of single layers see nn.to_stacked"
            )
        if at.store == "layers":
            missing = {at.layer_name(i) for i in range(len(at))} - set(here)
            last = max((int(name.rpartition("_")[2]) for name in here), default=-1)
            if here and missing == {at.layer_name(i) for i in range(last + 1, len(at))} != set():
                return _depth(stack, at, f"{col}/layers_{last}, the last of {last + 1} layers")
        else:
            wrong = _other_size(at, col, node)
            if wrong is not None:
                return _depth(stack, at, wrong)
    return None


def _stored(stack: Declaration) -> Iterator[tuple[str, Mapping[str, object]]]:
    """Yields what the stack finds of each collection."""
    assert stack.scope is not None
    for col in stack.scope.collections():
        node = stack.scope.node(col)
        if node and isinstance(node, Mapping):
            yield col, node


def _not_its_own(
    stack: Declaration,
    at: StackLayout,
    col: str,
    node: Mapping[str, object],
    others: list[str],
) -> StackError:
    kind = others[0].partition("_")[0]
    form = kind if kind in ("layers", "circular") else "stacked"
    if form == at.store == "circular" and others[0].rpartition("_")[0] != at.order_name:
        return StackError(
            f"{whose(stack)}: the variables are stored in the order of other stages.\n"
            f"found: {col}/{others[0]}\n"
            f"expected: {col}/{at.first_name}; nn.to_layers with the layout of the stack that they "
            f"are of, then nn.to_stacked with the layout of this one"
        )
    if form == at.store:
        if form == "layers":
            count = sum(name.startswith("layers_") for name in node)
            return _depth(stack, at, f"{col}/{others[-1]}, one of {count} layers")
        return _depth(stack, at, f"{col}/{others[0]}")
    text = {"stacked": "stacked", "layers": "by layers", "circular": "by the stages of a pipeline"}
    # Two stacked forms are each of a layout of their own; the layers one by one lie between them.
    if "circular" not in (form, at.store):
        way = f"nn.to_{at.store}(variables, nn.layout(model, key, x))"
    elif form == "layers":
        way = "nn.to_stacked(variables, nn.layout(model, key, x))"
    else:
        way = "nn.to_layers(variables, stack) with a stack of that store="
        way += ", then nn.to_stacked with this one" if at.store != "layers" else ""
    return StackError(
        f"{whose(stack)}: the variables are stored {text[form]}, and the stack has "
        f"store={at.store!r}.\n"
        f"found: {col}/{others[0]}\n"
        f"expected: {way}; or store={form!r} in the Stack"
    )


def _depth(stack: Declaration, at: StackLayout, found: str) -> StackError:
    """Variables of another number of layers."""
    said = f"depth={stack.depth}" if stack.depth is not None else f"repeats={stack.repeats}"
    more = [f"{name}= of {n}" for name in ("before", "after") if (n := len(getattr(stack, name)))]
    if at.positions > 1:
        more.insert(0, f"a pattern of {at.positions}")
    return StackError(
        f"{whose(stack)}: the variables are those of a stack with another number of layers.\n"
        f"found: {found}\n"
        f"expected: {len(at)} layers, by {', '.join([said, *more])}; change that, or hand in the "
        f"variables of such a stack"
    )


def _other_size(at: StackLayout, col: str, node: Mapping[str, object]) -> str | None:
    axis = at.axis_of(col)
    if axis is None:
        return None
    for position in range(at.positions):
        name = at.block_name(position)
        for path, leaf in jax.tree_util.tree_leaves_with_path(boxes.unbox(node.get(name))):
            shape = getattr(leaf, "shape", ())
            if -len(shape) <= axis < len(shape) and shape[axis] != at.repeats:
                place = "/".join((col, name, *names_on(path)))
                return f"{place} ({describe(leaf)}), {shape[axis]} along axis {axis}"
    return None
