"""A layout as a single self-contained page: the nest as boxes, each array as its axes.

The markup is written here, whole, so that the page reads without its script; `page.js` adds the
details on hover and focus, the filter and the arrow keys. Nothing is fetched from anywhere. Each
lift with an axis owns a hue; whatever came from that lift wears it, and says so in words too.
"""

from __future__ import annotations

import math
from functools import cache
from html import escape
from importlib.resources import files

from ..errors import RULES
from .data import (
    ROLE_WORDS,
    LayoutData,
    LiftNode,
    VariableLayout,
    human_bytes,
    human_count,
    short_file_line,
)
from .fold import Fold, common_name, fold, numberless

_HUES = (255, 55, 150, 330, 205, 100)
_CHIPS = 24
_CELL_ROWS = 200


def page(layout: LayoutData) -> str:
    """The whole page."""
    draw = _Page(layout)
    body = "".join(
        (
            '<a class="skip" href="#variables">Skip to the variables</a>',
            '<div class="wrap">',
            f"<header>{draw.head()}</header>",
            '<main class="cols"><div>',
            draw.nest(),
            draw.findings(),
            draw.variables(),
            draw.totals(),
            "</div>",
            draw.inspector(),
            "</main></div>",
            draw.templates(),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(layout.module)} · layout</title>"
        f"<style>{_asset('page.css')}{draw.hot_rules()}body{{margin:0}}</style></head>"
        f'<body class="lx">{body}<script>{_asset("page.js")}</script></body></html>\n'
    )


def fragment(layout: LayoutData) -> str:
    """The part of the page that suits a notebook cell: no script, and a bounded number of rows."""
    draw = _Page(layout)
    parts = (draw.head(), draw.nest(), draw.findings(), draw.variables(_CELL_ROWS), draw.totals())
    return (
        f"<style>{_asset('page.css')}</style>"
        f'<div class="lx lx-cell"><div class="wrap">{"".join(parts)}</div></div>'
    )


@cache
def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


class _Page:
    """One layout being drawn."""

    def __init__(self, layout: LayoutData):
        self.layout = layout
        sized = [lift.index for lift in layout.lifts if lift.size is not None]
        self.hue = {index: _hue(i) for i, index in enumerate(sized)}
        self.kinds: dict[str, str] = {}  # details -> id of their template
        self.ids = {id(v): f"v{i}" for i, v in enumerate(layout.variables)}

    # --- head, findings, totals -----------------------------------------------

    def head(self) -> str:
        layout = self.layout
        where = short_file_line(layout.file_line)
        call = f" <code>({escape(layout.arguments)})</code>" if layout.arguments else ""
        tiles = [
            (human_count(layout.parameters), "parameters", f"{layout.parameters:,}"),
            (human_bytes(layout.bytes), "in all variables", f"{layout.bytes:,} bytes"),
            *(
                (f"{n:,}", what if n == 1 else what + "s", "")
                for n, what in ((len(layout.variables), "variable"), (len(layout.lifts), "lift"))
            ),
        ]
        cost = layout.cost
        if cost is not None:
            on = f"on {cost.backend}"
            if cost.flops is not None:
                tiles.append((human_count(cost.flops), "FLOPs forward", on))
            if cost.bytes_accessed is not None:
                tiles.append((human_bytes(cost.bytes_accessed), "read and written", on))
            if cost.peak_temporary_bytes is not None:
                tiles.append((human_bytes(cost.peak_temporary_bytes), "temporary memory", on))
        boxes = "".join(
            f'<div class="tile num" title="{escape(title)}"><b>{value}</b><span>{what}</span></div>'
            for value, what, title in tiles
        )
        source = f' · <span class="mono">{escape(where)}</span>' if where else ""
        return (
            f'<p class="over">Layout{source}</p><h1>{escape(layout.module)}{call}</h1>'
            f'<div class="tiles">{boxes}</div>'
        )

    def findings(self) -> str:
        if not self.layout.findings:
            return ""
        cards = "".join(
            f'<div class="finding {escape(f.severity)}"><h3><code>{escape(f.code)}</code>'
            f'{escape(f.title)} <span class="soft">· {escape(f.severity)}</span></h3>'
            f"<p>{escape(f.message)}</p><details><summary>An example and the fix</summary>"
            f'<pre class="mono">{escape(RULES[f.code].text())}</pre></details></div>'
            for f in self.layout.findings
        )
        return f"<section><h2>Findings</h2>{cards}</section>"

    def totals(self) -> str:
        layout = self.layout
        most = max((t.bytes for t in layout.collections), default=0) or 1
        collections = "".join(
            f"<tr><td>{escape(t.collection)}{_bar(t.bytes / most)}</td><td>{t.variables:,}</td>"
            f"<td>{t.elements:,}</td><td>{human_bytes(t.bytes)}</td></tr>"
            for t in layout.collections
        )
        sections = [
            _table(("Collection", "variables", "elements", "bytes"), collections)
            if collections
            else ""
        ]
        lifts = "".join(
            f"<tr{self.tint(t.lift, '')}><td>{escape(layout.lifts[t.lift].title)}"
            f"{_bar(t.per_iteration / (t.parameters or 1))}</td><td>{t.parameters:,}</td>"
            f"<td>{t.per_iteration:,}</td><td>{t.shared:,}</td><td>{t.if_shared:,}</td></tr>"
            for t in layout.by_lift
        )
        if lifts:
            titles = ("Lift", "in all", "one iteration", "shared", "if the axis were shared")
            sections.append("<h2>Parameters by lift</h2>" + _table(titles, lifts))
        return f"<section><h2>Totals</h2>{''.join(sections)}</section>"

    # --- the nest -------------------------------------------------------------

    def nest(self) -> str:
        layout = self.layout
        where = short_file_line(layout.file_line)
        head = (
            f'<div class="bhead"><span class="kind" style="background:var(--neutral)">'
            f"{escape(layout.module)}</span>"
            + (f'<span class="where">{escape(where)}</span>' if where else "")
            + "</div>"
        )
        inner = "".join(self.box(i) for i in layout.children.get(None, ()))
        return (
            '<section><h2>The nest of lifts</h2><div class="nest">'
            f'<div class="box">{head}{self.chips(None)}{inner}</div></div></section>'
        )

    def box(self, index: int) -> str:
        lift = self.layout.lifts[index]
        classes = ["box lift many" if lift.size is not None else "box lift flat"]
        loop = ""
        if lift.carry:
            classes.append("loops")
            loop = (
                '<div class="loop" aria-hidden="true"><svg viewBox="0 0 12 12">'
                '<path d="M0 6 11 0.5 8.5 6 11 11.5Z"/></svg><i>carry</i></div>'
            )
        where = f'<span class="where">{escape(lift.where)}</span>' if lift.where else ""
        size = "" if lift.size is None else f" × {lift.size}"
        named = f"<b>{escape(lift.axis_name)}</b>" if lift.axis_name else ""
        said = lift.title + (", with a carry" if lift.carry else "")
        inner = "".join(self.box(i) for i in self.layout.children.get(index, ()))
        return (
            f'<div{self.tint(index, " ".join(classes))} tabindex="0" role="group" '
            f'aria-label="{escape(said)}" data-hot="{index}" '
            f'data-name="{escape(lift.title)}" data-k="{self.kind(self.lift_details(lift))}">'
            f'<div class="bhead"><span class="kind">{escape(lift.kind)}{size}</span>{named}'
            f"<span>over <code>{escape(lift.target)}</code></span>{where}</div>"
            f"{_roles(lift)}{self.chips(index)}{inner}{loop}</div>"
        )

    def chips(self, index: int | None) -> str:
        """The modules whose variables live right here, alike ones together."""
        modules: dict[tuple[str, ...], list[VariableLayout]] = {}
        for v in self.layout.inside.get(index, ()):
            modules.setdefault(v.path[:-1], []).append(v)
        prefix = () if index is None else self.layout.lifts[index].path
        alike: dict[object, list[tuple[str, list[VariableLayout]]]] = {}
        for path, vs in modules.items():
            shape = tuple(sorted((v.collection, v.path[-1], v.shape, v.dtype) for v in vs))
            # Alike by the name that is shown: only some of them may lie below the lift's path.
            name = "/".join(_below(path, prefix))
            alike.setdefault((numberless(name), shape), []).append((name, vs))
        chips = []
        for members in alike.values():
            group = [v for _, vs in members for v in vs]
            name = common_name([name for name, _ in members])
            facts = [group[0].layer or "", f"{human_count(sum(v.elements for v in group))}"]
            facts += [f"{len(members)} alike"] if len(members) > 1 else []
            chips.append(
                f'<a class="chip" href="#{self.ids[id(group[0])]}"><code>'
                f"{_breakable(name or 'itself')}</code>"
                f"<span>{escape(' · '.join(f for f in facts if f))}</span></a>"
            )
        if len(chips) > _CHIPS:
            rest = len(chips) - _CHIPS
            chips[_CHIPS:] = [f'<span class="chip soft">and {rest:,} more</span>']
        return f'<div class="chips">{"".join(chips)}</div>' if chips else ""

    # --- the variables --------------------------------------------------------

    def variables(self, limit: int | None = None) -> str:
        groups, left = [], limit if limit is not None else math.inf
        for total in self.layout.collections:
            rows = []
            for group in fold([v for v in self.layout if v.collection == total.collection], 4):
                if left <= 0:
                    break
                rows.append(self.folded(group, limit is not None))
                left -= 1
            facts = (
                f"{_count(total.variables, 'array')} · {_count(total.elements, 'element')} · "
                f"{human_bytes(total.bytes)}"
            )
            if rows:
                groups.append(
                    f'<section class="group"><h3>{escape(total.collection)} <span class="num">'
                    f"{facts}</span></h3><ul>{''.join(rows)}</ul></section>"
                )
        if left <= 0:
            groups.append('<p class="soft">More in the page that <code>to_html</code> writes.</p>')
        tools = ""
        if limit is None:
            tools = (
                '<div class="tools hidden"><input type="search" aria-label="Filter the variables" '
                'placeholder="Filter: a name, a collection, an axis …" autocomplete="off" '
                'spellcheck="false"><span class="count soft num" role="status"></span></div>'
            )
        return f'<section id="variables"><h2>Variables</h2>{tools}{"".join(groups)}</section>'

    def folded(self, group: Fold, shut: bool) -> str:
        if len(group) == 1 or shut:
            name = f"{_name(group.first, group.name)}{_times(len(group))}"
            return f"<li{self.row(group.first)}>{name}{self.cells(group.first, group.bytes)}</li>"
        members = "".join(
            f"<li{self.row(v)}>{_name(v, v.name)}{self.cells(v, v.bytes)}</li>"
            for v in group.members
        )
        head = f"{_name(group.first, group.name)[:-7]}{_times(len(group))}</span>"
        kind = self.kind(self.details(group.first))
        name = f"{group.first.collection}/{group.name}"
        return (
            f'<li><details class="fold"><summary class="{self.row_class(group.first)}" '
            f'data-k="{kind}" data-name="{escape(name)}">{head}'
            f'{self.cells(group.first, group.bytes)}</summary><ul class="members">{members}</ul>'
            "</details></li>"
        )

    def row_class(self, v: VariableLayout) -> str:
        return " ".join(["row", *(f"l{i}" for i in v.lifts)])

    def row(self, v: VariableLayout) -> str:
        name = f"{v.collection}/{v.name}"
        words = [name, v.dtype, v.layer or "", *(a.label or "" for a in v.axes)]
        words += [f"{a.role} {self.layout.lifts[a.lift].label}" for a in v.along]
        return (
            f' class="{self.row_class(v)}" id="{self.ids[id(v)]}" '
            f'data-k="{self.kind(self.details(v))}" data-name="{escape(name)}" '
            f'data-find="{escape(" ".join(words).lower())}"'
        )

    def cells(self, v: VariableLayout, size: int) -> str:
        return (
            f'{self.strip(v)}<span class="size num"><b>{human_bytes(size)}</b>'
            f"{escape(v.dtype)}</span>"
        )

    def strip(self, v: VariableLayout) -> str:
        """The array, drawn: one block for each axis, then the lifts that added none."""
        said, blocks = [], []
        for axis in v.axes:
            label = axis.label or ("axis" if axis.lift is None else "")
            said.append(f"{label} {axis.size}".strip())
            width = f' style="--w:{math.log2(max(axis.size, 1)):.1f}'
            hue = self.hue.get(axis.lift) if axis.lift is not None else None
            style = f'{width};--h:{hue}"' if hue is not None else f'{width}"'
            css = "ax hue" if hue is not None else "ax"
            blocks.append(
                f'<span class="{css}"{style}><b>{axis.size}</b><i>{escape(label)}</i></span>'
            )
        if not v.axes:
            said.append("scalar")
            blocks.append('<span class="ax"><b>1</b><i>scalar</i></span>')
        for along in v.along:
            lift = self.layout.lifts[along.lift]
            if along.role in ("shared", "carried") and along.lift in self.hue:
                said.append(f"{along.role} along {lift.label}")
                blocks.append(
                    f"<span{self.tint(along.lift, 'ax no')}><b>{along.role}</b>"
                    f"<i>{escape(lift.label)} × {lift.size}</i></span>"
                )
        text = escape(", ".join(said))
        return f'<span class="axes num" role="img" aria-label="{text}">{"".join(blocks)}</span>'

    # --- details --------------------------------------------------------------

    def inspector(self) -> str:
        return (
            '<aside class="inspect" aria-live="polite" aria-label="Details">'
            '<button class="close" type="button" aria-label="Close the details">×</button>'
            '<div class="body"><p class="soft">Point at an array or a lift, tap it, or reach it '
            "with Tab and the arrow keys: what it is and where each axis came from stands here. "
            "<span class=mono>/</span> goes to the filter.</p></div></aside>"
        )

    def kind(self, details: str) -> str:
        return self.kinds.setdefault(details, f"k{len(self.kinds)}")

    def templates(self) -> str:
        return "".join(f'<template id="{i}">{text}</template>' for text, i in self.kinds.items())

    def details(self, v: VariableLayout) -> str:
        lifts = self.layout.lifts
        shape = "(" + ", ".join(map(str, v.shape)) + ("," if len(v.shape) == 1 else "") + ")"
        facts = f"{_count(v.elements, 'element')}, {human_bytes(v.bytes)}"
        parts = [f'<p class="mono">{escape(v.dtype)}{shape}</p><p class="soft num">{facts}</p><dl>']
        if v.axes:
            lines = []
            for i, axis in enumerate(v.axes):
                if axis.lift is None:
                    origin = f"from the layer{f' {escape(v.layer)}' if v.layer else ''}"
                else:
                    origin = f"from {escape(lifts[axis.lift].title)}"
                    if lifts[axis.lift].where:
                        origin += f", <code>{escape(lifts[axis.lift].where)}</code>"
                label = f"<b>{escape(axis.label)}</b>, " if axis.label else ""
                lines.append(
                    f'<div class="line"><span{self.tint(axis.lift, "dot num")}>{axis.size}</span>'
                    f"<span>{label}axis {i}<br>{origin}</span></div>"
                )
            parts.append(f"<div><dt>Axes</dt><dd>{''.join(lines)}</dd></div>")
        if v.along:
            lines = []
            for along in v.along:
                lift = lifts[along.lift]
                words = [ROLE_WORDS.get(along.role, along.role)]
                if along.split is not None:
                    words.append("its keys are " + ("split" if along.split else "not split"))
                css = "dot" if along.role == "stacked" else "dot no"
                lines.append(
                    f'<div class="line"><span{self.tint(along.lift, css)}>{escape(along.role)}'
                    f"</span><span>along {escape(lift.title)}: {escape('; '.join(words))}</span>"
                    "</div>"
                )
            parts.append(f"<div><dt>Lifts, outermost first</dt><dd>{''.join(lines)}</dd></div>")
        return "".join(parts) + "</dl>"

    def lift_details(self, lift: LiftNode) -> str:
        facts = []
        if lift.axis_name:
            facts.append(f"the axis is called <b>{escape(lift.axis_name)}</b>")
        if lift.carry:
            facts.append("a carry goes from each iteration to the next")
        if lift.path:
            facts.append(f"at <code>{escape('/'.join(lift.path))}</code>")
        if lift.where:
            facts.append(f"body in <code>{escape(lift.where)}</code>")
        facts += [
            f"{escape(str(k))}: <code>{escape(str(v))}</code>" for k, v in lift.details.items()
        ]
        parts = ["<dl>"]
        if facts:
            parts.append(f"<div><dt>Lift</dt>{''.join(f'<dd>{fact}</dd>' for fact in facts)}</div>")
        if lift.roles:
            lines = "".join(
                f"<dd><b>{escape(c)}</b>: {escape(r)}, {escape(ROLE_WORDS.get(r, r))}</dd>"
                for c, r in lift.roles.items()
            )
            parts.append(f"<div><dt>Collections</dt>{lines}</div>")
        if lift.splits:
            lines = "".join(
                f"<dd><b>{escape(s)}</b>: keys {'split' if split else 'not split'}</dd>"
                for s, split in lift.splits.items()
            )
            parts.append(f"<div><dt>Streams</dt>{lines}</div>")
        return "".join(parts) + "</dl>"

    # --- colour ---------------------------------------------------------------

    def tint(self, lift: int | None, css: str) -> str:
        """The attributes that give an element its lift's hue."""
        hue = self.hue.get(lift) if lift is not None else None
        if hue is None:
            return f' class="{css}"' if css else ""
        return f' class="{f"{css} hue".strip()}" style="--h:{hue}"'

    def hot_rules(self) -> str:
        return "".join(
            f'.lx[data-hot="{lift.index}"] .row:not(.l{lift.index}){{opacity:.35}}'
            for lift in self.layout.lifts
        )


# --- small pieces -------------------------------------------------------------


def _hue(i: int) -> int:
    return _HUES[i] if i < len(_HUES) else round(i * 137.508) % 360


def _count(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _times(n: int) -> str:
    return f" <em>{n:,} alike</em>" if n > 1 else ""


def _name(v: VariableLayout, name: str) -> str:
    before, slash, last = name.rpartition("/")
    return f'<span class="name">{_breakable(before + slash)}<b>{escape(last)}</b></span>'


def _breakable(path: str) -> str:
    return escape(path).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _below(path: tuple[str, ...], prefix: tuple[str, ...]) -> tuple[str, ...]:
    inside = path[: len(prefix)] == prefix and len(path) > len(prefix)
    return path[len(prefix) :] if inside else path


def _roles(lift: LiftNode) -> str:
    parts = [
        f"<span><b>{escape(c)}</b> {escape(r)}</span>"
        for c, r in lift.roles.items()
        if r != "through"
    ]
    split = [s for s, is_split in lift.splits.items() if is_split]
    if split:
        parts.append(f"<span>keys split: <b>{escape(', '.join(split))}</b></span>")
    return f'<div class="roles">{"".join(parts)}</div>' if parts else ""


def _bar(part: float) -> str:
    return f'<span class="bar"><i style="width:{100 * part:.1f}%"></i></span>'


def _table(titles: tuple[str, ...], rows: str) -> str:
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{titles[0]} totals">'
        f'<table class="num"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
