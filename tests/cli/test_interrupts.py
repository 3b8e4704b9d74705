"""Ctrl-C while a command loads: one line, exit code 130, and nothing of other libraries."""

import os
import signal
import subprocess
import sys

import pytest

from liftax.interrupts import ending_at_once

HEARD = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
# Sends itself Ctrl-C in the middle of the import of a module, where Python would raise it.
WHEN = """
import importlib.abc, os, sys
class Here(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(1000): pass
sys.meta_path.insert(0, Here())
"""


@pytest.mark.parametrize("module", ["liftax.cli", "jax", "jax.numpy", "sklearn"])
def test_while_it_loads(module):
    run = "import runpy; runpy.run_module('liftax', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", f"{HEARD}{WHEN.format(module=module)}{run}", "forward"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stderr) == (130, "liftax: interrupted\n")
    assert done.stdout == ""


def test_a_handler_that_is_there_stays():
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(1))
    try:
        with ending_at_once("liftax"):
            os.kill(os.getpid(), signal.SIGINT)
        assert heard == [1]
    finally:
        signal.signal(signal.SIGINT, before)
