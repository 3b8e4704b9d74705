"""A layout as text, in any width: with rich in colours, and the same lines without.

It says the nest of lifts as a tree, the modules, the variables with their axes by name, their
values where they were given, the totals by lift, the findings. What is alike shares a row (`fold`).
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from .columns import Column, Line, Segment, folded, table, text_of, wrapped
from .data import LayoutData, LiftNode, Residuals, Stats, VariableLayout
from .fold import AlikeLifts, Fold, alike_lifts, fold, fold_findings
from .kept import by_module
from .modules import Branch, module_tree
from .wording import human_bytes, human_count, short_file_line

_COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red")
_STYLES = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_NARROWEST = 40
_STAGES = 8  # of a pipeline, that are drawn


def as_text(layout: LayoutData, width: int | None = None) -> str:
    """The layout for a terminal ``width`` columns wide, without colours."""
    width = width or max(60, shutil.get_terminal_size((100, 24)).columns)
    return "\n".join(text_of(line).rstrip() for line in lines_of(layout, width))


class Rich:
    """The layout as something that a rich console prints, with a colour for each lift."""

    def __init__(self, layout: LayoutData):
        self.layout = layout

    def __rich_console__(self, console: object, options: Any) -> Iterator[object]:
        # Who prints with rich has it; nobody else needs it.
        from rich.text import Text

        for line in lines_of(self.layout, options.max_width):
            yield Text.assemble(*((s.text, _style(s)) for s in line))


def _style(segment: Segment) -> str:
    # In turn: a nest of more than six lifts is rare, and neighbours still differ.
    colour = "" if segment.lift is None else _COLOURS[segment.lift % len(_COLOURS)]
    return f"{_STYLES.get(segment.style, segment.style)} {colour}".strip()


def lines_of(layout: LayoutData, width: int) -> list[Line]:
    """All lines; none is wider than ``width``, from 40 on."""
    width = max(width, _NARROWEST)
    alike = alike_lifts(layout)
    parts = [_nest(layout, alike, width)]
    tree = module_tree(layout)
    # A tree of the root alone repeats the head line.
    if layout.modules and tree.below:
        parts.append(_modules(tree, width))
    if layout.variables:
        parts.append(_variables(layout, alike, width))
    if layout.kept is not None and layout.kept.rows:
        parts.append(_kept(layout.kept, width))
    if any(v.stats for v in layout.variables):
        parts.append(_values(layout, width))
    if layout.by_lift:
        parts.append(_by_lift(layout, alike, width))
    parts.append([part for line in _summary(layout) for part in wrapped([Segment(line)], width)])
    for finding, count in fold_findings(layout, alike):
        head = Segment(f"{finding.severity} {finding.code}", style=finding.severity)
        more = f" (and {count - 1:,} alike)" if count > 1 else ""
        said = [wrapped([head, Segment(f"  {finding.title}{more}")], width, "  ")]
        said += [wrapped([Segment(line)], width, "  ") for line in finding.message.splitlines()]
        parts.append([line for some in said for line in some])
    blank: list[Line] = [[]]
    return [line for i, part in enumerate(parts) for line in (blank if i else []) + part]


# --- the nest -----------------------------------------------------------------


def _nest(layout: LayoutData, alike: AlikeLifts, width: int) -> list[Line]:
    where = short_file_line(layout.file_line)
    call = f"{layout.module}({layout.arguments})" if layout.arguments else layout.module
    head = [Segment(call), *([Segment(f"  · {where}", style="dim")] if where else [])]
    return [*wrapped(head, width, "  "), *_lifts(layout, alike, None, "", width)]


def _lifts(
    layout: LayoutData, alike: AlikeLifts, parent: int | None, prefix: str, width: int
) -> Iterator[Line]:
    drawn = alike.drawn(layout, parent)
    for index in drawn:
        lift = layout.lifts[index]
        last = index == drawn[-1]
        below = prefix + ("    " if last else "│   ")
        title = Segment(lift_title(lift), index, "bold")
        many = len(alike.members.get(index, ()))
        times = f"  ×{many:,}: {alike.path(layout, index)}" if many else ""
        where = lift_where(lift)
        line: Line = [title, Segment(times), Segment(f"  · {where}" if where else "", style="dim")]
        # Deep nests leave no room: half of the narrowest width is kept for words, and may stick
        # out.
        first, *rest = wrapped(line, max(width - len(below), _NARROWEST // 2))
        yield [Segment(prefix + ("└── " if last else "├── ")), *first]
        for more in (*rest, *_extras(lift, width - len(below))):
            yield [Segment(below), *more]
        yield from _lifts(layout, alike, index, below, width)


def _extras(lift: LiftNode, width: int) -> Iterator[Line]:
    for text in (lift_shapes(lift), lift_extras(lift), *lift_stages(lift)):
        if text:
            yield from wrapped([Segment(text, style="dim")], max(width, _NARROWEST // 2))


def lift_title(lift: LiftNode) -> str:
    """`scan × 12 'layers' over Block`."""
    name = f" {lift.axis_name!r}" if lift.axis_name else ""
    size = "" if lift.size is None else f" × {lift.size}"
    return f"{lift.kind}{size}{name} over {lift.target}"


def lift_where(lift: LiftNode) -> str:
    """The line of the lift and that of its body; may be empty."""
    if not lift.lifted_at or lift.lifted_at == lift.where:
        return lift.where
    return f"{lift.lifted_at}" + (f", body {lift.where}" if lift.where else "")


def lift_shapes(lift: LiftNode) -> str:
    """`carry f32[64] · takes f32[8] · gives f32[8]`, of one iteration; may be empty."""
    named = (("carry", lift.carries), ("takes", lift.takes), ("gives", lift.gives))
    return " · ".join(f"{name} {text}" for name, text in named if text)


def lift_stages(lift: LiftNode) -> tuple[str, ...]:
    """What is said of a pipeline: which layers each stage runs, and what it costs."""
    at = lift.staged
    if at is None:
        return ()
    stages = " → ".join(f"[{at.numbers(stage)}]" for stage in range(min(at.stages, _STAGES)))
    more = f" → ... [{at.numbers(at.stages - 1)}]" if at.stages > _STAGES else ""
    around = f" × {at.repeats}" if at.repeats > 1 else ""
    return (
        f"⇉ {at.stages} stages{around} along {at.axis!r}: {stages}{more}",
        f"{at.microbatches} microbatches in {at.steps} steps, bubble {at.bubble:.0%}, each stage "
        f"sends {human_bytes(at.crossing)} a step",
    )


def lift_extras(lift: LiftNode) -> str:
    """What is said of a lift besides: carry, roles, keys; may be empty."""
    extras = ["↻ carry"] if lift.carry else []
    # What passes unchanged is what one expects of it.
    shown = {c: r for c, r in lift.roles.items() if r != "through"}
    extras += [f"{collection} {role}" for collection, role in shown.items()]
    for word, split in (("keys split", True), ("not split", False)):
        streams = [stream for stream, is_split in lift.splits.items() if is_split is split]
        streams = [] if lift.size is None else streams  # there is nothing to split them along
        extras += [f"{word}: {', '.join(streams)}"] if streams else []
    return " · ".join(extras)


# --- the tables ---------------------------------------------------------------


def _modules(tree: Branch, width: int) -> list[Line]:
    columns = (
        Column("module", path=True),
        Column("layer", path=True),
        Column("parameters", right=True),
        Column("bytes", right=True),
        Column("FLOPs", right=True),
        Column("takes → gives", below=True),
    )
    rows = []
    for depth, branch in tree.downward():
        node = branch.node
        times = f"  ×{branch.times:,}" if branch.times > 1 else ""
        said = f"{node.takes or '()'} → {node.gives}" if node is not None else ""
        if branch.uses > 1:
            said = f"⇄ shared by {branch.uses} calls · {said}"
        cells = (
            "  " * depth + branch.name + times,
            node.layer if node is not None and depth else "",
            f"{branch.parameters:,}",
            human_bytes(branch.bytes),
            "" if branch.flops is None else human_count(branch.flops),
        )
        rows.append([*([Segment(cell)] for cell in cells), [Segment(said, style="dim")]])
    return table(columns, rows, width)


def _variables(layout: LayoutData, alike: AlikeLifts, width: int) -> list[Line]:
    columns = (
        Column("variable", path=True),
        Column("axes", below=True),
        Column("dtype"),
        Column("bytes", right=True),
        Column("along", below=True),
    )
    rows: list[list[Line]] = []
    for total in layout.collections:
        head = Segment(total.collection, style="bold")
        rows.append([[head], [], [], [Segment(human_bytes(total.bytes))], []])
        for row in fold(layout.by_collection[total.collection], same=alike.same):
            rows.append(
                [
                    [Segment("  " + row_name(row))],
                    axes_segments(row.first),
                    [Segment(row.first.dtype)],
                    [Segment(f"{row.bytes:,}")],
                    [Segment(_along_text(layout, row.first))],
                ]
            )
    return table(columns, rows, width)


def axes_segments(variable: VariableLayout) -> Line:
    """`(layers 12, in 64, out 64)` in pieces."""
    segments = [Segment("(")]
    for i, axis in enumerate(variable.axes):
        if i:
            segments.append(Segment(", "))
        name = f"{axis.label} " if axis.label else ""
        segments.append(Segment(f"{name}{axis.size}", axis.lift))
    return [*segments, Segment(")")]


def row_name(row: Fold) -> str:
    """The name of a row, with how many it stands for."""
    return row.name if len(row) == 1 else f"{row.name}  ×{len(row)}"


def _along_text(layout: LayoutData, variable: VariableLayout) -> str:
    # Stacked ones show it by their axis.
    shown = [along for along in variable.along if along.role in ("shared", "carried")]
    return ", ".join(f"{along.role} along {layout.lifts[along.lift].label}" for along in shown)


STATS = ("mean", "spread", "smallest", "largest", "zeros", "nonfinite")


def stats_texts(stats: Stats) -> list[str]:
    """The numbers of `Stats` in short; empty where there is nothing to say."""
    numbers = (stats.mean, stats.spread, stats.smallest, stats.largest)
    # Nothing where there is none: an array of ordinary numbers should look empty here.
    shares = (stats.zeros, stats.nonfinite)
    texts = ["" if n is None else f"{n:.3g}" for n in numbers]
    return texts + [f"{100 * share:.3g} %" if share else "" for share in shares]


def _values(layout: LayoutData, width: int) -> list[Line]:
    columns = (Column("values", path=True), *(Column(name, right=True) for name in STATS))
    rows: list[list[Line]] = []
    for collection, group in layout.by_collection.items():
        rows.append([[Segment(collection, style="bold")], *([] for _ in STATS)])
        for v in group:
            if v.stats is None:
                continue
            named = [(f"  {v.name}", v.stats)]
            named += [(f"    {v.slice_label} {i}", stats) for i, stats in enumerate(v.per_layer)]
            for name, stats in named:
                rows.append([[Segment(name)], *([Segment(text)] for text in stats_texts(stats))])
    return _numbers(columns, rows, width)


def _kept(kept: Residuals, width: int) -> list[Line]:
    columns = (
        Column("kept for the backward pass", path=True),
        Column("bytes", right=True),
        Column("of it cheap", right=True),
        Column("made by", below=True),
    )
    rows = []
    for one in by_module(kept):
        times = f"  ×{one.times:,}" if one.times > 1 else ""
        cheap = human_bytes(one.cheap) if one.cheap else ""
        cells = ((one.name or "the model itself") + times, human_bytes(one.bytes), cheap)
        rows.append([*([Segment(cell)] for cell in cells), [Segment(one.made_by, style="dim")]])
    return table(columns, rows, width)


def _by_lift(layout: LayoutData, alike: AlikeLifts, width: int) -> list[Line]:
    titles = ("parameters by lift", "in all", "one iteration", "shared", "if axis shared")
    columns = [Column(title, right=i > 0, path=i == 0) for i, title in enumerate(titles)]
    rows = []
    for total in layout.by_lift:
        # One of several alike stands for them here as in the nest.
        if alike.same[total.lift] != total.lift:
            continue
        lift = layout.lifts[total.lift]
        many = len(alike.members.get(total.lift, ()))
        name = lift_title(lift) + (f"  ×{many:,}, each" if many else "")
        numbers = (total.parameters, total.per_iteration, total.shared, total.if_shared)
        rows.append([[Segment(name, total.lift)], *([Segment(f"{n:,}")] for n in numbers)])
    return _numbers(columns, rows, width)


def _numbers(columns: Sequence[Column], rows: Sequence[Sequence[Line]], width: int) -> list[Line]:
    """A table of numbers: where it is too narrow for them, each has a line with its title."""
    least = 12 + sum(
        2 + max(len(c.title), *(len(text_of(row[i])) for row in rows))
        for i, c in enumerate(columns[1:], 1)
        if any(text_of(row[i]) for row in rows)
    )
    if least <= width:
        return table(columns, rows, width)
    lines: list[Line] = [[Segment(columns[0].title, style="bold")]]
    for row in rows:
        text = text_of(row[0])
        lines.append([Segment(folded(text, width), row[0][0].lift)])
        indent = " " * (len(text) - len(text.lstrip(" ")) + 2)
        said = " · ".join(
            f"{c.title} {text_of(cell)}" for c, cell in zip(columns[1:], row[1:], strict=True)
            if text_of(cell)
        )  # fmt: skip
        lines += wrapped([Segment(indent), Segment(said, style="dim")], width, indent)
    return lines


def _summary(layout: LayoutData) -> Iterable[str]:
    yield (
        f"{layout.parameters:,} parameters; {len(layout.variables):,} variables, "
        f"{human_bytes(layout.bytes)} in all"
    )
    if layout.absent:
        plural = len(layout.absent) > 1
        yield (
            f"stream{'s' * plural} not given, so 'params' stood in: {', '.join(layout.absent)}; "
            f"whether {'they are' if plural else 'it is'} split is not known"
        )
    if layout.brought_together:
        yield layout.brought_together
    if layout.kept is not None:
        yield f"a gradient: {layout.kept.total}"
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
        yield f"one forward pass ({cost.backend}): {said}"
