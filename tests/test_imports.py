"""The shape of the package: imports run downward, files stay small, JAX's public names only."""

import ast
import functools
import importlib
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import liftax
from tools import house

PACKAGE = Path(liftax.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# A room may import from the rooms in front of it, and rooms on one line from each other.
ORDER = [
    {
        "errors",
        "words",
        "pytrees",
        "equations",
        "jax_private",
        "files",
        "lazy",
        "absent",
        "installed",
        "interrupts",
        "tracebacks",
        "treescoped",
    },
    {"core"},
    {"core.lift"},  # nothing else in core imports it
    {"module"},
    {"transforms"},
    {"spmd"},
    {"layers"},
    {"layout"},
    {"init_sharded"},
    {"stack"},
    {"checkpoint"},
    {"debug", "training"},
    {  # the addresses that flax.linen has for what stands in the rooms
        "activation",
        "attention",
        "batch_apply",
        "combinators",
        "dtypes",
        "fp8_ops",
        "initializers",
        "kw_only_dataclasses",
        "linear",
        "normalization",
        "partitioning",
        "pooling",
        "recurrent",
        "stochastic",
        "summary",
    },
    {""},  # liftax/__init__.py
    {"recipes", "adopt", "practice", "lm"},
    {"cli"},
    {"__main__"},
]
RANK = {room: rank for rank, rooms in enumerate(ORDER) for room in rooms}


@dataclass(frozen=True)
class Import:
    """One imported module or name, as a dotted path without the package's own name."""

    file: Path
    line: int
    target: str
    lazy: bool

    def __str__(self) -> str:
        return f"{self.file.relative_to(PACKAGE)}:{self.line} imports liftax.{self.target}"


def dotted(file: Path) -> str:
    """`core/scope.py` -> `core.scope`; a package is its folder's name."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {dotted(file): file for file in FILES}


def room(module: str) -> str:
    """The room that a module belongs to: the longest name in `ORDER` that contains it."""
    parts = module.split(".")
    names = (".".join(parts[:n]) for n in range(len(parts), 0, -1))
    return next((name for name in names if name in RANK), "")


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(tree: ast.AST, lazy: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """All nodes, and whether they stand in a function; not what only a type checker sees."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        inside = lazy or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        yield child, inside
        yield from nodes(child, inside)


@functools.cache
def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def targets(file: Path, node: ast.AST) -> Iterator[str]:
    """What an import statement names, absolute."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        source = node.module or ""
        if node.level:
            here = ["liftax", *filter(None, dotted(file).split("."))]
            if file.name != "__init__.py":
                here.pop()
            base = here[: len(here) - node.level + 1]
            source = ".".join([*base, *filter(None, [source])])
        yield from (f"{source}.{alias.name}" for alias in node.names)


def imports(file: Path) -> Iterator[Import]:
    """The imports of liftax's own modules, each resolved to a module that exists."""
    for node, lazy in nodes(parsed(file)):
        for target in targets(file, node):
            if target.partition(".")[0] != "liftax":
                continue
            parts = target.split(".")[1:]
            while parts and ".".join(parts) not in MODULES:
                parts.pop()
            yield Import(file, getattr(node, "lineno", 0), ".".join(parts), lazy)


def test_every_file_is_in_a_known_room():
    lost = [name for name in MODULES if name and not room(name)]
    assert not lost, f"give these a place in ORDER: {lost}"


def test_imports_run_downward():
    wrong = [
        str(found)
        for file in FILES
        for found in imports(file)
        if RANK[room(found.target)] > RANK[room(dotted(file))]
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circles():
    """Imports for type checking alone and those inside functions count: a reader follows them."""
    graph = {name: house.imported(file, PACKAGE, set(MODULES)) for name, file in MODULES.items()}
    assert not house.circles(graph)


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_file_is_short(file):
    lines = house.code_lines(file.read_text(encoding="utf-8"))
    assert lines <= 400, f"{lines} lines of code: it holds more than one subject"


def test_non_public_jax_only_in_one_file():
    private = ("jax._src", "jaxlib", "jax.interpreters")
    wrong = []
    for file in FILES:
        if dotted(file) == "jax_private":
            continue
        for node in ast.walk(parsed(file)):
            names = list(targets(file, node))
            if isinstance(node, ast.Attribute):
                names = [ast.unparse(node)]
            for name in names:
                if any(name == p or name.startswith(p + ".") for p in private):
                    line = getattr(node, "lineno", 0)
                    wrong.append(f"{file.relative_to(PACKAGE)}:{line} uses {name}")
    assert not wrong, "\n".join(wrong)


def test_bare_installation_needs_jax_and_numpy_only():
    """What is imported on `import liftax` is the standard library, jax and numpy."""
    import sys

    allowed = {"jax", "numpy", "liftax", *sys.stdlib_module_names}
    wrong = []
    for file in FILES:
        for node, lazy in nodes(parsed(file)):
            for target in targets(file, node):
                if not lazy and target.partition(".")[0] not in allowed:
                    wrong.append(f"{file.relative_to(PACKAGE)} imports {target}")
    assert not wrong, "\n".join(wrong)


STUBS = [dotted(stub.with_suffix(".py")) for stub in sorted(PACKAGE.rglob("*.pyi"))]


@pytest.mark.parametrize("package", STUBS)
def test_public_names_exist(package):
    module = importlib.import_module(f"liftax.{package}".rstrip("."))
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing


def test_a_function_is_not_hidden_by_its_file():
    """`import package.name` binds the file to the package, unless a function has that name."""
    package = importlib.import_module("liftax")
    held = package.scan
    package.scan = types.ModuleType("liftax.scan")
    assert package.scan is held


def test_a_package_is_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(liftax)) is liftax


def test_nothing_but_what_stands_in_flaxs_place_needs_flax():
    code = """
import sys; sys.modules["flax"] = None
import importlib, pkgutil
import jax, jax.numpy as jnp, liftax as nn
for module in pkgutil.walk_packages(nn.__path__, "liftax."):
    if "exercises" not in module.name:
        importlib.import_module(module.name)
run = nn.Pipeline(stages=2, microbatches=2)
stack = nn.Stack(nn.Dense(3), depth=4, run=run)
print(stack.init(jax.random.key(0), jnp.ones((2, 3)))["params"]["block_0"]["kernel"].shape)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(4, 3, 3)\n", done.stderr
