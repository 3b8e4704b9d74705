"""Numbers and places put in words, for the table, the page and the findings."""

from __future__ import annotations

from pathlib import Path


def human_bytes(count: float) -> str:
    """`1536` -> `"1.5 KiB"`."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            break
        count /= 1024
    return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"


def human_count(count: float) -> str:
    """`1234567` -> `"1.23 M"`; small numbers are written out."""
    if abs(count) < 100_000:
        return f"{count:,.0f}"
    for unit in ("k", "M", "G", "T"):
        count /= 1000
        if abs(count) < 1000 or unit == "T":
            break
    return f"{count:.3g} {unit}"


def human_seconds(seconds: float) -> str:
    """`0.00123` -> `"1.23 ms"`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if abs(seconds) >= 0.9995 * size:  # what three digits round up to it
            return f"{seconds / size:,.3g} {unit}"
    return f"{seconds * 1e6:,.3g} µs"


def short_file_line(file_line: str | None) -> str:
    """The last parts of a file name, enough to find it: `pkg/model.py:12`."""
    if not file_line:
        return ""
    file, _, line = file_line.rpartition(":")
    path = Path(file)
    try:
        # As an editor's terminal takes it, to be clicked on.
        path = path.relative_to(Path.cwd())
    except ValueError:
        pass
    parts = path.parts
    if path.is_absolute() or len(parts) > 3:
        parts = parts[-2:]
    return f"{'/'.join(parts)}:{line}"
