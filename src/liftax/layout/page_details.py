"""What a page says of one array or one lift where it is pointed at, and the colours of lifts."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from .data import ROLE_WORDS, Along, LayoutData, LiftNode, Stats, VariableLayout
from .fold import alike_lifts, fold
from .table import STATS, stats_texts
from .wording import human_bytes, short_file_line

_HUES = (255, 55, 150, 330, 205, 100)
_SLICES = 48
MEMBERS = 100
"""So many alike arrays are listed below their row; of more, the row alone is shown."""


class Details:
    """One layout being drawn: its colours, what is folded, and the details of what it shows.

    Attributes:
      layout: the layout.
      alike: which lifts are drawn as one.
      hue: lift -> its colour, for those with an axis.
      kinds: details -> the id of their template: what is alike shares one.
      ids: of the rows of variables, by `id`.
      folds: collection -> its variables, alike ones together.
    """

    def __init__(self, layout: LayoutData):
        self.layout = layout
        self.alike = alike_lifts(layout)
        same = self.alike.same
        # A hue for lifts with an axis alone, since only these have something to colour, and one for
        # alike ones together.
        sized = [n.index for n in layout.lifts if n.size is not None and same[n.index] == n.index]
        hues = {index: _hue(i) for i, index in enumerate(sized)}
        self.hue = {i: hues[one] for i, one in same.items() if one in hues}
        self.kinds: dict[str, str] = {}
        # By identity: a variable is a frozen value, and hashing it would hash its whole nest.
        self.ids = {id(v): f"v{i}" for i, v in enumerate(layout.variables)}
        self.folds = {
            name: fold(group, 4, self.alike.same) for name, group in layout.by_collection.items()
        }
        for folds in self.folds.values():
            for group in folds:
                if len(group) > MEMBERS:  # they have no rows of their own to be led to
                    self.ids.update({id(v): self.ids[id(group.first)] for v in group.members})

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
        # Ten thousand variables have a few dozen kinds of details; each is in the page once.
        return self.kinds.setdefault(details, f"k{len(self.kinds)}")

    def templates(self) -> str:
        return "".join(f'<template id="{i}">{text}</template>' for text, i in self.kinds.items())

    def details(self, v: VariableLayout) -> str:
        shape = "(" + ", ".join(map(str, v.shape)) + ("," if len(v.shape) == 1 else "") + ")"
        facts = f"{counted(v.elements, 'element')}, {human_bytes(v.bytes)}"
        values = [] if v.stats is None else [_stats("all", v.stats)]
        values += [
            _stats(f"{v.slice_label} {i}", one) for i, one in enumerate(v.per_layer[:_SLICES])
        ]
        more = len(v.per_layer) - _SLICES
        values += [f"<dd>and {more:,} more</dd>"] if more > 0 else []
        axes = "".join(self._axis_line(v, i) for i in range(len(v.axes)))
        along = "".join(map(self._along_line, v.along))
        entries = {
            "Axes": axes and f"<dd>{axes}</dd>",
            "Lifts, outermost first": along and f"<dd>{along}</dd>",
            "Values": "".join(values),
        }
        head = f'<p class="mono">{escape(v.dtype)}{shape}</p><p class="soft num">{facts}</p>'
        return head + _listed(entries)

    def _axis_line(self, v: VariableLayout, i: int) -> str:
        axis = v.axes[i]
        if axis.lift is None:
            origin = f"from the layer{f' {escape(v.layer)}' if v.layer else ''}"
        else:
            lift = self.layout.lifts[axis.lift]
            origin = f"from {escape(lift.title)}"
            origin += f", <code>{escape(lift.where)}</code>" if lift.where else ""
        label = f"<b>{escape(axis.label)}</b>, " if axis.label else ""
        return (
            f'<div class="line"><span{self.tint(axis.lift, "dot num")}>{axis.size}</span>'
            f"<span>{label}axis {i}<br>{origin}</span></div>"
        )

    def _along_line(self, along: Along) -> str:
        said = ROLE_WORDS.get(along.role, along.role)
        if along.split is not None:
            said += "; its keys are " + ("split" if along.split else "not split")
        css, lift = "dot" if along.role == "stacked" else "dot no", self.layout.lifts[along.lift]
        return (
            f'<div class="line"><span{self.tint(along.lift, css)}>{escape(along.role)}</span>'
            f"<span>along {escape(lift.title)}: {escape(said)}</span></div>"
        )

    def lift_details(self, lift: LiftNode) -> str:
        told = (
            ("the axis is called <b>{}</b>", lift.axis_name),
            ("a carry goes from each iteration to the next", lift.carry),
            ("at <code>{}</code>", "/".join(lift.path)),
            ("lifted in <code>{}</code>", lift.lifted_at),
            # Where both are known: else it is the line above.
            ("called in <code>{}</code>", lift.made_at and short_file_line(lift.called_at)),
            ("body in <code>{}</code>", lift.where),
            ("an iteration carries <code>{}</code>", lift.carries),
            ("an iteration takes <code>{}</code>", lift.takes),
            ("an iteration gives <code>{}</code>", lift.gives),
        )
        facts = [text.format(escape(str(value))) for text, value in told if value]
        facts += [f"{escape(k)}: <code>{escape(str(v))}</code>" for k, v in lift.details.items()]
        roles = [
            f"<b>{escape(c)}</b>: {escape(r)}, {escape(ROLE_WORDS.get(r, r))}"
            for c, r in lift.roles.items()
        ]
        streams = [
            f"<b>{escape(s)}</b>: keys {'split' if split else 'not split'}"
            for s, split in lift.splits.items()
        ]
        entries = {"Lift": facts, "Collections": roles, "Streams": streams}
        return _listed({k: "".join(f"<dd>{v}</dd>" for v in lines) for k, lines in entries.items()})

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
            if self.alike.same[lift.index] == lift.index
        )


def _hue(i: int) -> int:
    return _HUES[i] if i < len(_HUES) else round(i * 137.508) % 360


def _listed(entries: Mapping[str, str]) -> str:
    """A list of terms; of one about which nothing is said there is nothing."""
    said = (f"<div><dt>{term}</dt>{text}</div>" for term, text in entries.items() if text)
    return f"<dl>{''.join(said)}</dl>"


def counted(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _stats(label: str, stats: Stats) -> str:
    texts = zip(STATS, stats_texts(stats), strict=True)
    said = " · ".join(f"{name} {text}" for name, text in texts if text)
    return f'<dd class="num"><b>{escape(label)}</b> {escape(said)}</dd>'
