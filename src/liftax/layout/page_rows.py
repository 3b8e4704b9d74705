"""The variables as rows: each array as its axes, alike ones as one row that opens."""

from __future__ import annotations

import math
from collections.abc import Collection
from html import escape

from .columns import text_of
from .data import VariableLayout
from .fold import Fold
from .page_details import MEMBERS, Details, counted
from .page_nest import breakable, html_table
from .table import STATS, axes_segments, stats_texts
from .wording import human_bytes

_DRAWN = 400
"""So many rows are drawn, with details; what comes after them is said in text."""


class Rows(Details):
    """The rows of one layout."""

    drawn = 0

    def variables(self, limit: int | None = None) -> str:
        # Counted over all collections: the limit is on the page and not on each part of it.
        groups, left = [], limit if limit is not None else math.inf
        for total in self.layout.collections:
            rows = []
            for group in self.folds[total.collection]:
                if left <= 0:
                    break
                rows.append(self.folded(group, limit is not None))
                left -= 1
            facts = (
                f"{counted(total.variables, 'array')} · {counted(total.elements, 'element')} · "
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
        first, head = group.first, _name(group.name, len(group))
        # Without a script a fold would still open, but a notebook's cell must stay bounded.
        if len(group) == 1 or shut or len(group) > MEMBERS:
            return f"<li{self.row(first, group.name)}>{head}{self.cells(first, group.bytes)}</li>"
        members = "".join(
            f"<li{self.row(v, v.name)}>{_name(v.name)}{self.cells(v, v.bytes)}</li>"
            for v in group.members
        )
        kind = self.kind(self.details(first))
        name = f"{first.collection}/{group.name}"
        return (
            f'<li><details class="fold"><summary class="{self.row_class(first)}" '
            f'data-k="{kind}" data-name="{escape(name)}">{head}'
            f'{self.cells(first, group.bytes)}</summary><ul class="members">{members}</ul>'
            "</details></li>"
        )

    def plain_rows(self, marked: Collection[str], limit: int) -> str:
        """Each variable on a row of its own; those of ``marked`` have the class `differs`."""
        rows = []
        for v in self.layout.variables[:limit]:
            name = f"{v.collection}/{v.name}"
            css = "row differs" if name in marked else "row"
            rows.append(f'<li class="{css}">{_name(name)}{self.strip(v)}</li>')
        return f'<section class="group"><ul>{"".join(rows)}</ul></section>'

    def row_class(self, v: VariableLayout) -> str:
        return " ".join(["row", *(f"l{self.alike.same[i]}" for i in v.lifts)])

    def row(self, v: VariableLayout, called: str) -> str:
        self.drawn += 1
        name = f"{v.collection}/{called}"
        words = [v.dtype, v.layer or "", *(a.label or "" for a in v.axes)]
        words += [f"{a.role} {self.layout.lifts[a.lift].label}" for a in v.along]
        # Details cost the most of a row; past this many nobody reads each.
        kind = f' data-k="{self.kind(self.details(v))}"' if self.drawn <= _DRAWN else ""
        return (
            f' class="{self.row_class(v)}" id="{self.ids[id(v)]}"{kind} data-name="{escape(name)}" '
            f'data-find="{escape(" ".join(words).lower())}"'
        )

    def cells(self, v: VariableLayout, size: int) -> str:
        axes = self.strip(v)
        if self.drawn > _DRAWN:
            axes = f'<span class="num soft">{escape(text_of(axes_segments(v)))}</span>'
        return f'{axes}<span class="size num"><b>{human_bytes(size)}</b>{escape(v.dtype)}</span>'

    def strip(self, v: VariableLayout) -> str:
        """The array, drawn: one block for each axis, then the lifts that added none."""
        said, blocks = [], []
        for axis in v.axes:
            label = axis.label or ("axis" if axis.lift is None else "")
            said.append(f"{label} {axis.size}".strip())
            # By the logarithm: an axis of 50,000 beside one of 4 must leave both to be seen.
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
            # Stacked lifts have their block among the axes.
            if along.role in ("shared", "carried") and along.lift in self.hue:
                said.append(f"{along.role} along {lift.label}")
                blocks.append(
                    f"<span{self.tint(along.lift, 'ax no')}><b>{along.role}</b>"
                    f"<i>{escape(lift.label)} × {lift.size}</i></span>"
                )
        text = escape(", ".join(said))
        return f'<span class="axes num" role="img" aria-label="{text}">{"".join(blocks)}</span>'

    def values(self, limit: int | None = None) -> str:
        """What the numbers of each array are like, where they were given."""
        limit = _DRAWN if limit is None else limit
        told = [v for v in self.layout if v.stats is not None]
        rows = [
            f"<tr><td><code>{breakable(f'{v.collection}/{v.name}')}</code></td>"
            + "".join(f"<td>{escape(text)}</td>" for text in stats_texts(v.stats))
            + "</tr>"
            for v in told[:limit]
            if v.stats is not None
        ]
        if not rows:
            return ""
        more = f'<p class="soft">and {len(told) - limit:,} more</p>' if len(told) > limit else ""
        table = html_table(("Array", *STATS), "".join(rows))
        return f"<section><h2>Values</h2>{table}{more}</section>"


def _name(name: str, times: int = 1) -> str:
    before, slash, last = name.rpartition("/")
    alike = f" <em>{times:,} alike</em>" if times > 1 else ""
    return f'<span class="name">{breakable(before + slash)}<b>{escape(last)}</b>{alike}</span>'
