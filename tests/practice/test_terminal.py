"""The practice at a terminal, and piped: pages, keys, verdicts, exit codes."""

from __future__ import annotations

import io
import json
import os
import re
import select
import subprocess
import sys
import time

import pytest

from liftax.cli import main
from liftax.practice import check
from liftax.practice.exercises import exercises, find
from liftax.practice.places import Place
from liftax.practice.running import Limits
from liftax.practice.terminal import Session, verify
from liftax.practice.verdict import Verdict

FIRST = find(1)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "liftax-practice"


class FakeRunner:
    """Says of the solution that it passes; a real one is tested elsewhere."""

    def __init__(self):
        self.warmed = []

    def warm(self, exercise):
        self.warmed.append(exercise.name)

    def check(self, exercise, source, path):
        stage = "passed" if source == exercise.solution else "numbers"
        return Verdict(exercise.name, stage, "said of it")


class Lines:
    fancy = False

    def __init__(self):
        self.text = ""

    def line(self, text=""):
        self.text += text + "\n"

    def rich(self, renderable):
        raise AssertionError("not at a terminal")

    def take(self):
        text, self.text = self.text, ""
        return text


@pytest.fixture
def session(tmp_path):
    place = Place(tmp_path)
    place.lay_out()
    session = Session(Lines(), place, FakeRunner())
    session.open(session.exercise)
    return session


def test_a_session(session):
    console, place = session.console, session.place
    shown = console.take()
    assert shown.startswith("# A dense layer by hand") and "as it was shipped" in shown
    assert "0 of 20 solved\nh hint" in shown
    place.path(FIRST).write_text("wrong")
    session.check()
    assert "✗ dense-by-hand: the numbers" in console.take()
    assert session.key("s")
    assert "The solution is shown when you have passed, or read all hints" in console.take()
    place.path(FIRST).write_text(FIRST.solution)
    session.check()
    shown = console.take()
    assert "✓ dense-by-hand: passed" in shown and "1 of 20 solved" in shown
    assert session.key("s") and "lecun_normal" in console.take()
    assert session.key("n") and console.take().startswith("# Read a layout")
    assert session.runner.warmed == ["dense-by-hand", "read-a-layout"]
    for i in range(1, 6):
        session.key("h")
        assert f"Hint {i} of 5" in console.take()
    assert session.key("l")
    shown = console.take()
    assert "✓  1 dense-by-hand" in shown and "→  2 read-a-layout" in shown
    place.path(find(2)).write_text("mine")
    session.key("r")
    assert "as it was shipped; yours is kept as 02_read_a_layout." in console.take()
    assert session.key("x") and "'x' is no key here" in console.take()
    assert session.key("\n") and not console.take()
    assert not session.key("q") and not session.key("")


def test_next_when_all_are_solved(session):
    for each in exercises():
        session.place.solve(each)
    session.console.take()
    session.key("n")
    assert session.console.take() == "All 20 exercises are solved.\n"


def test_piped(folder, capsys, monkeypatch):
    """Plain lines, the page of the first that is not solved, and the verdict on its file."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("liftax.practice.running.Runner.check", check_at_once)
    assert main(["practice"]) == 1
    shown = capsys.readouterr().out
    assert shown.startswith("20 exercises are in liftax-practice\n# A dense layer by hand")
    assert "\x1b" not in shown and "0 of 20 solved" in shown
    assert shown.endswith("✗ dense-by-hand: the numbers are not those of the reference\n  said\n")


def check_at_once(self, exercise, source, path=None):
    stage = "passed" if source == exercise.solution else "numbers"
    return Verdict(exercise.name, stage, "said")


def test_run_and_verify(folder, capsys, monkeypatch):
    monkeypatch.setattr("liftax.practice.running.Runner.check", check_at_once)
    assert main(["practice", "run", "scan-depth", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["stage"] == "numbers"
    place = Place(folder)
    for each in exercises():
        place.write(each, each.solution)
    assert main(["practice", "run", "scan-depth"]) == 0
    assert capsys.readouterr().out.startswith("✓ scan-depth: passed\n")
    place.write(FIRST, FIRST.start)
    assert main(["practice", "verify"]) == 1
    shown = capsys.readouterr().out
    assert "✗ dense-by-hand              not begun: the file is as it was shipped\n" in shown
    assert shown.endswith("19 of 20 solved\n")
    place.write(FIRST, FIRST.solution)
    assert main(["practice", "verify", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 20
    # In the folder itself the same files are meant.
    monkeypatch.chdir(folder)
    assert main(["practice", "list", "--json"]) == 0
    assert all(row["solved"] for row in json.loads(capsys.readouterr().out))
    assert not (folder / "liftax-practice").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run"], "run takes the name of an exercise, and nothing else does"),
        (["verify", "4"], "run takes the name of an exercise"),
        (["run", "fly"], "there is no exercise 'fly', of 1 to 20 or by name"),
        (["list", "--serve"], "--serve goes without an action"),
        (["--dir", "a/file"], "Not a directory"),
    ],
)
def test_mistyped(args, says, folder, capsys):
    (folder.parent / "a").write_text("")
    assert main(["practice", *args]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.slow
def test_verify_runs_answers(tmp_path):
    place = Place(tmp_path)
    place.lay_out()
    place.write(find(2), find(2).solution)
    verdicts = verify(place, Limits(seconds=600), [find(1), find(2)])
    assert [verdict.passed for verdict in verdicts] == [False, True]
    assert place.progress.solved == ["read-a-layout"]


class Terminal:
    """A program at a terminal of its own."""

    def __init__(self, *command, **env):
        self.outside, inside = os.openpty()
        self.process = subprocess.Popen(
            command, stdin=inside, stdout=inside, stderr=inside, env={**os.environ, **env}
        )
        os.close(inside)
        self.text = ""

    def until(self, words, seconds=500):
        end = time.monotonic() + seconds
        while words not in self.text:
            assert time.monotonic() < end, self.text
            if select.select([self.outside], [], [], 0.2)[0]:
                self.text += os.read(self.outside, 65536).decode("utf-8", "replace")
        _, _, self.text = self.text.partition(words)

    def press(self, key):
        os.write(self.outside, key.encode())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a terminal of Unix")
def test_at_a_terminal(folder):
    """A save is told, keys need no Enter, and there are no colours where none are wanted."""
    command = (sys.executable, "-m", "liftax", "practice", "--seconds", "600")
    terminal = Terminal(*command, NO_COLOR="1", TERM="xterm", COLUMNS="100")
    try:
        terminal.until("q quit")
        path = Place(folder).path(FIRST)
        path.write_text(FIRST.text("wrong/transposed.py"))
        terminal.until("the input's axis comes first")
        terminal.until("q quit")
        path.write_text(FIRST.solution)
        terminal.until("passed")
        terminal.until("1 of 20 solved")
        terminal.until("q quit")
        terminal.press("l")
        terminal.until("1 of 20 solved")
        assert not re.search(r"\x1b\[[0-9;]*3[0-9]", terminal.text)
        terminal.press("q")
        terminal.until("Until next time.")
        assert terminal.process.wait(500) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.outside)


def test_in_a_notebook(tmp_path):
    shapes = {"params/up/kernel": (6, 3, 4, 16), "params/up/bias": (6, 3, 16)}
    wrong = check("read-a-layout", shapes, folder=tmp_path)
    assert not wrong.passed and "no entry 'params/down/kernel'" in repr(wrong)
    assert "read-a-layout" not in Place(tmp_path).progress.solved
    right = check(2, folder=tmp_path, SHAPES={**shapes, "params/down/kernel": (6, 3, 16, 4)})
    assert right.passed and 'data-stage="passed"' in right._repr_html_()
    assert Place(tmp_path).progress.solved == ["read-a-layout"]
    with pytest.raises(TypeError, match="read-a-layout asks for SHAPES; found 2 answers"):
        check(2, 1, 2, folder=tmp_path)


@pytest.mark.slow
def test_a_class_of_a_cell(tmp_path):
    import liftax as nn

    class Model(nn.Module):
        features: int
        depth: int

        @nn.compact
        def __call__(self, x):
            return nn.Dense(self.features)(x)

    verdict = check("scan-depth", Model, folder=tmp_path)
    assert "goal [depth 12, in, out]" in repr(verdict)
    assert "differs" in verdict._repr_html_() and "<script" not in verdict._repr_html_()
