"""The misuses are many, and each is filed once."""

from __future__ import annotations

from . import (
    test_branches_and_gradients,
    test_collections,
    test_layers_and_stacks,
    test_lifted_modules,
    test_loops,
    test_modules,
)
from .misuse import Misuse

FILES = (
    test_branches_and_gradients,
    test_collections,
    test_layers_and_stacks,
    test_lifted_modules,
    test_loops,
    test_modules,
)


def test_there_are_many():
    """Each has its own name: a case that another one replaced would not run."""
    cases = [(file, v) for file in FILES for v in vars(file).values() if isinstance(v, Misuse)]
    assert len(cases) >= 300
    for file, case in cases:
        assert getattr(file, case.name) is case


def test_most_rules_are_broken_somewhere():
    broken = {getattr(v.error, "code", None) for f in FILES for v in vars(f).values()
              if isinstance(v, Misuse)}  # fmt: skip
    assert len(broken) >= 40
