"""Findings that follow from a finished layout: what may be meant, and may be a slip."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..errors import RULES
from .data import Finding, LayoutData, LiftNode, Loop, Residual, VariableLayout
from .grouped import grouped
from .kept import operations
from .wording import human_bytes, human_count


def findings_of(layout: LayoutData) -> tuple[Finding, ...]:
    """All findings of a layout: warnings first, then notes, each in order of the lifts."""
    inside: _Inside = {}
    for v in layout.variables:
        for along in v.along:
            inside.setdefault(along.lift, []).append((v, along.role))
    found = [
        finding
        for lift in layout.lifts
        if lift.size is not None
        for finding in (
            *_same_start(lift, inside),
            *_ensemble(layout, lift, inside),
            *_order(layout, lift, inside),
            *_same_numbers(lift),
            *_bubble(lift),
        )
        # Silenced where the lift was made: the place that knows what was meant.
        if finding.code not in lift.quiet
    ]
    found += _cheap(layout)
    return tuple(sorted(found, key=lambda f: (f.severity != "warning", f.code)))


_Inside = dict[int, list[tuple[VariableLayout, str]]]
"""Lift -> the variables in it, and the role that each has along it."""


def _same_start(lift: LiftNode, inside: _Inside) -> Iterator[Finding]:
    # By the variable and not the table alone: a stream that nothing is drawn from splits nothing.
    params = [v for v in _stacked_params(lift, inside) if _split(v, lift) is False]
    if params and lift.splits.get("params") is False and lift.size != 1:
        yield _finding(
            "LX202",
            f"{_place(lift)}: {_some(params)} stacked along {lift.kind}, but stream 'params' is "
            f"not split:\nall {lift.size} slices start out identical.\n"
            f"Pass split_rngs={{'params': True}} to {lift.kind}, or share one set.",
            lift,
            params,
        )


def _ensemble(layout: LayoutData, lift: LiftNode, inside: _Inside) -> Iterator[Finding]:
    if lift.kind != "vmap":
        return
    params = _stacked_params(lift, inside)
    if not params:
        return
    sizes = [layout.lifts[a.lift].size for a in params[0].along if a.role == "stacked"]
    copies = " × ".join(str(size) for size in sizes)
    elements = sum(v.elements for v in params)
    shared = elements // (lift.size or 1)
    said = (
        f"{_place(lift)}: {_some(params)} stacked along vmap:\n"
        f"{copies} independent layers, an ensemble of {human_count(elements)} parameters."
    )
    # Where no input is mapped, all members see the same: there is no batch to be mistaken for them.
    if lift.batch:
        said += (
            f"\nThe inputs are mapped too. Over a batch, set variable_axes={{'params': None}} in "
            f"vmap to\nshare one set of {human_count(shared)}; members with inputs of their own: "
            f"make it in `with nn.silenced('LX901'):`."
        )
    found = _finding("LX901", said, lift, params)
    yield replace(found, severity="warning") if lift.batch else found


def _order(layout: LayoutData, lift: LiftNode, every: _Inside) -> Iterator[Finding]:
    above = layout.around(lift)
    if lift.kind != "vmap" or not above or above[-1].kind != "scan":
        return
    outer = above[-1]
    inside = every.get(lift.index, [])
    params = [v for v, _ in inside if v.collection == "params"]
    # With an axis of its own for any variable the two nests store other things.
    if not params or any(role != "shared" for _, role in inside):
        return
    yield _finding(
        "LX902",
        f"{_place(lift)}: vmap stands inside scan and shares all its variables, so\n"
        f"scan inside vmap would make the same ones. What differs: here the carry of "
        f"{outer.target} holds\nthe whole mapped axis, and each iteration may mix it (a "
        f"collective, a batch statistic);\nthere each example runs through all "
        f"{outer.size} iterations by itself, and the body sees no batch.",
        lift,
        params,
    )


def _same_numbers(lift: LiftNode) -> Iterator[Finding]:
    for stream, split in lift.splits.items():
        if stream != "params" and not split and lift.size != 1:
            yield _finding(
                "LX903",
                f"{_place(lift)}: stream {stream!r} is drawn from inside {lift.kind} and not "
                f"split:\nall {lift.size} iterations draw the same numbers.\n"
                f"Pass split_rngs={{{stream!r}: True}} to {lift.kind} for numbers of their own.",
                lift,
            )


def _bubble(lift: LiftNode) -> Iterator[Finding]:
    """A pipeline whose stages have nothing to do in more than a quarter of its steps."""
    at = lift.staged
    if at is None or at.bubble <= 0.25:
        return
    # Three times as many steps with work as without: then a quarter of them is bubble.
    enough = 3 * (at.steps - at.repeats * at.microbatches) / at.repeats
    found = _finding(
        "LX910",
        f"{_place(lift)}: each of {at.stages} stages has nothing to do in {at.bubble:.0%} of "
        f"{at.steps} steps.\n"
        f"Cut the batch into {math.ceil(enough)} microbatches or more (now {at.microbatches}), or "
        f"give each stage\nseveral groups of layers, by repeats= (now {at.repeats}).",
        lift,
    )
    yield replace(found, severity="warning")


def _cheap(layout: LayoutData) -> Iterator[Finding]:
    """Loops that keep more than twice their products for a backward pass."""
    if layout.kept is None:
        return
    for index, rows in grouped(layout.kept.rows, lambda row: row.loop).items():
        if index is None:
            continue
        loop = layout.kept.loops[index]
        kept = sum(row.bytes for row in rows)
        lift = _lift_of(loop, rows, layout)
        # Less than that a checkpoint would hardly win.
        if kept <= 2 * loop.products or (lift is not None and "LX904" in lift.quiet):
            continue
        where = f"module /{loop.place}, a loop × {loop.length}" if lift is None else _place(lift)
        remat = "nn.remat(Body, policy=nn.Remat('products').as_policy(), prevent_cse=False)"
        if lift is not None and lift.kind == "stack":
            remat = "remat=nn.Remat('products')"
        yield _finding(
            "LX904",
            f"{where}: a backward pass keeps {human_bytes(kept)} of it,\n"
            f"each array written into one of all {loop.length} iterations and read out of it:\n"
            f"{operations(rows)}.\n"
            f"Of products, with what enters each iteration, it is at most "
            f"{human_bytes(loop.products)}. With\n{remat}\nthese are kept, and the rest is "
            f"computed again.",
            lift,
        )


def _lift_of(loop: Loop, rows: list[Residual], layout: LayoutData) -> LiftNode | None:
    """The lift that a loop of the program was made by."""
    found = None
    # A carry belongs to the loop; its path is not that of what computed it.
    modules = [tuple(row.module.split("/")) for row in rows if row.operation != "carry"]
    for lift in layout.lifts:
        # A lifted class stands in the module that calls it, and its layers below it; a stack at its
        # first layer, and its loop may go by groups.
        stack = lift.kind == "stack"
        here = "/".join(lift.path) == loop.place and not stack
        below = "/".join(lift.path[:-1]) == loop.place and len(lift.path) > 0
        around = stack or all(names[: len(lift.path)] == lift.path for names in modules)
        if (stack or (lift.kind == "scan" and lift.size == loop.length)) and around:
            if (here or below) and (found is None or len(lift.path) > len(found.path)):
                found = lift
    return found


def _stacked_params(lift: LiftNode, inside: _Inside) -> list[VariableLayout]:
    along = inside.get(lift.index, [])
    return [v for v, role in along if v.collection == "params" and role == "stacked"]


def _split(v: VariableLayout, lift: LiftNode) -> bool | None:
    return next((a.split for a in v.along if a.lift == lift.index), None)


def _place(lift: LiftNode) -> str:
    return f"module /{'/'.join(lift.path)}, {lift.title}"


def _some(variables: list[VariableLayout]) -> str:
    first = f"params/{variables[0].name}"
    more = len(variables) - 1
    if not more:
        return f"{first} is"
    return f"{first} and {more} other {'parameter' if more == 1 else 'parameters'} are"


def _finding(
    code: str, message: str, lift: LiftNode | None, variables: Sequence[VariableLayout] = ()
) -> Finding:
    rule = RULES[code]
    names = tuple(f"{v.collection}/{v.name}" for v in variables)
    lifts = () if lift is None else (lift.index,)
    return Finding(code, rule.severity, rule.title, message, lifts, names, rule.page)
