"""Tests on liftax as they are: ``pytest -p liftax.adopt.pytest``, and ``--liftax-report``."""

from __future__ import annotations

import sys
from typing import Any

from .standing import install, uninstall

# Before the first conftest is imported, which may import flax.
_adoption = install(report="--liftax-report" in sys.argv)


def pytest_addoption(parser: Any) -> None:
    """Adds the option."""
    parser.addoption(
        "--liftax-report", action="store_true", help="say at the end which names liftax gave"
    )


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says what was taken."""
    if _adoption.seen is not None:
        terminalreporter.section("liftax in flax's place")
        terminalreporter.write_line(_adoption.report())


def pytest_unconfigure() -> None:
    """Puts flax back, for whoever runs pytest in a process of their own."""
    uninstall()
