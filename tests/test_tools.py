"""The scripts that count: what they show runs, and what they count stays within its limit."""

import doctest
import importlib
from pathlib import Path

import pytest

import liftax
from tools import calls, house, stubs

PACKAGE = Path(liftax.__file__).parent


@pytest.mark.parametrize("name", ["house", "calls", "stubs"])
def test_examples(name):
    assert not doctest.testmod(importlib.import_module(f"tools.{name}")).failed


@pytest.mark.parametrize("part", stubs.PARTS, ids=lambda part: part.stub)
def test_the_lists_of_lifts_are_what_their_files_say(part):
    """After a change to `__all__` of a file of lifts, `make format` writes the stubs."""
    text = (PACKAGE / part.stub).read_text(encoding="utf-8")
    assert stubs.written(part) == text
    # No lift is left out, and what is no lift has no `__all__`.
    assert len(list(stubs.lines(part))) > 20


def test_a_scanned_apply_stays_cheap_in_python():
    """What a lift adds to JAX: 224 calls when this was written, a tenth more at most."""
    files, _, _ = calls.count()
    assert files.total() <= 247


def test_the_figures_of_the_house_are_counted(tmp_path):
    (tmp_path / "a.py").write_text(
        "from typing import Any\n\nfrom . import b\n\n# why\n\n\ndef f(x: Any) -> int:\n"
        '    """What."""\n    return b.g._x\n'
    )
    (tmp_path / "b.py").write_text("def g():\n    from .a import f\n\n    return f\n")
    text = house.report(tmp_path)
    assert "code lines                 7" in text
    assert "annotations with Any, %    50.0" in text
    assert "private reach              1" in text
    assert "  a b" in text
    assert house.rooms(tmp_path).splitlines()[1].split() == [".", "7", "14.3", "50.0"]
