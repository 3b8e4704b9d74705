"""Draws call.svg, the road of one call of nn.scan: `python docs/images/make_call.py`."""

from __future__ import annotations

from html import escape
from pathlib import Path

FLOORS = ("modules", "scopes", "arrays")
# (column, floor, name, where it stands)
STOPS = (
    (0, 0, "Stack().apply", "module/run.py"),
    (0, 1, "Detached", "module/detach.py"),
    (1, 1, "Opening", "core/lift/crossing.py"),
    (1, 2, "values, keys", "by role, plain dicts"),
    (2, 2, "jax.lax.scan", "core/lift/scan.py"),
    (3, 2, "one slice", "traced once"),
    (3, 1, "Opening.enter", "new scopes"),
    (3, 0, "Block.__call__", "the user's lines"),
    (4, 0, "its result", "carry, ys"),
    (4, 1, "Opening.written", "what it wrote"),
    (4, 2, "one slice", "out of the body"),
    (5, 2, "stacked arrays", "out of the loop"),
    (5, 1, "write_back", "core/lift/crossing.py"),
    (5, 0, "carry, ys", "to the user's line"),
)
WIDTH, HEIGHT, BOX_W, BOX_H, LEFT, TOP = 168, 108, 146, 54, 96, 28


def place(column: int, floor: int) -> tuple[int, int]:
    """Returns the left upper corner of a box."""
    return LEFT + column * WIDTH, TOP + floor * HEIGHT


def arrow(a: tuple[int, int], b: tuple[int, int]) -> str:
    """Returns an arrow from one box's edge to the next box's edge."""
    (ax, ay), (bx, by) = place(*a), place(*b)
    if ax == bx:
        x1 = x2 = ax + BOX_W // 2
        y1, y2 = (ay + BOX_H, by - 3) if by > ay else (ay, by + BOX_H + 3)
    else:
        y1 = y2 = ay + BOX_H // 2
        x1, x2 = ax + BOX_W, bx - 3
    return f'<path class="road" d="M{x1} {y1} L{x2} {y2}" marker-end="url(#tip)"/>'


def box(column: int, floor: int, name: str, note: str) -> str:
    x, y = place(column, floor)
    middle = x + BOX_W // 2
    kind = "user" if name in ("Block.__call__", "Stack().apply") else "stop"
    return (
        f'<rect class="{kind}" x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="7"/>'
        f'<text class="name" x="{middle}" y="{y + 24}">{escape(name)}</text>'
        f'<text class="note" x="{middle}" y="{y + 42}">{escape(note)}</text>'
    )


def draw() -> str:
    """Returns the picture as SVG."""
    width = LEFT + 6 * WIDTH
    height = TOP + 3 * HEIGHT - 20
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="The road of one call of nn.scan: down from modules over scopes to arrays, '
        f'through jax.lax.scan, and up again">',
        "<style>text{font-family:ui-monospace,monospace;text-anchor:middle;fill:#1b1f24}"
        ".name{font-size:13px;font-weight:600}.note{font-size:11px;fill:#57606a}"
        ".floor{font-size:13px;text-anchor:start;fill:#57606a}"
        ".stop{fill:#f6f8fa;stroke:#8c959f}.user{fill:#fff8c5;stroke:#9a6700}"
        ".level{fill:#fff;stroke:#d0d7de;stroke-dasharray:4 4}"
        ".road{stroke:#0550ae;stroke-width:1.8;fill:none}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#0550ae"/></marker>'
        "</defs>",
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for floor, name in enumerate(FLOORS):
        y = TOP + floor * HEIGHT
        parts.append(
            f'<rect class="level" x="8" y="{y - 16}" width="{width - 20}" height="{BOX_H + 32}" '
            f'rx="9"/><text class="floor" x="20" y="{y + BOX_H // 2 + 4}">{name}</text>'
        )
    stops = [(column, floor) for column, floor, _, _ in STOPS]
    parts += [arrow(a, b) for a, b in zip(stops, stops[1:], strict=False)]
    parts += [box(*stop) for stop in STOPS]
    return "\n".join([*parts, "</svg>"]) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("call.svg").write_text(draw(), encoding="utf-8")
