"""Tables and trees as lines of text that fit a width, whatever it is.

A line is made of segments, some of which belong to a lift, so that a terminal with colours and one
without show the same text. Where a table is too wide, paths are folded in the middle first; where
that is not enough, the columns that may move below go on lines of their own under each row.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

Line = list["Segment"]
_GAP = "  "
_SHORTEST = 28
"""A path is not folded to less than this for the sake of columns that may move below."""


@dataclass(frozen=True)
class Segment:
    """A piece of text: of a lift, by its index, or of none; with the name of a style, or plain."""

    text: str
    lift: int | None = None
    style: str = ""


@dataclass(frozen=True)
class Column:
    """A column: its title, whether it is set to the right, folded in the middle, moved below."""

    title: str
    right: bool = False
    path: bool = False
    below: bool = False


def text_of(line: Iterable[Segment]) -> str:
    """A line without its styles."""
    return "".join(segment.text for segment in line)


def folded(path: str, width: int) -> str:
    """A path in at most ``width`` characters: what is left out is in its middle.

    Example:
      >>> folded("decoder/blocks/attention/query/kernel", 24)
      'decoder/…/query/kernel'
      >>> folded("a_very_long_name_indeed", 12)
      'a_ver…indeed'
    """
    if len(path) <= width:
        return path
    # Depth is shown by indenting, and must survive the folding.
    indent = path[: len(path) - len(path.lstrip(" "))]
    if indent:
        return indent + folded(path[len(indent) :], max(width - len(indent), 3))
    first, *parts = path.split("/")
    # The first name tells which part of the model it is, the last ones what it is.
    while len(parts) > 1:
        parts.pop(0)
        short = "/".join((first, "…", *parts))
        if len(short) <= width:
            return short
    half = (width - 1) // 2
    return path[:half] + "…" + path[len(path) - (width - 1 - half) :]


def wrapped(line: Line, width: int, indent: str = "") -> list[Line]:
    """A line as several that fit, broken after spaces; those after the first are indented."""
    lines: list[Line] = [[]]
    used = 0
    for piece in _pieces(line):
        room = len(piece.text.rstrip())
        if used and used + room > width:
            lines.append([Segment(indent)] if indent else [])
            used = len(indent)
            piece = replace(piece, text=piece.text.lstrip())
        # A word that is wider than the whole line is cut, wherever it breaks.
        while len(piece.text.rstrip()) > width - used > 0 and used <= len(indent):
            lines[-1].append(replace(piece, text=piece.text[: width - used]))
            piece = replace(piece, text=piece.text[width - used :])
            lines.append([Segment(indent)] if indent else [])
            used = len(indent)
        lines[-1].append(piece)
        used += len(piece.text)
    return lines


def _pieces(line: Line) -> Iterator[Segment]:
    """The segments, cut after each space."""
    for segment in line:
        start = 0
        for i, char in enumerate(segment.text):
            # After the last of several spaces, so that two columns of a line stay apart.
            if char == " " and segment.text[i + 1 : i + 2] != " ":
                yield replace(segment, text=segment.text[start : i + 1])
                start = i + 1
        if start < len(segment.text):
            yield replace(segment, text=segment.text[start:])


def table(columns: Sequence[Column], rows: Sequence[Sequence[Line]], width: int) -> list[Line]:
    """A table with its titles and a rule; columns that are empty everywhere are left out.

    Args:
      columns: what the columns are.
      rows: a cell for each column.
      width: the width in characters.
    """
    used = [i for i in range(len(columns)) if any(text_of(row[i]) for row in rows)]
    titles = [[Segment(column.title, style="bold")] for column in columns]
    # One column after the other moves below, the last one first.
    below: list[int] = []
    while True:
        beside = [i for i in used if i not in below]
        movable = [i for i in beside if columns[i].below]
        least = _SHORTEST if movable else 1
        widths = _widths(columns, [titles, *rows], beside, width, least)
        if widths is not None or not movable:
            break
        # The last is the least important; in front, so that they keep their order below.
        below.insert(0, movable[-1])
    if widths is None:
        widths = [max(1, width // len(beside) - len(_GAP))] * len(beside)
    lines = [
        _row(columns, titles, beside, widths),
        [Segment(_GAP.join("─" * w for w in widths), style="dim")],
    ]
    for row in rows:
        lines.append(_row(columns, row, beside, widths))
        under = [row[i] for i in below if text_of(row[i])]
        if under:
            first = text_of(row[beside[0]])
            # Under the name, whatever its depth.
            indent = " " * (len(first) - len(first.lstrip(" ")) + 2)
            joined: Line = [Segment(indent)]
            for i, cell in enumerate(under):
                joined += [*([Segment(" · ")] if i else []), *cell]
            lines += wrapped(joined, width, indent)
    return lines


def _widths(
    columns: Sequence[Column],
    rows: Sequence[Sequence[Line]],
    which: Sequence[int],
    width: int,
    shortest: int,
) -> list[int] | None:
    """The widths of some columns, with paths folded as far as needed; None where they don't fit."""
    widths = [max(len(text_of(row[i])) for row in rows) for i in which]
    over = sum(widths) + len(_GAP) * (len(which) - 1) - width
    paths = [at for at, i in enumerate(which) if columns[i].path]
    while over > 0:
        # A character at a time from the widest: short paths are left whole as long as there are
        # longer ones.
        widest = max(paths, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= shortest:
            return None
        widths[widest] -= 1
        over -= 1
    return widths


def _row(
    columns: Sequence[Column], row: Sequence[Line], which: Sequence[int], widths: Sequence[int]
) -> Line:
    made: Line = []
    for at, (i, width) in enumerate(zip(which, widths, strict=True)):
        cell, text = row[i], text_of(row[i])
        if len(text) > width:
            style = cell[0].style if cell else ""
            cell = [Segment(folded(text, width), cell[0].lift if cell else None, style)]
        space = Segment(" " * (width - len(text_of(cell))))
        made += [Segment(_GAP)] if at else []
        made += [space, *cell] if columns[i].right else [*cell, space]
    while made and not made[-1].text.strip():
        made.pop()
    return made
