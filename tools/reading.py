"""What makes one page of many hands: `python tools/reading.py [FOLDER]`.

CONTRIBUTING says how this code is written where a formatter has nothing to say. Listed is what
departs from it:

  imperative   a docstring that begins with an order, "Return the size", where this code tells what
               a function does, "Returns the size", or what it is, "The size"
  argument     a docstring in which an argument's name stands between single backticks: those are
               for names that can be looked up, and `` `` `` for what is code at this place
  divider      a line between parts of a file that is not `# --- what follows ----`, 80 wide
  paragraph    a function of more than 40 lines without an empty one
  comments     a file with fewer than five comments for 100 code lines
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from tools.house import figures_of

Def = ast.FunctionDef | ast.AsyncFunctionDef

_DIVIDER = re.compile(r"^ *#\s*(-{3,}|={3,}|#{3,})")
_GOOD = re.compile(r"^ *# --- \S.* -+$")
_NOUNS = {"A", "Lift", "Stage"}  # which an s makes another word, or more than one
WIDTH = 80
"""Of a divider."""
LONG = 40
"""So many lines a function may have without an empty one."""


class Departure(NamedTuple):
    """A place that is written otherwise."""

    kind: str
    line: int
    text: str


def functions(tree: ast.AST) -> Iterator[Def]:
    """Yields the functions and methods of a file."""
    return (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))


def first_word(function: Def) -> str:
    """Returns the word with which a docstring begins; none where it begins with code."""
    found = re.match(r"[A-Za-z]+\b", ast.get_docstring(function) or "")
    return found[0] if found else ""


def third_person(word: str) -> set[str]:
    """What the third person of a verb may be.

    Example:
      >>> 'Returns' in third_person('Return'), 'Carries' in third_person('Carry')
      (True, True)
    """
    return {f"{word}s", f"{word}es", f"{word[:-1]}ies"}


def departures(text: str, begins: set[str]) -> Iterator[Departure]:
    """Yields what a file has that is written otherwise.

    Args:
      text: the file.
      begins: with which words the docstrings of the package begin. An order is known by its verb,
        which begins others in the third person.
    """
    lines, tree = text.splitlines(), ast.parse(text)
    # An argument may be called what a function of the file is, which can be looked up.
    names = {function.name for function in functions(tree)}
    for function in functions(tree):
        doc, arguments = ast.get_docstring(function) or "", function.args
        word = first_word(function)
        if word not in _NOUNS and third_person(word) & begins:
            yield Departure("imperative", function.lineno, f"{function.name}: {word}")

        for arg in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
            if arg.arg not in names and re.search(rf"(?<!`)`{arg.arg}`(?!`)", doc):
                yield Departure("argument", function.lineno, f"{function.name}: `{arg.arg}`")

        body = function.body[1:] if doc else function.body
        part = lines[body[0].lineno - 1 : function.end_lineno] if body else []
        if len(part) > LONG and all(map(str.strip, part)):
            yield Departure("paragraph", function.lineno, f"{function.name}, {len(part)} lines")

    for number, line in enumerate(lines, 1):
        if _DIVIDER.match(line) and not (_GOOD.match(line) and len(line) == WIDTH):
            yield Departure("divider", number, line.strip())


def files(root: Path) -> Iterator[Path]:
    """Yields the files of a package, but for what learners are given to write."""
    return (f for f in sorted(root.rglob("*.py")) if "exercises" not in f.parts)


def listed(root: Path) -> Iterator[tuple[Path, Departure]]:
    """Yields all departures of a package, file by file."""
    texts = {file: file.read_text(encoding="utf-8") for file in files(root)}
    begins = {first_word(f) for text in texts.values() for f in functions(ast.parse(text))}
    for file, text in texts.items():
        for departure in departures(text, begins - {""}):
            yield file, departure


def silent(root: Path, least: float = 5.0) -> Iterator[tuple[Path, int, float]]:
    """Yields files with few comments: their code lines, and comments for 100 of them."""
    for file in files(root):
        found = figures_of(file)
        # Of a list of names there is nothing to say.
        if found.code >= 40 and 100 * found.comments / found.code < least:
            yield file, found.code, 100 * found.comments / found.code


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="src/liftax", type=Path)
    parser.add_argument("--comments", action="store_true", help="list files with few comments too")
    options = parser.parse_args()
    for file, departure in listed(options.folder):
        print(f"{file}:{departure.line} {departure.kind}: {departure.text}")
    if options.comments:
        for file, code, comments in silent(options.folder):
            print(f"{file} {code} lines, {comments:.1f} comments for 100")


if __name__ == "__main__":
    main()
