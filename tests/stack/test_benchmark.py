"""The benchmark of stacks: every peer computes the gradient by hand, or says that it cannot."""

import numpy as np
import pytest

from benchmarks import stack
from benchmarks.peers import Config
from benchmarks.timing import Settings

pytestmark = pytest.mark.usefixtures("compiled_quickly")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(stack, "CONFIG", Config(body="dense", lengths=(4,), dim=4))
    ways = (stack.Way("scan of 2, remat every 2", group=2, every=2),)
    monkeypatch.setattr(stack, "WAYS", ways)
    reference = stack.reference
    reference.cache_clear()
    yield
    reference.cache_clear()


def test_tables(small):
    """Of one way: the program is that by hand, and a way that a library lacks is left empty."""
    tables = stack.run_ways(Settings(rounds=1, min_sample=1e-6, peers=("liftax", "flax.linen")))
    assert [t.name for t in tables] == [
        "stack-trace",
        "stack-compile",
        "stack-step",
        "stack-memory",
    ]
    for table in tables:
        (row,) = table.cells.values()
        assert set(row) == {"by hand", "liftax"}
    assert tables[-1].cells["scan of 2, remat every 2"]["liftax"].ratio == 1
    notes = ["scan of 2, remat every 2: bodies traced by by hand 2, liftax 2"]
    assert tables[0].notes == notes


def test_wrong_gradients_are_left_out(small, monkeypatch):
    monkeypatch.setattr(stack, "reference", lambda: np.ones(2))
    found = stack.program("by hand", stack.WAYS[0], stack.CONFIG.input(), lambda: 0.0)
    assert found == "left out, its gradients are not those by hand"
