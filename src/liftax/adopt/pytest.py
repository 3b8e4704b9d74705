"""Tests on liftax as they are: ``pytest -p liftax.adopt.pytest``, and ``--liftax-report``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .standing import Adoption, install, uninstall

if TYPE_CHECKING:
    import pytest

_adoption: Adoption | None = None


def pytest_load_initial_conftests(args: list[str]) -> None:
    """Puts liftax in flax's place before the first conftest is imported, which may import flax."""
    global _adoption
    _adoption = install(report="--liftax-report" in args)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.addoption(
        "--liftax-report", action="store_true", help="say at the end which names liftax gave"
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says what was taken."""
    if _adoption is not None and _adoption.seen is not None:
        terminalreporter.section("liftax in flax's place")
        terminalreporter.write_line(_adoption.report())


def pytest_unconfigure() -> None:
    """Puts flax back, for whoever runs pytest in a process of their own."""
    uninstall()
