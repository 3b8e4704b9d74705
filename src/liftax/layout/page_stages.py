"""Pipelines as a picture: a row for each stage, along the steps, and where it has nothing to do."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from .data import LiftNode
from .page_details import Details
from .staged import Staged
from .wording import human_bytes

_ROWS, _NAMED = 24, 8
_WIDTH, _FITS, _WIDEST = 1120, 640, 34
_ROW, _GAP, _LEFT, _FOOT = 26, 6, 92, 22
_NUMBERED = 15
"""So wide is a step that has the number of its microbatch in it."""


class Pipelines(Details):
    """The pipelines of one layout."""

    def pipelines(self) -> str:
        """A figure for each stack that runs in stages; nothing where none does."""
        same = self.alike.same
        drawn = [
            _figure(lift, lift.staged, self.tint(lift.index, "pipe"))
            for lift in self.layout.lifts
            if lift.staged is not None and same[lift.index] == lift.index
        ]
        return f"<section><h2>Stages</h2>{''.join(drawn)}</section>" if drawn else ""


def _figure(lift: LiftNode, at: Staged, attributes: str) -> str:
    path = "/" + "/".join(lift.path[:-1])
    around = f" × {at.repeats} repeats" if at.repeats > 1 else ""
    facts = [
        (f"{at.steps:,}", "step" if at.steps == 1 else "steps"),
        (f"{at.bubble:.0%}", f"bubble: {at.steps - at.visits:,} of {at.steps:,} steps"),
        (f"{at.microbatches:,}", "microbatches"),
        (human_bytes(at.crossing), "cross from each stage in a step"),
    ]
    tiles = "".join(f'<div class="tile num"><b>{a}</b><span>{b}</span></div>' for a, b in facts)
    said = f"{at.stages} stages{around} along the mesh axis {at.axis!r}"
    more = f", each {at.delay} steps after the one before" if at.delay > 1 else ""
    return (
        f"<figure{attributes}><figcaption><b>{escape(path)}</b>, {escape(lift.title)}: "
        f"{escape(said + more)}</figcaption><div class=tiles>{tiles}</div>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="Stages and steps">'
        f"{_picture(at, said)}</div>{_key(at)}</figure>"
    )


def _picture(at: Staged, said: str) -> str:
    """Stages downward, steps to the right: one box for each repeat of a stage."""
    step = _step(at)
    stages = list(range(at.stages))
    # Of many stages the first ones and the last: the others are drawn the same, moved along.
    shown = stages if at.stages <= _ROWS else [*stages[: _ROWS - 1], stages[-1]]
    width, height = _LEFT + step * at.steps + 16, len(shown) * (_ROW + _GAP) + _FOOT
    label = (
        f"{said}, {at.steps} steps; stage s works from step {at.delay} × s on, for {at.visits} "
        f"steps, and has nothing to do in the other {at.steps - at.visits}"
    )
    parts = [part for y, stage in enumerate(shown) for part in _row(at, stage, y, step)]
    ticks = _ticks(at.steps, step)
    bottom = len(shown) * (_ROW + _GAP) + 12
    parts += [
        f'<text x="{_LEFT + (t + 0.5) * step:.1f}" y="{bottom}" class="mid">{t}</text>'
        for t in ticks
    ]
    return (
        f'<svg role="img" aria-label="{escape(label)}" width="{width:.0f}" height="{height}" '
        f'viewBox="0 0 {width:.0f} {height}">{"".join(parts)}'
        f'<text x="{_LEFT - 10}" y="{bottom}" class="end">step</text></svg>'
    )


def _step(at: Staged) -> float:
    """How wide a step is drawn."""
    # Numbers are worth scrolling for; boxes alone say most where all of them are seen.
    numbered = at.steps * _NUMBERED <= _WIDTH
    return min(_WIDTH / at.steps, _WIDEST) if numbered else _FITS / at.steps


def _row(at: Staged, stage: int, row: int, step: float) -> Iterator[str]:
    top = row * (_ROW + _GAP)
    middle = top + _ROW / 2 + 4

    def box(css: str, start: int, count: int, title: str) -> str:
        return (
            f'<rect class="{css}" x="{_LEFT + start * step + 0.75:.1f}" y="{top + 0.75}" rx="4" '
            f'width="{max(count * step - 1.5, 1):.1f}" height="{_ROW - 1.5}">'
            f"<title>{escape(title)}</title></rect>"
        )

    left_out = "… " if stage > row else ""
    yield f'<text x="{_LEFT - 10}" y="{middle}" class="end">{left_out}stage {stage}</text>'
    first = at.delay * stage
    idle = [(0, first), (first + at.visits, at.steps - first - at.visits)]
    for start, count in idle:
        if count:
            yield box("idle", start, count, f"stage {stage}: nothing to do in {count} steps")
    for r in range(at.repeats):
        start, count = first + r * at.microbatches, at.microbatches
        layers = f"repeats of the pattern {at.group(stage, r)}"
        what = f"stage {stage}, {layers}: steps {start} to {start + count - 1}"
        yield box("run odd" if r % 2 else "run", start, count, what)
        if step >= _NUMBERED:
            for m in range(count):
                x = _LEFT + (start + m + 0.5) * step
                yield f'<text x="{x:.1f}" y="{middle}" class="mid of">{m}</text>'


def _ticks(steps: int, step: float) -> list[int]:
    """The steps whose numbers stand below, the last one among them."""
    every = next(n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if n * step >= 30)
    return [t for t in range(0, steps, every) if t + every <= steps - 1] + [steps - 1]


def _key(at: Staged) -> str:
    """What the boxes mean, and which layers each stage has."""
    stages = [f"<b>{s}</b> {escape(at.numbers(s))}" for s in range(min(at.stages, _NAMED))]
    more = ["…"] if at.stages > _NAMED else []
    works = "the microbatch with that number" if _step(at) >= _NUMBERED else "its microbatches"
    groups = ", one tone for each group of layers in turn" if at.repeats > 1 else ""
    return (
        f'<p class="soft keys"><span><i class="run"></i> works on {works}'
        f'{groups}</span><span><i class="idle"></i> bubble: nothing to do</span>'
        f"<span>repeats of the pattern by stage: {' · '.join([*stages, *more])}</span></p>"
    )
