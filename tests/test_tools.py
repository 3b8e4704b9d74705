"""The scripts that count: what they show runs, and what they count stays within its limit."""

import doctest
import importlib
from pathlib import Path

import pytest

import liftax
from tools import calls, house, reading, since, stubs

PACKAGE = Path(liftax.__file__).parent


@pytest.mark.parametrize("name", ["house", "calls", "reading", "since", "stubs"])
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


@pytest.mark.parametrize("name", house.SMALL)
def test_a_lift_that_the_engine_does_is_small(name):
    """About 30 code lines beside those that say its arguments, in the core and over modules."""
    both = [lines for lines in house.lifts(PACKAGE, [name])[name] if lines is not None]
    assert both
    for code, arguments in both:
        assert code - arguments <= 32


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


def test_each_room_says_why_and_of_what_type():
    """Five comments for 100 code lines and `Any` in a tenth of the annotations, about."""
    for room, found in house.by_room(PACKAGE).items():
        if "exercises" in room or not found.code:
            continue
        assert found.comments / found.code > 0.045, room
        # Much of what `adopt` touches is flax's, which has no types here.
        assert found.any / max(found.annotations, 1) < 0.12, room


def test_the_code_is_of_one_hand():
    """Docstrings, dividers and paragraphs: see what `tools/reading.py` lists."""
    found = [f"{file.relative_to(PACKAGE)}: {d}" for file, d in reading.listed(PACKAGE)]
    assert not found


def test_what_is_of_another_hand_is_listed():
    text = '''
# ---- parts ----
def size(of):
    """Return the size of `of`."""
    return len(of)

def length(of):
    """Returns the size of ``of``, as `size` does."""
    if of:
        return size(of)
'''
    kinds = [d.kind for d in reading.departures(text + "    of = of\n" * 39, {"Return", "Returns"})]
    assert kinds == ["imperative", "argument", "paragraph", "divider"]


def test_every_name_that_counts_as_new_is_there():
    """Else a subject that is renamed would count as one of old, without a word."""
    for name in since.NEW:
        assert (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").is_file(), name
