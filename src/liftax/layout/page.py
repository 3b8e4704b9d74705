"""A layout as a single self-contained page: the nest as boxes, each array as its axes.

The markup is written here, whole, so that the page reads without its script; `page.js` adds the
details on hover and focus, the filter and the arrow keys. Nothing is fetched from anywhere. Each
lift with an axis owns a hue; whatever came from that lift wears it, and says so in words too.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from html import escape
from importlib.resources import files

from ..errors import RULES
from .data import LayoutData
from .fold import fold_findings
from .kept import by_module
from .page_nest import Nest, bar, breakable, html_table
from .page_rows import Rows
from .page_stages import Pipelines
from .wording import human_bytes, human_count, short_file_line

_CELL_ROWS = 200


def page(layout: LayoutData) -> str:
    """The whole page."""
    # Templates last: they hold the details that everything before them has asked for.
    draw = _Page(layout)
    body = "".join(
        (
            '<a class="skip" href="#variables">Skip to the variables</a>',
            '<div class="wrap">',
            f"<header>{draw.head()}</header>",
            f'<main class="cols"><div>{draw.parts()}</div>',
            draw.inspector(),
            "</main></div>",
            draw.templates(),
        )
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        # An icon of no bytes, or a browser asks the server of the folder for one.
        '<link rel="icon" href="data:,">'
        f"<title>{escape(layout.module)} · layout</title>"
        f"<style>{_asset('page.css')}{draw.hot_rules()}body{{margin:0}}</style></head>"
        f'<body class="lx">{body}<script>{_asset("page.js")}</script></body></html>\n'
    )


def fragment(layout: LayoutData) -> str:
    """The part of the page that suits a notebook cell: no script, and a bounded number of rows."""
    draw = _Page(layout)
    # A notebook keeps its outputs in its file: no page of megabytes in it.
    body = draw.head() + draw.parts(_CELL_ROWS)
    return (
        f"<style>{_asset('page.css')}</style>"
        f'<div class="lx lx-cell"><div class="wrap">{body}</div></div>'
    )


def side(layout: LayoutData, marked: Collection[str] = ()) -> str:
    """The nest and the variables for one of two columns, without a style and without details.

    The rows of variables that are named in ``marked`` have the class `differs`.
    """
    draw = _Page(layout)
    return f"{draw.nest()}{draw.plain_rows(marked, _CELL_ROWS)}"


def stylesheet() -> str:
    """The style of what is drawn here, for elements inside one of the class `lx`."""
    return _asset("page.css")


@cache
def _asset(name: str) -> str:
    # Not by path: a package may be imported from a zip.
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


class _Page(Nest, Pipelines, Rows):
    """The page of one layout: what stands above, between and below its parts."""

    def parts(self, limit: int | None = None) -> str:
        """All parts below the head, in their order; ``limit`` is on the rows of the long ones."""
        return "".join(
            (
                self.nest(),
                self.pipelines(),
                self.findings(),
                self.modules(),
                self.variables(limit),
                self.kept(),
                self.values(limit),
                self.totals(),
            )
        )

    def head(self) -> str:
        layout = self.layout
        where = short_file_line(layout.file_line)
        call = f" <code>({escape(layout.arguments)})</code>" if layout.arguments else ""
        # Rounded on the tile, in full where one points at it.
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
        if layout.kept is not None:
            tiles.append((human_bytes(layout.kept.bytes), "kept for a gradient", layout.kept.total))
        boxes = "".join(
            f'<div class="tile num" title="{escape(title)}"><b>{value}</b><span>{what}</span></div>'
            for value, what, title in tiles
        )
        source = f' · <span class="mono">{escape(where)}</span>' if where else ""
        streams = ""
        if layout.absent:
            streams = (
                f'<p class="soft">Streams not given, so params stood in: '
                f"{escape(', '.join(layout.absent))}.</p>"
            )
        if layout.brought_together:
            streams += f'<p class="soft">{escape(layout.brought_together)}.</p>'
        return (
            f'<p class="over">Layout{source}</p><h1>{escape(layout.module)}{call}</h1>'
            f'<div class="tiles">{boxes}</div>{streams}'
        )

    def findings(self) -> str:
        if not self.layout.findings:
            return ""
        cards = []
        for f, count in fold_findings(self.layout, self.alike):
            more = f" (and {count - 1:,} alike)" if count > 1 else ""
            cards.append(
                f'<div class="finding {escape(f.severity)}"><h3><code>{escape(f.code)}</code>'
                f'{escape(f.title)} <span class="soft">· {escape(f.severity)}</span></h3>'
                f"<p>{escape(f.message)}{more}</p>"
                "<details><summary>An example and the fix</summary>"
                # The page of the finding itself, as `liftax explain` prints it: nobody has to leave
                # for it.
                f'<pre class="mono">{escape(RULES[f.code].text())}</pre></details></div>'
            )
        return f"<section><h2>Findings</h2>{''.join(cards)}</section>"

    def kept(self) -> str:
        """What the backward pass keeps, module by module; a bar shows how much of it is cheap."""
        rows = by_module(self.layout.kept) if self.layout.kept is not None else []
        if not rows:
            return ""
        drawn = "".join(
            f"<tr><td><code>{breakable(one.name) or 'the model itself'}</code>"
            f"{f' <em class=times>×{one.times:,}</em>' if one.times > 1 else ''}"
            f"{bar(one.cheap / (one.bytes or 1))}</td>"
            f"<td>{human_bytes(one.bytes)}</td><td>{human_bytes(one.cheap) if one.cheap else ''}"
            f'</td><td class="shapes mono">{escape(one.made_by)}</td></tr>'
            for one in rows[:_CELL_ROWS]
        )
        more = len(rows) - _CELL_ROWS
        drawn += f'<tr><td class="soft">and {more:,} more</td></tr>' if more > 0 else ""
        table = html_table(("Module", "bytes", "of it cheap", "made by"), drawn)
        return f"<section><h2>Kept for the backward pass</h2>{table}</section>"

    def totals(self) -> str:
        layout = self.layout
        most = max((t.bytes for t in layout.collections), default=0) or 1
        collections = "".join(
            f"<tr><td>{escape(t.collection)}{bar(t.bytes / most)}</td><td>{t.variables:,}</td>"
            f"<td>{t.elements:,}</td><td>{human_bytes(t.bytes)}</td></tr>"
            for t in layout.collections
        )
        sections = [
            html_table(("Collection", "variables", "elements", "bytes"), collections)
            if collections
            else ""
        ]
        lifts = "".join(
            f"<tr{self.tint(t.lift, '')}><td>{escape(layout.lifts[t.lift].title)}"
            f"{bar(t.per_iteration / (t.parameters or 1))}</td><td>{t.parameters:,}</td>"
            f"<td>{t.per_iteration:,}</td><td>{t.shared:,}</td><td>{t.if_shared:,}</td></tr>"
            for t in layout.by_lift
            if self.alike.same[t.lift] == t.lift
        )
        if lifts:
            titles = ("Lift", "in all", "one iteration", "shared", "if the axis were shared")
            sections.append("<h2>Parameters by lift</h2>" + html_table(titles, lifts))
        return f"<section><h2>Totals</h2>{''.join(sections)}</section>"
