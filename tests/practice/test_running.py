"""Answers in processes of their own: whatever they do is a verdict, and the program goes on."""

from __future__ import annotations

import dataclasses
import threading

import pytest

from liftax.practice import running
from liftax.practice.exercises import find
from liftax.practice.running import Limits, Runner

pytestmark = pytest.mark.slow

EXERCISE = find("scan-depth")
RUBBISH = """
import sys
for i in range(100):
    print("\\x1b[2J\\x00" * 3, '{"ready": true}', i)
sys.stdout.buffer.write(bytes(range(256)))
"""

ANSWERS = {
    "endless": ("while True: pass", "it does not end: stopped after 1 seconds"),
    "hard exit": ("import os; os._exit(7)", "ends the process by itself, with code 7"),
    "killed": ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "(SIGKILL)"),
    "array": ("import numpy; numpy.ones(10**12)", "it asks for more memory"),
    "list": ("x = [0]\nwhile True: x += x", "it asks for more memory"),
}


@pytest.fixture(scope="module")
def runner():
    # As long as it takes: no timing decides a test.
    with Runner(Limits(seconds=600, memory=1 << 30), ahead=False) as runner:
        yield runner


@pytest.mark.parametrize("name", ANSWERS)
def test_what_ends_a_process_is_a_verdict(runner, name):
    source, words = ANSWERS[name]
    if name == "endless":
        runner.limits = dataclasses.replace(runner.limits, seconds=1)
    try:
        verdict = runner.check(EXERCISE, source)
    finally:
        runner.limits = dataclasses.replace(runner.limits, seconds=600)
    assert verdict.stage == "runs"
    assert words in verdict.said


def test_printed_rubbish_is_kept_apart(runner):
    verdict = runner.check(EXERCISE, EXERCISE.solution + RUBBISH)
    assert verdict.passed
    assert 1 < len(verdict.printed.splitlines()) <= 10
    assert '{"ready": true} 99' in verdict.printed
    assert all(c.isprintable() or c == "\n" for c in verdict.printed)


def test_from_save_to_verdict(monkeypatch):
    """A process that is ready answers; the next one is started meanwhile."""
    asked = []

    def check(worker, *rest):
        asked.append(worker)
        return plain(worker, *rest)

    plain = running._Worker.check
    monkeypatch.setattr(running._Worker, "check", check)
    with Runner(Limits(seconds=600)) as runner:
        runner.warm(EXERCISE)
        ready = [*runner._ready.values()]
        first = runner.check(EXERCISE, EXERCISE.solution)
        ready += runner._ready.values()
        second = runner.check(EXERCISE, EXERCISE.start)
    assert (first.stage, second.stage) == ("passed", "runs")
    assert asked == ready


def test_a_process_is_ended_while_a_line_of_its_is_taken(tmp_path):
    """What is raised in the thread that listens would fail this test."""
    # Programs that it compiles are kept there.
    worker = running._Worker(EXERCISE, str(tmp_path))
    taken, ended = threading.Event(), threading.Event()

    class Slow:
        def put(self, line):
            taken.set()
            # Until it is over with the process: the next line is asked for after that.
            ended.wait()

    worker.said = Slow()
    assert taken.wait(600)
    worker.process.kill()
    threading.Timer(0.2, ended.set).start()
    worker.end()
    worker.listener.join()
    assert worker.process.stdout.closed
