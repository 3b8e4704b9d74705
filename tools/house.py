"""The figures of the house, counted: `python tools/house.py [FOLDER]`.

What CONTRIBUTING asks of the code (short files, comments that argue, types that say something,
no reaching into another file's private parts, no circle) is counted here, so that a change can be
held against the state before it:

  code lines        lines that hold code: no blank lines, comments or docstrings
  comments          comment lines for 100 code lines, directives such as `# noqa` left out
  Any               annotations that say `Any` anywhere, of all annotations
  private reach     reads of `other._name` where no class or function of the file has `_name`
  lifts             code lines of a lift in `core/lift` and of its form over modules: what its name
                    stands for and what in the file only it uses; in brackets those that say its
                    arguments (the first lines of functions and classes, and fields)
  circles           groups of files that import each other, counting imports for type checking
                    only and those inside functions
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
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


def by_room(root: Path) -> dict[str, Figures]:
    """Counts each folder of a package."""
    found: dict[str, Figures] = {}
    for file in sorted(root.rglob("*.py")):
        found.setdefault(str(file.parent.relative_to(root)), Figures()).__iadd__(figures_of(file))
    return found


def rooms(root: Path) -> str:
    """Returns the figures of each folder of a package as lines of text."""
    lines = [f"{'room':20} code lines  comments per 100  Any, %"]
    for room, of in by_room(root).items():
        comments, any_ = 100 * of.comments / max(of.code, 1), 100 * of.any / max(of.annotations, 1)
        lines.append(f"{room:20} {of.code:10} {comments:17.1f} {any_:7.1f}")
    return "\n".join(lines)


def lift_lines(text: str, name: str) -> tuple[int, int]:
    """Returns the code lines of a lift in its file, and how many of them say its arguments.

    Counted is the definition of the name and, below it, what nothing else in the file uses that
    is a lift or belongs to one. So a lift that is written by another one has the lines of its own.

    Example:
      >>> lift_lines('def f(x):\\n  return _a(x)\\n\\ndef _a(x):\\n  return x\\n', 'f')
      (4, 2)
    """
    found: dict[str, ast.stmt] = {}
    for node in ast.parse(text).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found.update({t.id: node for t in node.targets if isinstance(t, ast.Name)})
    listed = found.pop("__all__", None)
    lifts = set(ast.literal_eval(ast.unparse(listed.value))) if listed else {name}  # type: ignore
    uses = {
        key: {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and n.id in found} - {key}
        for key, node in found.items()
    }
    # Each lift with all that it comes to; what another one comes to is not this one's own. Of two
    # names for one thing the first stands for both.
    first = {id(node): key for key, node in reversed(found.items())}
    lifts = {first[id(found[key])] for key in lifts if key in found}
    reached = {key: {key} | _reach(uses, key) for key in lifts}
    others: set[str] = set().union(*[r for key, r in reached.items() if key != name])
    own = {id(found[key]): found[key] for key in reached[name] - (others - {name})}
    code = arguments = 0
    for node in own.values():
        code += code_lines(_source(text, node))
        arguments += _argument_lines(node)
    return code, arguments


def _source(text: str, node: ast.stmt) -> str:
    """The lines of a statement at the top of a file, its decorators among them."""
    decorators = node.decorator_list if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else []
    first = min([node.lineno, *(d.lineno for d in decorators)])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


def _argument_lines(node: ast.stmt) -> int:
    """How many lines are decorators, parameters, results and fields."""
    if isinstance(node, ast.FunctionDef):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        return max(1, (node.returns or node).lineno - first + 1)
    if not isinstance(node, ast.ClassDef):
        return 0
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign)]
    of_fields = sum((n.end_lineno or n.lineno) - n.lineno + 1 for n in fields)
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)]
    return 1 + len(node.decorator_list) + of_fields + sum(map(_argument_lines, methods))


SMALL = (
    "grad",
    "jvp",
    "vjp",
    "remat",
    "fold_rngs",
    "named_call",
    "add_metadata_axis",
    "while_loop",
)
"""The lifts that hand everything to the engine, and are to be about 30 lines."""


def lifts(root: Path, names: Iterable[str] = SMALL) -> dict[str, list[tuple[int, int] | None]]:
    """Returns the lines of lifts: `lift_lines` in the core, and over modules; None for none."""
    found: dict[str, list[tuple[int, int] | None]] = {}
    for name in names:
        for folder in ("core/lift", "transforms"):
            texts = [f.read_text(encoding="utf-8") for f in sorted((root / folder).glob("*.py"))]
            # Other lifts may be imported under their names: the file that lists it has it.
            here = [t for t in texts if re.search(rf'__all__ = \[[^]]*"{name}"', t)]
            found.setdefault(name, []).append(lift_lines(here[0], name) if here else None)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", nargs="?", default="src/liftax", type=Path)
    parser.add_argument("--rooms", action="store_true", help="count each folder too")
    parser.add_argument("--reach", action="store_true", help="list the private reads")
    parser.add_argument("--lifts", action="store_true", help="count the small lifts too")
    options = parser.parse_args()
    print(report(options.folder))
    if options.rooms:
        print(rooms(options.folder))
    if options.lifts:
        print(f"{'lift':20} code lines (of them arguments): core, over modules")
        for name, both in lifts(options.folder).items():
            shown = ["-" if lines is None else "{} ({})".format(*lines) for lines in both]
            print(f"{name:20} {shown[0]:>10} {shown[1]:>10}")
    if options.reach:
        for file in sorted(options.folder.rglob("*.py")):
            print(*figures_of(file).reach, sep="\n")


if __name__ == "__main__":
    main()
