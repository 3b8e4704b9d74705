"""Every folder of the practice, held against its grader: goal, file as shipped, wrong answers."""

from __future__ import annotations

import functools
import re

import pytest

from liftax.practice.exercises import Exercise, exercises, find
from liftax.practice.grade import Grader
from liftax.practice.verdict import STAGES, Verdict

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_quickly")]

SECTIONS = (
    "Why this matters",
    "A worked fragment",
    "How it works",
    "Common pitfalls",
    "Problem",
    "Inputs",
    "Outputs",
)


@functools.cache
def grader(exercise: Exercise) -> Grader:
    return Grader(exercise)


def answers(kind: str) -> list[object]:
    return [
        pytest.param(exercise, path, id=f"{exercise.name}-{path.stem}")
        for exercise in exercises()
        for path in sorted((exercise.folder / kind).glob("*.py"))
    ]


def said(verdict: Verdict) -> str:
    return " ".join(" ".join(verdict.lines()).split())


by_name = pytest.mark.parametrize("exercise", exercises(), ids=lambda e: e.name)


@by_name
def test_the_goal_passes(exercise):
    verdict = grader(exercise).check(exercise.solution)
    assert verdict.passed, said(verdict)
    assert Verdict.from_dict(verdict.to_dict()) == verdict


@by_name
def test_the_file_as_shipped(exercise):
    stage, words = grader(exercise).grading.shipped
    verdict = grader(exercise).check(exercise.start)
    assert (verdict.stage, words in said(verdict)) == (stage, True), said(verdict)
    assert verdict.line is not None or stage != "runs"


@pytest.mark.parametrize(("exercise", "path"), answers("wrong"))
def test_a_wrong_answer(exercise, path):
    """Its first line says at which stage it fails, and with which words."""
    source = path.read_text(encoding="utf-8")
    stage, words = re.match(r"# (\w+): (.*)", source).groups()
    verdict = grader(exercise).check(source)
    assert stage in STAGES
    assert (verdict.stage, words in said(verdict)) == (stage, True), said(verdict)


@pytest.mark.parametrize(("exercise", "path"), answers("right"))
def test_another_right_answer(exercise, path):
    source = path.read_text(encoding="utf-8")
    remark = re.match(r"# (?:remark: (.*)|none)", source)[1]
    verdict = grader(exercise).check(source)
    assert verdict.passed, said(verdict)
    if remark:
        assert any(remark in line for line in verdict.remarks), verdict.remarks
    else:
        assert not verdict.remarks


@by_name
def test_the_folder_is_whole(exercise):
    sections = re.findall(r"^## (.*)$", exercise.page, re.MULTILINE)
    assert tuple(sections) == SECTIONS
    assert exercise.title and len(exercise.hints) == 5
    assert 3 <= len(answers_of(exercise, "wrong")) <= 6
    assert 10 <= len(exercise.start.splitlines()) <= 60


def answers_of(exercise: Exercise, kind: str) -> list[object]:
    return sorted((exercise.folder / kind).glob("*.py"))


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import sys; sys.exit(3)", "it calls sys.exit(), which ends the program"),
        ("raise MemoryError", "it asks for more memory"),
        ("def f(:", "SyntaxError: "),
        ("", "the file defines no 'Model'"),
        ("model = 1", "the file defines no 'Model'; did you mean 'model'"),
        ("Model = ...", "Model is a hole"),
        ("Model = 3", "it is to be a module class"),
        ("Model = dict", "Model(...) makes dict; it is to be a module"),
        ("raise KeyError('a')", "KeyError: 'a'"),
    ],
)
def test_what_is_no_answer(source, words):
    verdict = grader(find("scan-depth")).check(source)
    assert (verdict.stage, words in said(verdict)) == ("runs", True), said(verdict)
