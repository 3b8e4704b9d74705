"""What runs here shows that it passes, not what it computes."""

import pytest


@pytest.fixture(autouse=True, scope="module")
def _quickly(compiled_quickly):
    pass
