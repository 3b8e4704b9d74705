"""The lists of lifts, written from their files: `python tools/stubs.py`.

A lift stands in two files, over functions of scopes and over modules. The `__all__` of each says
what of it is public; from these come the lines of the stubs, which a type checker reads and
`liftax.lazy`. A new lift has no list that it must be put into by hand.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent / "src" / "liftax"


class Part(NamedTuple):
    """The lines of a stub that name what is public in the files of a folder.

    Attributes:
      stub: the stub.
      folder: the folder.
      prefix: where the folder is, as an import in the stub says it.
      without: files whose names are not for this stub.
    """

    stub: str
    folder: str
    prefix: str
    without: Collection[str] = ()


PARTS = (
    Part("core/lift/__init__.pyi", "core/lift", "."),
    # `flax.linen.transforms.lift` is a module of the core.
    Part("transforms/__init__.pyi", "transforms", ".", ("own",)),
    # What Linen has for lifts of one's own has its address in Linen, and no other.
    Part("__init__.pyi", "transforms", ".transforms.", ("linen_lifts",)),
)


def public(text: str) -> list[str]:
    """Returns the names that a file says are public, none where it says nothing.

    Example:
      >>> public('__all__ = ["scan"]')
      ['scan']
    """
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []


def lines(part: Part) -> Iterator[str]:
    """Yields the lines of a part, in the order in which ruff sorts imports."""
    for file in sorted((ROOT / part.folder).glob("*.py")):
        if file.stem != "__init__" and file.stem not in part.without:
            names = public(file.read_text(encoding="utf-8"))
            # Classes stand before functions.
            for name in sorted(names, key=lambda name: (not name[0].isupper(), name)):
                yield f"from {part.prefix}{file.stem} import {name} as {name}\n"


def written(part: Part) -> str:
    """Returns the text of a stub with the lines of a part as they should be."""
    old = (ROOT / part.stub).read_text(encoding="utf-8").splitlines(keepends=True)
    mine = re.compile(rf"from {re.escape(part.prefix)}\w+ import ")
    kept = [line for line in old if not mine.match(line)]
    at = next((i for i, line in enumerate(old) if mine.match(line)), len(old))
    return "".join([*kept[:at], *lines(part), *kept[at:]])


def main() -> None:
    for part in PARTS:
        (ROOT / part.stub).write_text(written(part), encoding="utf-8")


if __name__ == "__main__":
    main()
