"""A layout as text: with rich's tables where rich is installed, in plain columns otherwise.

Both say the same: the nest of lifts as a tree, the variables with their axes by name, the totals
by lift, the findings. Alike variables share a row (see `fold`).
"""

from __future__ import annotations

import importlib.util
import io
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .data import LayoutData, LiftNode, VariableLayout, human_bytes, human_count, short_file_line
from .fold import Fold, fold

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_SEVERITY = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}


@dataclass(frozen=True)
class Segment:
    """A piece of text that belongs to a lift, or to none."""

    text: str
    lift: int | None = None


def as_text(layout: LayoutData, width: int | None = None, *, rich: bool | None = None) -> str:
    """The layout for a terminal `width` columns wide, without colours.

    `rich=False` keeps to plain columns even where rich is installed.
    """
    width = width or max(60, shutil.get_terminal_size((100, 24)).columns)
    if rich is None:
        rich = importlib.util.find_spec("rich") is not None
    if not rich:
        return _plain_text(layout, width)
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(as_rich(layout))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    kept = (line for line, after in zip(lines, [*lines[1:], "end"], strict=True) if line or after)
    return "\n".join(kept)


def as_rich(layout: LayoutData) -> Any:
    """The layout as something that a rich console prints, with a colour for each lift."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text
    from rich.tree import Tree

    def coloured(segments: list[Segment]) -> Text:
        return Text.assemble(
            *((s.text, "" if s.lift is None else _colour(s.lift)) for s in segments)
        )

    tree = Tree(coloured(_module_line(layout)), guide_style="dim")
    branches: dict[int | None, Tree] = {None: tree}
    for parent, index in _downward(layout):
        lift = layout.lifts[index]
        where = f"  · {lift.where}" if lift.where else ""
        extras = f"\n{lift_extras(lift)}" if lift_extras(lift) else ""
        text = Text.assemble(
            (lift_title(lift), f"bold {_colour(index)}"), (where, "dim"), (extras, "dim")
        )
        branches[index] = branches[parent].add(text)

    table = Table(box=_box(), pad_edge=False, header_style="bold", expand=False)
    longest = max((len(f.name) for f in fold(layout.variables)), default=0)
    table.add_column("variable", overflow="fold", no_wrap=longest <= 48)
    table.add_column("axes", overflow="fold")
    table.add_column("dtype", no_wrap=True)
    table.add_column("bytes", justify="right", no_wrap=True)
    notes = any(_along_text(layout, v) for v in layout.variables)
    if notes:
        table.add_column("along", overflow="fold")
    for total in layout.collections:
        head = Text(total.collection, style="bold")
        table.add_row(head, "", "", human_bytes(total.bytes), *([""] if notes else []))
        for row in _rows(layout, total.collection):
            cells: list[Any] = [
                Text("  " + row_name(row)),
                coloured(axes_segments(row.first)),
                row.first.dtype,
                f"{row.bytes:,}",
            ]
            table.add_row(*cells, *([_along_text(layout, row.first)] if notes else []))
        table.add_section()
    parts: list[Any] = [tree]
    if layout.variables:
        parts += ["", table]
    if layout.by_lift:
        sums = Table(box=_box(), pad_edge=False, header_style="bold")
        for i, title in enumerate(_LIFT_HEADERS):
            sums.add_column(title, justify="left" if i == 0 else "right")
        for numbers, index in _lift_rows(layout):
            sums.add_row(Text(numbers[0], style=_colour(index)), *numbers[1:])
        parts += ["", sums]
    parts += ["", *(Text(line) for line in _summary(layout))]
    for finding in layout.findings:
        head = Text(f"{finding.severity} {finding.code}", style=_SEVERITY[finding.severity])
        parts += ["", Text.assemble(head, f"  {finding.title}"), Text(finding.message)]
    return Group(*parts)


# --- the words, shared by both ------------------------------------------------


def axes_segments(variable: VariableLayout) -> list[Segment]:
    """`(layers 12, in 64, out 64)` in pieces."""
    segments = [Segment("(")]
    for i, axis in enumerate(variable.axes):
        if i:
            segments.append(Segment(", "))
        name = f"{axis.label} " if axis.label else ""
        segments.append(Segment(f"{name}{axis.size}", axis.lift))
    return [*segments, Segment(")")]


def lift_title(lift: LiftNode) -> str:
    """`scan × 12 'layers' over Block`."""
    name = f" {lift.axis_name!r}" if lift.axis_name else ""
    size = "" if lift.size is None else f" × {lift.size}"
    return f"{lift.kind}{size}{name} over {lift.target}"


def lift_extras(lift: LiftNode) -> str:
    """What the second line of a lift says: carry, roles, keys; may be empty."""
    extras = []
    if lift.carry:
        extras.append("↻ carry")
    shown = {c: r for c, r in lift.roles.items() if r != "through"}
    extras += [f"{collection} {role}" for collection, role in shown.items()]
    split = [stream for stream, is_split in lift.splits.items() if is_split]
    if split:
        extras.append(f"keys split: {', '.join(split)}")
    return " · ".join(extras)


def row_name(row: Fold) -> str:
    """The name of a row, with how many it stands for."""
    return row.name if len(row) == 1 else f"{row.name}  ×{len(row)}"


def _module_line(layout: LayoutData) -> list[Segment]:
    where = short_file_line(layout.file_line)
    call = f"{layout.module}({layout.arguments})" if layout.arguments else layout.module
    return [Segment(call), Segment(f"  · {where}" if where else "")]


def _along_text(layout: LayoutData, variable: VariableLayout) -> str:
    parts = []
    for along in variable.along:
        lift = layout.lifts[along.lift]
        if along.role in ("shared", "carried"):
            parts.append(f"{along.role} along {lift.label}")
    return ", ".join(parts)


def _rows(layout: LayoutData, collection: str) -> list[Fold]:
    return fold([v for v in layout.variables if v.collection == collection])


_LIFT_HEADERS = ("parameters by lift", "in all", "one iteration", "shared", "if axis shared")


def _lift_rows(layout: LayoutData) -> Iterator[tuple[list[str], int]]:
    for total in layout.by_lift:
        numbers = (total.parameters, total.per_iteration, total.shared, total.if_shared)
        title = lift_title(layout.lifts[total.lift])
        yield [title, *(f"{n:,}" for n in numbers)], total.lift


def _summary(layout: LayoutData) -> list[str]:
    lines = [
        f"{layout.parameters:,} parameters; {len(layout.variables):,} variables, "
        f"{human_bytes(layout.bytes)} in all"
    ]
    cost = layout.cost
    if cost is not None:
        parts = []
        if cost.flops is not None:
            parts.append(f"{human_count(cost.flops)} FLOPs")
        if cost.bytes_accessed is not None:
            parts.append(f"{human_bytes(cost.bytes_accessed)} read and written")
        if cost.peak_temporary_bytes is not None:
            parts.append(f"{human_bytes(cost.peak_temporary_bytes)} of temporary memory")
        said = ", ".join(parts) or "the compiler says nothing"
        lines.append(f"one forward pass ({cost.backend}): {said}")
    return lines


def _colour(lift: int) -> str:
    return _COLOURS[lift % len(_COLOURS)]


def _downward(layout: LayoutData, parent: int | None = None) -> Iterator[tuple[int | None, int]]:
    """Yields each lift after the one around it, with that."""
    for index in layout.children.get(parent, ()):
        yield parent, index
        yield from _downward(layout, index)


def _box() -> Any:
    from rich import box

    return box.SIMPLE_HEAD


# --- without rich -------------------------------------------------------------


def _plain_text(layout: LayoutData, width: int) -> str:
    lines = ["".join(s.text for s in _module_line(layout))]
    prefixes: dict[int | None, str] = {None: ""}
    for parent, index in _downward(layout):
        last = index == layout.children[parent][-1]
        lift, prefix = layout.lifts[index], prefixes[parent]
        where = f"  · {lift.where}" if lift.where else ""
        lines.append(f"{prefix}{'└── ' if last else '├── '}{lift_title(lift)}{where}")
        prefixes[index] = prefix + ("    " if last else "│   ")
        if lift_extras(lift):
            lines.append(prefixes[index] + lift_extras(lift))
    if layout.variables:
        rows = [["variable", "axes", "dtype", "bytes", "along"]]
        for total in layout.collections:
            rows.append([total.collection, "", "", human_bytes(total.bytes), ""])
            for row in _rows(layout, total.collection):
                axes = "".join(s.text for s in axes_segments(row.first))
                along = _along_text(layout, row.first)
                name = "  " + row_name(row)
                rows.append([name, axes, row.first.dtype, f"{row.bytes:,}", along])
        lines += ["", *_columns(rows, right={3})]
    if layout.by_lift:
        sums = [list(_LIFT_HEADERS), *(cells for cells, _ in _lift_rows(layout))]
        lines += ["", *_columns(sums, right={1, 2, 3, 4})]
    lines += ["", *_summary(layout)]
    for finding in layout.findings:
        lines += ["", f"{finding.severity} {finding.code}  {finding.title}"]
        for line in finding.message.splitlines():
            lines += textwrap.wrap(line, width, subsequent_indent="  ") or [""]
    return "\n".join(lines)


def _columns(rows: list[list[str]], right: set[int]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    rule = "  ".join("─" * w for w in widths if w)
    lines = []
    for row in rows:
        cells = (
            cell.rjust(w) if i in right else cell.ljust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            if w
        )
        lines.append("  ".join(cells).rstrip())
    return [lines[0], rule, *lines[1:]]
