"""The learner's folder and progress: nothing of the learner's is lost."""

from __future__ import annotations

import json

import pytest

from liftax.practice.exercises import NoSuchExerciseError, exercises, find
from liftax.practice.places import PROGRESS, Place, Progress

EXERCISE = find("scan-depth")


@pytest.fixture
def place(tmp_path):
    place = Place(tmp_path / "practice")
    place.lay_out()
    return place


def test_never_over_the_learners_work(place):
    place.path(EXERCISE).write_text("mine")
    place.path(find(1)).unlink()
    assert place.lay_out() == 1
    assert place.read(EXERCISE) == "mine"


def test_reset_keeps_what_was_written(place):
    assert place.reset(EXERCISE) is None
    for text in ("one", "two"):
        place.path(EXERCISE).write_text(text)
        kept = place.reset(EXERCISE)
        assert kept.read_text() == text
        assert place.read(EXERCISE) == EXERCISE.start
    assert len(list(place.folder.glob("04*.kept"))) == 2


def test_progress_is_shared(place):
    other = Place(place.folder)
    place.solve(find(1))
    other.solve(find(2))
    other.solve(find(2))
    assert place.progress.solved == ["dense-by-hand", "read-a-layout"]
    assert place.current() == other.current() == find(3)


def test_hints_and_the_solution(place):
    seen = [place.may_see_solution(EXERCISE)]
    for i in range(1, 7):
        assert place.take_hint(EXERCISE) == min(i, 5)
        seen.append(place.may_see_solution(EXERCISE))
    assert seen == [False, False, False, False, True, True, True]
    place.solve(find(1))
    assert place.may_see_solution(find(1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"solved": 3}',
        '{"solved": ["a", 1]}',
        '{"hints": []}',
        '{"at": []}',
        '{"solved": [], "hints": {"a": "b"}}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_a_broken_file_is_set_aside_with_a_line(place, text):
    path = place.folder / PROGRESS
    path.write_text(text)
    assert place.progress == Progress()
    (line,) = place.said
    assert line.startswith(f"{path} could not be read; it was set aside as progress.")
    (kept,) = place.folder.glob("progress.*.kept")
    assert kept.read_text() == text
    place.solve(EXERCISE)
    assert json.loads(path.read_text())["solved"] == ["scan-depth"]


def test_bytes_that_are_no_text(place):
    (place.folder / PROGRESS).write_bytes(b"\xff\xfe\x00")
    place.path(EXERCISE).write_bytes(b"\xff# mine")
    assert place.progress == Progress()
    assert place.read(EXERCISE).endswith("# mine")


def test_exercises_are_found_by_number_name_and_file():
    assert [each.number for each in exercises()] == list(range(1, 21))
    for text in (11, "11", "composed-lifts", "11-composed-lifts", "x/11_composed_lifts.py"):
        assert find(text) == exercises()[10]
    with pytest.raises(
        NoSuchExerciseError, match="there is no exercise 'scandepth', .* 'scan-depth'"
    ):
        find("scandepth")
    with pytest.raises(
        NoSuchExerciseError, match="there is no exercise '21', of 1 to 20 or by name"
    ):
        find(21)
