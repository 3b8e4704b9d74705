"""Source code that imports flax.linen, with its imports swapped and all else left as it is.

The code is read by Python's own parser, and only the spans of text that name flax are replaced, so
every space and comment elsewhere stays.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from .. import absent
from ..core.frozen_dict import NAMES as FROZEN
from .places import HOMES

_FLAX = re.compile(rb"\bflax\.(?:linen|core|errors)\b")


@dataclass
class Note:
    """Something that was left: a line of the source, and why."""

    line: int
    text: str


@dataclass
class Rewritten:
    """What came of one source.

    Attributes:
      text: the new source; the old one where nothing changes.
      to_flax: what stays flax's, as it should.
      to_person: what needs a person.
    """

    text: str
    to_flax: list[Note] = field(default_factory=list)
    to_person: list[Note] = field(default_factory=list)


def rewritten(source: str) -> Rewritten:
    """Swaps the imports of flax.linen in a source.

    Raises:
      SyntaxError: it is no Python that this Python reads.

    Example:
      >>> from liftax.adopt.rewriting import rewritten
      >>> rewritten('from flax import linen as nn, struct  # layers').text
      'import liftax as nn\\nfrom flax import struct  # layers'
    """
    if not re.search(r"\bflax\b", source):
        return Rewritten(source)
    return _Source(source).rewritten()


@functools.cache
def _has(home: str, name: str) -> bool:
    return hasattr(importlib.import_module(home), name)


@functools.cache
def _known(home: str) -> list[str]:
    return dir(importlib.import_module(home))


def _home_of(module: str, name: str) -> str | None:
    """The module of liftax that has a name of one of flax's."""
    homes = [home for home in HOMES[module] if home.startswith("liftax")]
    return next((home for home in homes if _has(home, name)), None)


def _is_frozen(module: str, name: str) -> bool:
    return module in ("flax.core", "flax.core.scope", "flax.linen") and name in FROZEN


class _Source:
    """One source, and what is to be replaced in it."""

    def __init__(self, source: str):
        self.source = source.encode()
        # Cells of notebooks have `await` outside of functions.
        self.tree = compile(
            source, "<source>", "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        )
        starts = [0]
        for line in self.source.splitlines(keepends=True):
            starts.append(starts[-1] + len(line))
        self.starts = starts
        self.edits: dict[tuple[int, int], bytes] = {}
        self.result = Rewritten(source)
        self.modules: dict[str, str] = {}  # name -> the module of flax that it is bound to
        self.flax_uses = 0  # of the name `flax`, that stay
        self.homes: set[str] = set()  # modules of liftax that are used by their full name
        self.imported: set[str] = set()  # those of them that the module imports already

    def rewritten(self) -> Rewritten:
        imports = [n for n in ast.walk(self.tree) if isinstance(n, (ast.Import, ast.ImportFrom))]
        imports.sort(key=lambda node: node.lineno)
        for there in self.tree.body:
            if isinstance(there, ast.Import):
                self.imported.update(f"import {a.name}" for a in there.names if not a.asname)
        for node in imports:
            self._bind(node)
        for chain in _chains(self.tree):
            self._use(chain)
        for annotation in _annotations(self.tree):
            self._annotation(annotation)
        for node in imports:
            if isinstance(node, ast.Import):
                self._import(node)
            elif node.level == 0 and node.module is not None:
                self._import_from(node, node.module)
        new = self.source
        for (start, end), text in sorted(self.edits.items(), reverse=True):
            new = new[:start] + text + new[end:]
        self.result.text = new.decode()
        for notes in (self.result.to_flax, self.result.to_person):
            notes.sort(key=lambda note: note.line)
        return self.result

    # --- places in the text ---------------------------------------------------

    def _span(self, node: ast.stmt | ast.expr) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start = self.starts[node.lineno - 1] + node.col_offset
        return start, self.starts[node.end_lineno - 1] + node.end_col_offset

    def _replace(self, node: ast.stmt | ast.expr, text: str) -> None:
        self.edits[self._span(node)] = text.encode()

    def _put_statements(self, node: ast.stmt, statements: list[str]) -> None:
        """Puts statements in the place of one, below each other if it is alone on its line."""
        start, end = self._span(node)
        before = self.source[self.starts[node.lineno - 1] : start]
        if b"#" in self.source[start:end]:
            self._person(node, "comments inside this import: split it by hand")
            return
        if not statements and not before.strip():
            self.edits[self.starts[node.lineno - 1], self.starts[node.lineno]] = b""
            return
        between = "; " if before.strip() else "\n" + before.decode()
        self.edits[start, end] = between.join(statements).encode()

    def _person(self, node: ast.stmt | ast.expr, text: str) -> None:
        self.result.to_person.append(Note(node.lineno, text))

    def _flaxs(self, node: ast.stmt | ast.expr, text: str) -> None:
        note = Note(node.lineno, text)
        if note not in self.result.to_flax:
            self.result.to_flax.append(note)

    def _missing(self, node: ast.stmt | ast.expr, module: str, name: str) -> None:
        home = HOMES[module][0]
        self._person(node, absent.told(home, name, _known(home)))

    # --- names and what is read of them ---------------------------------------

    def _bind(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.Import):
                if alias.asname:
                    self.modules[alias.asname] = alias.name
                elif alias.name.partition(".")[0] == "flax":
                    self.modules["flax"] = "flax"
            elif node.level == 0:
                self.modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        self.modules = {
            name: module
            for name, module in self.modules.items()
            if module == "flax" or module in HOMES
        }

    def _use(self, chain: list[ast.expr]) -> None:
        """Reads `flax.linen.Dense` or `nn.Dense`, given as its parts, the name first."""
        root = chain[0]
        assert isinstance(root, ast.Name)
        module = self.modules.get(root.id)
        if module is None:
            return
        by_full_name = module == "flax"
        at = 0
        names = [part.attr for part in chain[1:] if isinstance(part, ast.Attribute)]
        while at < len(names) and f"{module}.{names[at]}" in HOMES:
            module, at = f"{module}.{names[at]}", at + 1
        name = names[at] if at < len(names) else None
        if module == "flax":
            self.flax_uses += 1
            if name is not None:
                self._flaxs(root, f"flax.{name}")
            return
        home = HOMES[module][0] if name is None else _home_of(module, name)
        if by_full_name and name is not None and _is_frozen(module, name):
            self.flax_uses += 1
            self._flaxs(root, f"{module}.{name}")
        elif home is None:
            assert name is not None
            self.flax_uses += by_full_name
            self._missing(root, module, name)
        elif by_full_name:
            self.homes.add(home)
            self._replace(chain[at], home)

    def _annotation(self, node: ast.Constant) -> None:
        """Reads an annotation that is written as text."""
        if self.modules.get("flax") != "flax":
            return
        start, end = self._span(node)
        literal = self.source[start:end]
        for found in _FLAX.finditer(literal):
            if found[0] == b"flax.linen":
                self.edits[start + found.start(), start + found.end()] = b"liftax"
                self.homes.add("liftax")
            else:
                self.flax_uses += 1
                self._person(node, f"{found[0].decode()} in an annotation that is text")

    # --- import statements ----------------------------------------------------

    def _import(self, node: ast.Import) -> None:
        kept: list[str] = []
        new: list[str] = []
        for alias in node.names:
            written = ast.unparse(alias)
            if alias.asname and alias.name in HOMES:
                new.append(f"import {HOMES[alias.name][0]} as {alias.asname}")
            elif alias.name == "flax" and not alias.asname:
                kept += ["flax"] if self.flax_uses or not self.homes else []
                new += self._by_full_name()
            elif alias.name in HOMES:
                kept += ["flax"] if self.flax_uses and "flax" not in kept else []
                new += [line for line in self._by_full_name() if line not in new]
                new = new or [f"import {HOMES[alias.name][0]}"]
            else:
                kept.append(written)
        if not new:
            return
        if node in self.tree.body:  # once for the whole module
            new = [line for line in new if line not in self.imported]
            self.imported.update(new)
        statements = ([f"import {', '.join(kept)}"] if kept else []) + new
        self._put_statements(node, statements)

    def _by_full_name(self) -> list[str]:
        """The imports for what is used by its full name."""
        return [f"import {home}" for home in sorted(self.homes)]

    def _import_from(self, node: ast.ImportFrom, module: str) -> None:
        if module != "flax" and module not in HOMES:
            if module.partition(".")[0] == "flax":
                self._flaxs(node, module)
            return
        kept: list[str] = []
        plain: list[str] = []
        by_home: dict[str, list[str]] = {}
        for alias in node.names:
            written, name = ast.unparse(alias), alias.name
            if module == "flax" and name == "linen":
                plain.append(f"import liftax as {alias.asname or name}")
                continue
            home = self._home_of_import(node, module, name)
            if home is None:
                kept.append(written)
            else:
                by_home.setdefault(home, []).append(written)
        if not plain and not by_home:
            return
        if not kept and not plain and len(by_home) == 1:
            # Only the module's name changes: names, parentheses and comments stay.
            start, end = self._span(node)
            found = re.compile(rb"from\s+([\w.]+)").match(self.source, start, end)
            assert found is not None
            self.edits[found.span(1)] = next(iter(by_home)).encode()
            return
        news = [f"from {home} import {', '.join(names)}" for home, names in by_home.items()]
        olds = [f"from {module} import {', '.join(kept)}"] if kept else []
        self._put_statements(node, plain + news + olds)

    def _home_of_import(self, node: ast.ImportFrom, module: str, name: str) -> str | None:
        part = f"{module}.{name}"
        if name == "*":
            return HOMES[module][0]
        if part in HOMES:
            package, _, last = HOMES[part][0].rpartition(".")
            return package if last == name else None
        if module == "flax" or _is_frozen(module, name):
            self._flaxs(node, part)
            return None
        home = _home_of(module, name)
        if home is None:
            self._missing(node, module, name)
        return home


def _chains(tree: ast.AST) -> Iterator[list[ast.expr]]:
    """The longest `a.b.c` in a tree: the name `a`, then `a.b`, then `a.b.c`."""
    inner = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Attribute, ast.Name)) or id(node) in inner:
            continue
        chain: list[ast.expr] = [node]
        while isinstance(chain[-1], ast.Attribute):
            chain.append(chain[-1].value)
        if isinstance(chain[-1], ast.Name):
            yield chain[::-1]


def _annotations(tree: ast.AST) -> Iterator[ast.Constant]:
    """The texts in annotations."""
    for node in ast.walk(tree):
        for place in ("annotation", "returns"):
            annotation = getattr(node, place, None)
            if isinstance(annotation, ast.AST):
                for part in ast.walk(annotation):
                    if isinstance(part, ast.Constant) and isinstance(part.value, str):
                        yield part
