"""``liftax migrate``: the imports of flax.linen swapped, in files and notebooks."""

from __future__ import annotations

import argparse
import difflib
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

from .. import files
from ._console import CommandError, Console

HELP = "Swap the imports of flax.linen for liftax in Python files and notebooks."

_SKIPPED = {"node_modules", "site-packages", "__pycache__", "build", "dist", "venv"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments."""
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="files and folders")
    parser.add_argument(
        "--write", action="store_true", help="change the files; without it a diff is printed"
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="print no diff; the exit code is 1 where a file would change or needs a person",
    )
    parser.add_argument(
        "--dirty",
        action="store_true",
        help="write although git has changes that are not committed",
    )


def run(args: argparse.Namespace, console: Console) -> int:
    """Rewrites; the exit code is 0, with --check 1 where something is left to do."""
    if args.write and args.check:
        raise CommandError("--write and --check exclude each other")
    paths = list(_files(args.paths))
    # All of them first: no file is changed where another one may not be.
    if args.write and not args.dirty:
        _check_clean(args.paths)
    changed = left = 0
    for path in paths:
        old, new, notes = _migrated(path)
        if new != old:
            changed += 1
            if args.write:
                with files.replacing(path) as (handle, _):
                    handle.write(new.encode())
            elif not args.check:
                console.line(_diff(path, old, new))
        for line, to_person, text in notes:
            left += to_person
            kind = "needs a person" if to_person else "stays flax's"
            if to_person or not args.check:
                console.line(f"{path}:{line}: {kind}: {text}")
    done = "changed" if args.write else "to change"
    console.line(f"{len(paths)} files read, {changed} {done}, {left} lines need a person")
    return int(args.check and bool(changed or left))


def _files(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        if not path.exists():
            raise CommandError(f"{path}: there is no such file or folder")
        if path.is_file():
            yield path
            continue
        for found in sorted(path.rglob("*")):
            parts = found.relative_to(path).parts
            # What others wrote, or what was generated, is not migrated.
            skipped = any(part.startswith(".") or part in _SKIPPED for part in parts)
            if found.suffix in (".py", ".ipynb") and found.is_file() and not skipped:
                yield found


def _check_clean(paths: list[Path]) -> None:
    """Raises CommandError where git could not give the old files back."""
    for path in paths:
        folder = path if path.is_dir() else path.parent
        command = ["git", "-C", str(folder), "status", "--porcelain", "--", str(path.resolve())]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except FileNotFoundError:
            return
        # Outside of a repository nothing could be given back either way: the user knows.
        if done.returncode == 0 and done.stdout.strip():
            raise CommandError(
                f"{path}: git has changes here that are not committed; commit them first, or "
                f"give --dirty"
            )


def _migrated(path: Path) -> tuple[str, str, list[tuple[int, bool, str]]]:
    """The old text, the new one, and notes: line, whether a person is needed, what it is."""
    from ..adopt.rewriting import rewritten

    try:
        old = path.read_bytes().decode()
        if path.suffix == ".ipynb":
            return _migrated_notebook(old)
        result = rewritten(old)
    except (SyntaxError, UnicodeDecodeError, ValueError) as error:
        line = getattr(error, "lineno", None) or 1
        return "", "", [(line, True, f"cannot be read: {type(error).__name__}")]
    notes = [(note.line, False, note.text) for note in result.to_flax]
    notes += [(note.line, True, note.text) for note in result.to_person]
    return old, result.text, sorted(notes)


_CELL = "#liftax-cell"


def _migrated_notebook(old: str) -> tuple[str, str, list[tuple[int, bool, str]]]:
    """As `_migrated`: the cells are one program, so they are rewritten together."""
    from ..adopt.rewriting import rewritten

    notebook = json.loads(old)
    cells = [c for c in notebook.get("cells", []) if c.get("cell_type") == "code"]
    sources = ["".join(cell["source"]) for cell in cells]
    lines: list[str] = []
    magic: dict[str, str] = {}
    for number, source in enumerate(sources):
        lines.append(f"{_CELL}{number}")  # the cells are found again by these lines
        whole = source.startswith("%%")  # the cell is in another language
        for line in source.split("\n"):
            # IPython's own lines are no Python: a statement stands in for each, and they come back.
            if whole or re.match(r"\s*[%!?]", line) or line.rstrip().endswith("?"):
                space = line[: len(line) - len(line.lstrip())]
                hidden = f"{space}pass  #liftax-line{len(magic)}"
                magic[hidden] = line
                line = hidden
            lines.append(line)
    result = rewritten("\n".join(lines))
    if result.text != "\n".join(lines):
        parts = re.split(rf"^{_CELL}\d+\n", result.text + "\n", flags=re.MULTILINE)[1:]
        for cell, source, part in zip(cells, sources, parts, strict=True):
            text = "\n".join(magic.get(line, line) for line in part[:-1].split("\n"))
            if text != source:
                cell["source"] = text.splitlines(keepends=True)
        # Written as it was, so that the diff shows the cells alone.
        indent = re.match(r"\{\n( +)", old)
        new = json.dumps(notebook, indent=len(indent[1]) if indent else None, ensure_ascii=False)
        new += "\n" * old.endswith("\n")
    else:
        new = old
    notes = []
    for person, found in ((False, result.to_flax), (True, result.to_person)):
        for note in found:
            cell = sum(line.startswith(_CELL) for line in lines[: note.line])
            notes.append((note.line, person, f"code cell {cell}: {note.text}"))
    return old, new, sorted(notes)


def _diff(path: Path, old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(), new.splitlines(), f"{path}", f"{path}", lineterm="", n=1
    )
    return "\n".join(lines)
