"""Findings that follow from a finished layout: what may be meant, and may be a slip."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import RULES
from .data import Finding, LayoutData, LiftNode, VariableLayout, human_count


def findings_of(layout: LayoutData) -> tuple[Finding, ...]:
    """All findings of a layout: warnings first, then notes, each in order of the lifts."""
    found = [
        finding
        for lift in layout.lifts
        if lift.size is not None
        for finding in (
            *_same_start(layout, lift),
            *_ensemble(layout, lift),
            *_order(layout, lift),
            *_same_numbers(layout, lift),
        )
    ]
    return tuple(sorted(found, key=lambda f: (f.severity != "warning", f.code)))


def _same_start(layout: LayoutData, lift: LiftNode) -> Iterator[Finding]:
    params = [v for v in _stacked_params(layout, lift) if _split(v, lift) is False]
    if params and lift.splits.get("params") is False and lift.size != 1:
        yield _finding(
            "LX202",
            f"{_place(lift)}: {_some(params)} stacked along {lift.kind}, but stream 'params' is "
            f"not split:\nall {lift.size} slices start out identical.\n"
            f"Pass split_rngs={{'params': True}} to {lift.kind}, or share one set.",
            lift,
            params,
        )


def _ensemble(layout: LayoutData, lift: LiftNode) -> Iterator[Finding]:
    if lift.kind != "vmap":
        return
    params = _stacked_params(layout, lift)
    if not params:
        return
    sizes = [layout.lifts[a.lift].size for a in params[0].along if a.role == "stacked"]
    copies = " × ".join(str(size) for size in sizes)
    elements = sum(v.elements for v in params)
    shared = elements // (lift.size or 1)
    yield _finding(
        "LX901",
        f"{_place(lift)}: {_some(params)} stacked along vmap:\n"
        f"{copies} independent layers, an ensemble of {human_count(elements)} parameters.\n"
        f"Set variable_axes={{'params': None}} in vmap to share one set of "
        f"{human_count(shared)} across the mapped axis.",
        lift,
        params,
    )


def _order(layout: LayoutData, lift: LiftNode) -> Iterator[Finding]:
    outer = _around(layout, lift)
    if lift.kind != "vmap" or outer is None or outer.kind != "scan":
        return
    inside = _along(layout, lift)
    params = [v for v, _ in inside if v.collection == "params"]
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


def _same_numbers(layout: LayoutData, lift: LiftNode) -> Iterator[Finding]:
    for stream, split in lift.splits.items():
        if stream != "params" and not split and lift.size != 1:
            yield _finding(
                "LX903",
                f"{_place(lift)}: stream {stream!r} is drawn from inside {lift.kind} and not "
                f"split:\nall {lift.size} iterations draw the same numbers.\n"
                f"Pass split_rngs={{{stream!r}: True}} to {lift.kind} for numbers of their own.",
                lift,
                (),
            )


def _along(layout: LayoutData, lift: LiftNode) -> list[tuple[VariableLayout, str]]:
    return [(v, a.role) for v in layout.variables for a in v.along if a.lift == lift.index]


def _stacked_params(layout: LayoutData, lift: LiftNode) -> list[VariableLayout]:
    along = _along(layout, lift)
    return [v for v, role in along if v.collection == "params" and role == "stacked"]


def _split(v: VariableLayout, lift: LiftNode) -> bool | None:
    return next((a.split for a in v.along if a.lift == lift.index), None)


def _around(layout: LayoutData, lift: LiftNode) -> LiftNode | None:
    """The next lift outside that has an axis."""
    while lift.parent is not None:
        lift = layout.lifts[lift.parent]
        if lift.size is not None:
            return lift
    return None


def _place(lift: LiftNode) -> str:
    return f"module /{'/'.join(lift.path)}, {lift.title}"


def _some(variables: list[VariableLayout]) -> str:
    first = f"params/{variables[0].name}"
    more = len(variables) - 1
    if not more:
        return f"{first} is"
    return f"{first} and {more} other {'parameter' if more == 1 else 'parameters'} are"


def _finding(
    code: str, message: str, lift: LiftNode, variables: list[VariableLayout] | tuple[()]
) -> Finding:
    rule = RULES[code]
    names = tuple(f"{v.collection}/{v.name}" for v in variables)
    return Finding(code, rule.severity, rule.title, message, (lift.index,), names, rule.page)
