"""What a page says of one array or one lift where it is pointed at, and the colours of lifts."""

from __future__ import annotations

from html import escape

from .data import ROLE_WORDS, LayoutData, LiftNode, Stats, VariableLayout
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
        lifts = self.layout.lifts
        shape = "(" + ", ".join(map(str, v.shape)) + ("," if len(v.shape) == 1 else "") + ")"
        facts = f"{counted(v.elements, 'element')}, {human_bytes(v.bytes)}"
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

        if v.stats is not None:
            name = v.slice_label
            said = [_stats("all", v.stats)]
            said += [_stats(f"{name} {i}", one) for i, one in enumerate(v.per_layer[:_SLICES])]
            more = len(v.per_layer) - _SLICES
            said += [f"<dd>and {more:,} more</dd>"] if more > 0 else []
            parts.append(f"<div><dt>Values</dt>{''.join(said)}</div>")
        return "".join(parts) + "</dl>"

    def lift_details(self, lift: LiftNode) -> str:
        facts = []
        if lift.axis_name:
            facts.append(f"the axis is called <b>{escape(lift.axis_name)}</b>")
        if lift.carry:
            facts.append("a carry goes from each iteration to the next")
        if lift.path:
            facts.append(f"at <code>{escape('/'.join(lift.path))}</code>")
        if lift.lifted_at:
            facts.append(f"lifted in <code>{escape(lift.lifted_at)}</code>")
        if lift.called_at and lift.made_at:
            facts.append(f"called in <code>{escape(short_file_line(lift.called_at))}</code>")
        if lift.where:
            facts.append(f"body in <code>{escape(lift.where)}</code>")
        shapes = (("carries", lift.carries), ("takes", lift.takes), ("gives", lift.gives))
        facts += [
            f"an iteration {word} <code>{escape(said)}</code>" for word, said in shapes if said
        ]
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
            if self.alike.same[lift.index] == lift.index
        )


def _hue(i: int) -> int:
    return _HUES[i] if i < len(_HUES) else round(i * 137.508) % 360


def counted(n: int, word: str) -> str:
    return f"{n:,} {word}" if n == 1 else f"{n:,} {word}s"


def _stats(label: str, stats: Stats) -> str:
    texts = zip(STATS, stats_texts(stats), strict=True)
    said = " · ".join(f"{name} {text}" for name, text in texts if text)
    return f'<dd class="num"><b>{escape(label)}</b> {escape(said)}</dd>'
