"""What commands print with: rich at a terminal, plain lines everywhere else."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from ..errors import MissingExtraError
from ..installed import needed
from ..interrupts import ending_at_once


class CommandError(Exception):
    """A mistake in what the user asked for: its message is printed, and the exit code is 2."""


class Interrupted(CommandError):
    """Ctrl-C, with a message that says what was left behind; the exit code is 130."""


def require(module: str, extra: str) -> Any:
    """Imports a module of an optional extra.

    Raises:
      CommandError: it is not installed; the message says how to install it.
    """
    try:
        with ending_at_once("liftax"):
            top = module.partition(".")[0]
            return needed(module, extra, f"this needs the Python package {top!r}")
    except MissingExtraError as error:
        raise CommandError(str(error)) from error


def printable(text: str) -> str:
    """A text without control characters, which names of files and variables may have.

    >>> printable("a name\\x1b[2J, \\ttwo\\nlines")
    'a name\\\\x1b[2J, \\\\ttwo\\nlines'
    """
    if text.isprintable():
        return text
    # A name in a file could move the cursor, or colour what follows.
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


class Console:
    """Prints to a stream: in colour when it is a terminal and rich is installed.

    Piped, the output is lines of plain text with nothing to strip.
    """

    def __init__(self, out: TextIO | None = None) -> None:
        self.out = out if out is not None else sys.stdout
        self._rich: Any = None
        if self.out.isatty() and importlib.util.find_spec("rich") is not None:
            from rich.console import Console as RichConsole

            self._rich = RichConsole(file=self.out, highlight=False)

    @property
    def fancy(self) -> bool:
        """Whether the output is a terminal's and rich prints it."""
        return self._rich is not None

    def line(self, text: str = "") -> None:
        """Prints a line as it is: square brackets are no markup, and nothing is an escape."""
        text = printable(text)
        if self._rich is not None:
            self._rich.print(text, markup=False, soft_wrap=True)
            return
        try:
            # At once: a pipe's reader sees what a long run does, and a full disk is noticed here.
            print(text, file=self.out, flush=True)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise CommandError(f"the output cannot be written: {error.strerror}") from error

    def rich(self, renderable: object) -> None:
        """Prints one of rich's own objects; only where `fancy`."""
        self._rich.print(renderable)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()
    ) -> None:
        """Prints rows under column titles; the columns numbered in ``right`` are right-aligned."""
        if self._rich is not None:
            from rich import box
            from rich.table import Table
            from rich.text import Text

            table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
            for i, column in enumerate(columns):
                table.add_column(column, justify="right" if i in right else "left")
            for row in rows:
                # Not as rich reads text: what stands in square brackets is markup to it.
                table.add_row(*(Text(cell) for cell in row))
            self._rich.print(table)
            return
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            cells = (
                cell.rjust(width) if i in right else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            self.line("  ".join(cells).rstrip())

    @contextlib.contextmanager
    def progress(self, total: int, unit: str, lines: int = 10) -> Iterator[Callable[..., None]]:
        """Shows how far a loop of ``total`` steps is.

        Yields a function to call after each step, with what is to be shown beside the bar as
        keyword arguments. Piped, about ``lines`` of the steps are printed, the last one among them.
        """
        done = 0

        def described(fields: dict[str, str]) -> str:
            return "  ".join(f"{name} {value}" for name, value in fields.items())

        if self._rich is None:
            # A log would fill with a line for each of many steps.
            every = max(1, -(-total // lines))

            def step(**fields: str) -> None:
                nonlocal done
                done += 1
                if done % every == 0 or done == total:
                    self.line(f"{unit} {done:>{len(str(total))}}/{total}  {described(fields)}")

            yield step
            return

        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
        from rich.progress import TimeRemainingColumn as Remaining

        columns = (
            TextColumn(unit),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[said]}"),
            Remaining(),
        )
        with Progress(*columns, console=self._rich) as bar:
            task = bar.add_task(unit, total=total, said="")

            def advance(**fields: str) -> None:
                bar.update(task, advance=1, said=described(fields))

            yield advance
