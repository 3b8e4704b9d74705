"""One table of figures: rows are cases, columns are peers, and a ratio to the hand-written one."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
from collections.abc import Mapping
from typing import Any

from benchmarks.timing import Sample

BASELINE = "by hand"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One figure. ``text`` is what is shown; ``value`` None means that there is no figure."""

    text: str
    value: float | None = None
    ratio: float | None = None
    spread: float | None = None


@dataclasses.dataclass
class Table:
    """Figures of several peers; ``notes`` say what is missing and why."""

    name: str
    title: str
    columns: list[str]
    unit: str = ""
    cells: dict[str, dict[str, Cell]] = dataclasses.field(default_factory=dict)
    targets: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)

    def put(self, row: str, column: str, cell: Cell) -> None:
        self.cells.setdefault(row, {})[column] = cell

    def put_text(self, row: str, column: str, text: str) -> None:
        self.put(row, column, Cell(text))

    def put_counts(
        self, row: str, counts: Mapping[str, float], *, base: str | None = BASELINE
    ) -> None:
        """A row of plain numbers, with their ratio to the column ``base``."""
        reference = counts.get(base) if base else None
        for column, value in counts.items():
            ratio = value / reference if reference and column != base else None
            text = f"{value:,.0f}" if ratio is None else f"{value:,.0f} ({ratio:.2f}x)"
            self.put(row, column, Cell(text, value, ratio))

    def put_samples(
        self, row: str, samples: Mapping[str, Sample], *, reference: Sample | None = None
    ) -> None:
        """A row of times, with their ratio to ``reference``, by default the baseline's column."""
        base = reference or samples.get(BASELINE)
        for column, sample in samples.items():
            ratio = sample.ratio(base) if base and sample is not base else None
            text = seconds(sample.median)
            if ratio is not None:
                text += f" ({ratio:.2f}x)"
            self.put(row, column, Cell(text, sample.median, ratio, sample.spread))

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    def note_missing(self, missing: Mapping[str, str]) -> None:
        for name, reason in missing.items():
            self.note(f"{name}: missing, {reason}")

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def grid(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows as text."""
        shown = [c for c in self.columns if any(c in row for row in self.cells.values())]
        header = [self.unit or "case", *shown]
        rows = [
            [name, *(row[c].text if c in row else "-" for c in shown)]
            for name, row in self.cells.items()
        ]
        if self.targets:
            header.append("target")
            for row in rows:
                row.append(self.targets.get(row[0], ""))
        return header, rows

    def markdown(self) -> str:
        header, rows = self.grid()
        lines = ["| " + " | ".join(row) + " |" for row in [header, *rows]]
        lines.insert(1, "|" + " --- |" * len(header))
        return "\n".join(lines)


def seconds(value: float) -> str:
    """A time with three digits: ``1.23 ms``."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.0f} {unit}" if scaled >= 999 else f"{scaled:.3g} {unit}"
    return f"{value / 1e-9:.3g} ns"


def show(table: Table) -> None:
    """Print a table: with rich at a terminal, where it is installed, and plain otherwise."""
    if sys.stdout.isatty() and importlib.util.find_spec("rich") is not None:
        show_rich(table)
        return
    header, rows = table.grid()
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    print(f"\n{table.name}: {table.title}")
    for row in [header, ["-" * w for w in widths], *rows]:
        print("  ".join(text.ljust(w) for text, w in zip(row, widths, strict=True)).rstrip())
    for text in table.notes:
        print(f"  {text}")
    sys.stdout.flush()


def show_rich(table: Table) -> None:
    from rich.console import Console
    from rich.table import Table as RichTable

    header, rows = table.grid()
    drawn = RichTable(title=f"{table.name}: {table.title}", title_justify="left")
    for i, text in enumerate(header):
        drawn.add_column(text, justify="left" if i == 0 else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*row)
    console = Console()
    console.print(drawn)
    for text in table.notes:
        console.print(f"  {text}", style="dim", markup=False)


def machine() -> dict[str, Any]:
    """The machine in general terms."""
    import platform

    import jax

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "load": round(os.getloadavg()[0], 2),
    }


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        import platform

        return platform.processor() or platform.machine()


def error_text(error: BaseException) -> str:
    """One short line about what went wrong."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160]
