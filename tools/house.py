"""The figures of the house, counted: `python tools/house.py [FOLDER]`.

What CONTRIBUTING asks of the code (short files, comments that argue, types that say something,
no reaching into another file's private parts, no circle) is counted here, so that a change can be
held against the state before it:

  code lines        lines that hold code: no blank lines, comments or docstrings
  comments          comment lines for 100 code lines, directives such as `# noqa` left out
  Any               annotations that say `Any` anywhere, of all annotations
  private reach     reads of `other._name` where no class or function of the file has `_name`
  circles           groups of files that import each other, counting imports for type checking
                    only and those inside functions
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOMS = ("core", "lift", "module", "transforms", "stack")
"""Where `Any` and comments are counted apart: what a reader of a lift walks through."""

_LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
_PUBLIC = {"_replace", "_asdict", "_fields", "_make"}  # of every NamedTuple
_DIRECTIVE = re.compile(r"#\s*(noqa|type:|pragma|fmt:)")


@dataclass
class Figures:
    """What is counted of one file, or of several together."""

    code: int = 0
    comments: int = 0
    annotations: int = 0
    any: int = 0
    reach: list[str] = field(default_factory=list)

    def __iadd__(self, other: Figures) -> Figures:
        self.code += other.code
        self.comments += other.comments
        self.annotations += other.annotations
        self.any += other.any
        self.reach += other.reach
        return self


def code_lines(text: str) -> int:
    """Returns the number of lines that hold code.

    Example:
      >>> code_lines('# why\\nx = 1\\n\\n')
      1
    """
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _LAYOUT:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        # A string that stands alone: a docstring, or one below an attribute.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                lines.difference_update(range(node.lineno, (node.end_lineno or 0) + 1))
    return len(lines)


def comment_lines(text: str) -> int:
    """Returns the number of comment lines.

    Example:
      >>> comment_lines('# why\\nimport os  # noqa\\n')
      1
    """
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(t.type == tokenize.COMMENT and not _DIRECTIVE.match(t.string) for t in tokens)


def annotations(tree: ast.AST) -> Iterator[ast.expr]:
    """Yields the annotations of arguments, results, variables and fields."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.arg, ast.AnnAssign)) and node.annotation is not None:
            yield node.annotation
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.returns is not None:
            yield node.returns


def private_reads(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yields the lines and names of private attributes that belong to another file."""
    own: set[str] = set(_PUBLIC)
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
            own.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if node.value.id in ("self", "cls"):
                own.add(node.attr)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Assign):
            own.update(t.id for t in node.targets if isinstance(t, ast.Name))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_"):
            if not node.attr.startswith("__") and node.attr not in own:
                yield node.lineno, f"{ast.unparse(node.value)}.{node.attr}"
        elif isinstance(node, ast.ImportFrom) and node.level:
            for alias in node.names:
                if alias.name.startswith("_") and not alias.name.startswith("__"):
                    yield node.lineno, f"import {alias.name}"


def figures_of(file: Path) -> Figures:
    """Counts one file."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = list(annotations(tree))
    return Figures(
        code_lines(text),
        comment_lines(text),
        len(found),
        sum(re.search(r"\bAny\b", ast.unparse(a)) is not None for a in found),
        [f"{file}:{line} {name}" for line, name in private_reads(tree)],
    )


def dotted(file: Path, root: Path) -> str:
    """Returns `core.scope` for `core/scope.py`; a package is its folder's name."""
    parts = file.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path, root: Path, modules: set[str]) -> set[str]:
    """Returns the files of the package that a file imports, wherever in it the import stands."""
    here = dotted(file, root)
    package = here if file.name == "__init__.py" else here.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        base = package.split(".") if package else []
        base = base[: len(base) - node.level + 1]
        for alias in node.names:
            parts = [*base, *filter(None, (node.module or "").split(".")), alias.name]
            while parts and ".".join(parts) not in modules:
                parts.pop()
            target = ".".join(parts)
            # `from . import sibling` names the package as well; only the sibling is meant.
            if target != here and not here.startswith(target + ".") and target:
                found.add(target)
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Returns the groups of names that reach each other.

    Example:
      >>> circles({'a': {'b'}, 'b': {'a'}, 'c': {'a'}})
      [['a', 'b']]
    """
    reached = {name: _reach(graph, name) for name in graph}
    groups = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return sorted(list(group) for group in groups)


def _reach(graph: dict[str, set[str]], name: str) -> set[str]:
    seen: set[str] = set()
    open_ = [name]
    while open_:
        for other in graph.get(open_.pop(), ()):
            if other not in seen:
                seen.add(other)
                open_.append(other)
    return seen


def report(root: Path) -> str:
    """Returns the figures of a package as lines of text."""
    files = sorted(root.rglob("*.py"))
    by_file = {file: figures_of(file) for file in files}
    whole, rooms = Figures(), Figures()
    for file, found in by_file.items():
        whole += found
        if file.relative_to(root).parts[0] in ROOMS:
            rooms += found
    longest = max(files, key=lambda file: by_file[file].code)
    modules = {dotted(file, root) for file in files}
    graph = {dotted(file, root): imported(file, root, modules) for file in files}
    groups = circles(graph)

    def share(part: int, of: int) -> str:
        return f"{100 * part / max(of, 1):.1f}"

    lines = [
        f"files                      {len(files)}",
        f"code lines                 {whole.code}",
        f"longest file               {by_file[longest].code} ({longest.relative_to(root)})",
        f"comments per 100 lines     {share(whole.comments, whole.code)}"
        f"; in {', '.join(ROOMS)}: {share(rooms.comments, rooms.code)}",
        f"annotations with Any, %    {share(whole.any, whole.annotations)}"
        f"; in {', '.join(ROOMS)}: {share(rooms.any, rooms.annotations)}",
        f"private reach              {len(whole.reach)}",
        f"circles of imports         {len(groups)}",
    ]
    return "\n".join([*lines, *("  " + " ".join(group) for group in groups)])


def rooms(root: Path) -> str:
    """Returns the figures of each folder of a package as lines of text."""
    found: dict[str, Figures] = {}
    for file in sorted(root.rglob("*.py")):
        found.setdefault(str(file.parent.relative_to(root)), Figures()).__iadd__(figures_of(file))
    lines = [f"{'room':20} code lines  comments per 100  Any, %"]
    for room, of in found.items():
        comments, any_ = 100 * of.comments / max(of.code, 1), 100 * of.any / max(of.annotations, 1)
        lines.append(f"{room:20} {of.code:10} {comments:17.1f} {any_:7.1f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="src/liftax", type=Path)
    parser.add_argument("--rooms", action="store_true", help="count each folder too")
    parser.add_argument("--reach", action="store_true", help="list the private reads")
    options = parser.parse_args()
    print(report(options.folder))
    if options.rooms:
        print(rooms(options.folder))
    if options.reach:
        for file in sorted(options.folder.rglob("*.py")):
            print(*figures_of(file).reach, sep="\n")


if __name__ == "__main__":
    main()
