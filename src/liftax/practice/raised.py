"""What the learner's code raises, as a verdict with the line that is to blame."""

from __future__ import annotations

import ast
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax

from ..errors import LiftaxError
from .verdict import Failed


@contextmanager
def at_the_line(path: str, source: str) -> Iterator[None]:
    """Makes a verdict of whatever the learner's code raises, with the line that is to blame."""
    try:
        yield
    except Failed:
        raise
    except SyntaxError as error:
        raise Failed("runs", f"SyntaxError: {error.msg}", **_line(source, error.lineno)) from None
    except SystemExit:
        said = "it calls sys.exit(), which ends the program; an answer only defines names"
        raise Failed("runs", said, **_line(source, _blamed(path))) from None
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        fields = _line(source, _blamed(path))
        holes = _holes(source)
        if holes:
            count = "a hole is" if len(holes) == 1 else f"{len(holes)} holes are"
            said = f"{count} left to fill: `...` in line {', '.join(map(str, holes))}"
            raise Failed("runs", said, **_line(source, holes[0])) from None
        if isinstance(error, LiftaxError):
            raise Failed("runs", str(error), code=error.code, **fields) from None
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            said = "it asks for more memory than an answer may have"
            raise Failed("runs", said, **fields) from None
        said = _said(error)
        raise Failed("runs", said, **fields) from None


def _said(error: BaseException) -> str:
    """An error of Python's or JAX's in a few lines, with what liftax notes on it."""
    lines = str(error).strip().splitlines() or [""]
    if isinstance(error, jax.errors.JAXTypeError):
        del lines[1:]  # where JAX traced it: lines of ours, and the address of a page
    notes = [line for note in getattr(error, "__notes__", ()) for line in note.splitlines()]
    kept = [line for line in notes if "JAX" not in line and not line.startswith("---")]
    return "\n".join([f"{type(error).__name__}: {lines[0]}", *lines[1:6], *kept[:4]])


def _blamed(path: str) -> int | None:
    """The last line of the learner's file that an error passed through."""
    error = sys.exception()
    frames = traceback.extract_tb(error.__traceback__ if error else None)
    return next((f.lineno for f in reversed(frames) if f.filename == path), None)


def _line(source: str, number: int | None) -> dict[str, Any]:
    lines = source.splitlines()
    if number is None or not 1 <= number <= len(lines):
        return {}
    return {"line": number, "source": lines[number - 1]}


def _holes(source: str) -> list[int]:
    """The lines with a `...` to be filled: not one in a subscript, as `x[..., 0]` has."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    inside = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript)
        for inner in ast.walk(node.slice)
    }
    return sorted(
        {
            node.lineno
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and node.value is Ellipsis and id(node) not in inside
        }
    )
