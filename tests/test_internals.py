"""The page on internals: the files and names that it leads through exist, its picture is drawn."""

import importlib
import importlib.util
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import liftax

DOCS = Path(__file__).parent.parent / "docs"
PACKAGE = Path(liftax.__file__).parent
TEXT = (DOCS / "internals.md").read_text(encoding="utf-8")
PROSE = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
CODE = sorted(set(re.findall(r"`([^`\n]+)`", PROSE)))
FILES = [name for name in CODE if name.endswith(".py")]
NAMES = [name for name in CODE if re.fullmatch(r"_?[A-Z]\w+(\.\w+)?", name)]


def public() -> dict[str, object]:
    """Every name that a file of the package defines."""
    found: dict[str, object] = {}
    for module in pkgutil.walk_packages(liftax.__path__, "liftax."):
        if not module.name.endswith("__main__"):
            found.update(vars(importlib.import_module(module.name)))
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_file_exists(name):
    assert (PACKAGE / name).is_file()


def test_the_names_exist():
    known = {**public(), "ScanBlock": type, "Block": type}
    assert len(NAMES) > 15
    for name in NAMES:
        owner, _, member = name.partition(".")
        assert owner in known, name
        assert not member or inspect.getattr_static(known[owner], member, None), name


def test_the_picture_is_what_its_script_draws():
    path = DOCS / "images" / "make_call.py"
    spec = importlib.util.spec_from_file_location("make_call", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.draw() == (DOCS / "images" / "call.svg").read_text(encoding="utf-8")
    for _, _, _, note in module.STOPS:
        assert not note.endswith(".py") or note in TEXT or (PACKAGE / note).is_file()
