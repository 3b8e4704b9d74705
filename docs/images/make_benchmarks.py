"""Draws the figures of docs/benchmarks.md from its tables: `python docs/images/make_benchmarks.py`.

The tables are what `python -m benchmarks --docs docs/benchmarks.md` has measured and written.
"""

from __future__ import annotations

import math
import re
from html import escape
from pathlib import Path

FOLDER = Path(__file__).parent
PAGE = FOLDER.parent / "benchmarks.md"
# Okabe and Ito's colours, which people with any colour vision can tell apart.
COLOURS = {
    "by hand": "#666666",
    "liftax": "#d55e00",
    "flax.linen": "#0072b2",
    "flax.nnx": "#56b4e9",
    "equinox": "#009e73",
    "haiku": "#cc79a7",
    "haliax": "#e69f00",
}
UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
WIDTH, LEFT, RIGHT, TOP = 760, 250, 110, 44

Row = dict[str, float]


def table(text: str, name: str) -> dict[str, Row]:
    """The figures of one table: row -> column -> number; times are in ms."""
    block = text.partition(f"<!-- figures: {name} -->")[2].partition("<!-- end of figures -->")[0]
    lines = [line for line in block.splitlines() if line.startswith("|")]
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {
        row[0]: {column: number(cell) for column, cell in zip(head, row, strict=True)
                 if column in COLOURS and re.match(r"[\d.]", cell)}
        for row in rows
    }  # fmt: skip


def number(cell: str) -> float:
    value, unit = re.match(r"([\d.,]+) ?(us|ms|s)?\b", cell).groups()  # type: ignore[union-attr]
    return float(value.replace(",", "")) * UNITS.get(unit, 1.0)


def counts(text: str, row: str) -> dict[str, Row]:
    """A row of the table of traces as rows by depth."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {row}"))
    ours, linen = [[int(n) for n in cell.split()] for cell in line.split("|")[2:4]]
    return {
        str(depth): {"liftax": a, "flax.linen": b}
        for depth, (a, b) in enumerate(zip(ours, linen, strict=True), 1)
    }


def shown(value: float, unit: str) -> str:
    """A quantity in three digits."""
    larger = {"ms": (1000, "s"), "KiB": (1024, "MiB")}
    size, above = larger.get(unit, (math.inf, ""))
    value, unit = (value / size, above) if value >= size else (value, unit)
    return f"{value:.3g} {unit}".rstrip()


def svg(height: int, title: str, body: list[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" font-size="13" role="img">'
        f"<title>{escape(title)}</title>"
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>'
        f'<text x="20" y="26" font-size="15" font-weight="600" fill="#222222">'
        f"{escape(title)}</text>" + "".join(body) + "</svg>\n"
    )


def text_at(x: float, y: float, text: str, anchor: str = "start", colour: str = "#444444") -> str:
    at = f'x="{x:.1f}" y="{y:.1f}"'
    return f'<text {at} text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def lines(title: str, rows: dict[str, Row], across: str, unit: str) -> str:
    """Curves over depth, on a logarithmic scale, each with its name at its end."""
    height, bottom, left = 340, 290, 70
    values = [value for row in rows.values() for value in row.values()]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    depths = list(rows)

    def x(i: int) -> float:
        return left + i * (WIDTH - left - RIGHT) / (len(depths) - 1)

    def y(value: float) -> float:
        return bottom - (math.log10(value) - low) / (high - low) * (bottom - TOP - 10)

    body = [text_at(left, height - 12, across)]
    for power in range(low, high + 1):
        at = y(10**power)
        body.append(f'<path d="M{left} {at:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>')
        body.append(text_at(left - 8, at + 4, shown(10**power, unit), "end"))
    body += [text_at(x(i), bottom + 20, depth, "middle") for i, depth in enumerate(depths)]
    ends: list[float] = []
    peers = sorted({p for row in rows.values() for p in row}, key=lambda p: rows[depths[-1]][p])
    for peer in peers:
        points = [(x(i), y(row[peer])) for i, row in enumerate(rows.values()) if peer in row]
        path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
        wide = 3 if peer == "liftax" else 1.8
        body.append(
            f'<path d="M{path}" fill="none" stroke="{COLOURS[peer]}" stroke-width="{wide}"/>'
        )
        # Names that would lie on each other move apart, upwards.
        at = min([points[-1][1], *(end - 15 for end in ends[-1:])])
        ends.append(at)
        body.append(text_at(points[-1][0] + 8, at + 4, peer, colour=COLOURS[peer]))
    return svg(height, title, body)


def bars(title: str, rows: dict[str, Row], unit: str, log: bool = False) -> str:
    """Rows of bars, one for each library, from zero; or on a logarithmic scale."""
    values = [value for row in rows.values() for value in row.values()]
    high, low = max(values), min(values) / 2
    room = WIDTH - LEFT - RIGHT
    y, body = TOP + 8, []
    for name, row in rows.items():
        body.append(text_at(20, y + 11, name.removeprefix("scan, ")))
        for peer, value in row.items():
            share = math.log(value / low) / math.log(high / low) if log else value / high
            body.append(text_at(LEFT - 6, y + 11, peer, "end", COLOURS[peer]))
            body.append(
                f'<rect x="{LEFT}" y="{y}" width="{max(share * room, 1):.1f}" height="12" '
                f'fill="{COLOURS[peer]}"/>'
            )
            body.append(text_at(LEFT + max(share * room, 1) + 6, y + 11, shown(value, unit)))
            y += 16
        y += 10
    if log:
        body.append(text_at(LEFT, y + 10, "logarithmic scale"))
        y += 18
    return svg(y + 6, title, body)


def some(rows: dict[str, Row], *names: str) -> dict[str, Row]:
    return {name: rows[name] for name in names}


def draw() -> dict[str, str]:
    """Returns each picture by its name."""
    text = PAGE.read_text(encoding="utf-8")
    init = some(table(text, "init"), "scanned, warm, eager", "unrolled, warm, eager")
    memory = {
        name: {peer: value / 1024 for peer, value in row.items()}
        for name, row in table(text, "stack-memory").items()
    }
    memory = {name: row for name, row in memory.items() if not name.startswith(("loop", "scan of"))}
    return {
        "bench-nested.svg": lines(
            "Tracing nested scans around a transformer block",
            table(text, "nested-transformer"), "scans around the block", "ms",
        ),
        "bench-traces.svg": lines(
            "How often the body runs as Python in one call", counts(text, "scan: "),
            "scans around it", "",
        ),
        "bench-trace.svg": bars(
            "Trace time of a 12-layer transformer",
            some(table(text, "trace"), "apply, scanned", "gradient, scanned", "apply, unrolled"),
            "ms",
        ),
        "bench-init.svg": bars("init, the second time and later", init, "ms", log=True),
        "bench-steps.svg": bars("A training step", table(text, "steps"), "ms"),
        "bench-memory.svg": bars("Temporary memory of a gradient, by plan", memory, "KiB"),
    }  # fmt: skip


if __name__ == "__main__":
    for name, picture in draw().items():
        (FOLDER / name).write_text(picture, encoding="utf-8")
