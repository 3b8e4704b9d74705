"""A verdict as HTML, for the page and the notebook."""

from __future__ import annotations

import dataclasses
from html import escape
from importlib.resources import files

from ..layout import Layout
from ..layout.page import side, stylesheet
from .verdict import Verdict


def style() -> str:
    """The style that `as_html` needs."""
    return stylesheet() + files(__package__).joinpath("verdict.css").read_text(encoding="utf-8")


def as_html(verdict: Verdict) -> str:
    """The verdict, with both layouts side by side where there are two, and what differs marked."""
    mark, css = ("✓", "right") if verdict.passed else ("✗", "wrong")
    parts = [f"<h3>{mark} {escape(verdict.title)}</h3>"]
    if verdict.line is not None:
        parts.append(f"<pre>line {verdict.line}: {escape(verdict.source.strip())}</pre>")
    if verdict.differences:
        parts.append(_differences(verdict))
    else:
        parts += [f"<p>{escape(text)}</p>" for text in (verdict.said, *verdict.details)]
    if verdict.code:
        explain = f"<code>liftax explain {escape(verdict.code)}</code>"
        parts.append(f"<p>{explain} shows an example and the fix</p>")
    if verdict.printed:
        parts.append(f"<p>It printed:</p><pre>{escape(verdict.printed)}</pre>")
    parts += [f"<p>Remark: {escape(remark)}</p>" for remark in verdict.remarks]
    if verdict.yours and verdict.goal and not verdict.passed:
        parts.append(_sides(verdict))
    return f'<div class="lx verdict {css}" data-stage="{verdict.stage}">{"".join(parts)}</div>'


def _differences(verdict: Verdict) -> str:
    items, said = [], ""
    for difference in verdict.differences[:8]:
        # A bias has gone where its kernel went: why is said once.
        why = "" if difference.why == said else difference.why
        said = difference.why or said
        items.append(
            f"<li><code>{escape(difference.variable)}</code>: "
            f"yours <b>{escape(difference.yours or 'has none')}</b>, "
            f"goal <b>{escape(difference.goal or 'has none')}</b>"
            + (f"<br>{escape(why)}" if why else "")
            + "</li>"
        )
    left = len(verdict.differences) - len(items)
    more = f"<li>and {left} more</li>" if left else ""
    return f'<ul class="differ">{"".join(items)}{more}</ul>'


def _placeless(layout: Layout) -> Layout:
    """Without lines of files: there is one file of the learner's, and the goal's is nobody's."""
    lifts = tuple(dataclasses.replace(lift, file_line=None) for lift in layout.lifts)
    return layout.replace(lifts=lifts, file_line=None)


def _sides(verdict: Verdict) -> str:
    marked = {difference.variable for difference in verdict.differences}
    # Where only the name is another, the learner's row has the learner's name.
    marked |= {d.yours.removeprefix("is called ") for d in verdict.differences}
    columns = []
    for title, plain in (("Yours", verdict.yours), ("The goal", verdict.goal)):
        if plain is not None:
            drawn = side(_placeless(Layout.from_dict(plain)), marked)
            columns.append(f"<div><h4>{title}</h4>{drawn}</div>")
    return f'<div class="sides">{"".join(columns)}</div>'
