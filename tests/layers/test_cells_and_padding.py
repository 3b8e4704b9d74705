"""Cells called with carries of any width, and the padding of `nn.linear`, beside Linen's."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, Library, both, ours

X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
CELLS = ["LSTMCell", "OptimizedLSTMCell", "GRUCell", "MGUCell", "SimpleCell"]


def _step(lib: Library, name: str, width: int) -> Any:
    carry: Any = jnp.ones((2, width))
    if "LSTM" in name:
        carry = (carry, carry / 2)
    return getattr(lib.nn, name)(5).init_with_output(jax.random.key(0), carry, X)


@pytest.mark.filterwarnings("ignore:LX207")
@pytest.mark.parametrize("width", [3, 5])
@pytest.mark.parametrize("name", CELLS)
def test_a_cell_has_the_width_of_its_carry(name: str, width: int) -> None:
    both(lambda lib: _step(lib, name, width))


@pytest.mark.skipif(ON_FLAX, reason="Linen says nothing")
@pytest.mark.parametrize("name", CELLS)
def test_the_cell_says_that_features_say_another(name: str) -> None:
    with pytest.warns(
        ours().nn.LiftWarning, match=rf"^LX207: module /: {name}: .*\(2, 3\).*features=5"
    ):
        _step(ours(), name, 3)


PADDINGS = ["SAME", "other", 1, (1, 2), [(1, 2), 3], ((0, 1), (2, 3)), [1, (2, 3)]]


@pytest.mark.parametrize("padding", PADDINGS, ids=repr)
def test_padding(padding: Any) -> None:
    both(lambda lib: lib.nn.linear.canonicalize_padding(padding, 2))


@pytest.mark.parametrize("padding", [2.0, (1,), None, [(1, 2, 3), 1]], ids=repr)
def test_padding_that_is_none(padding: Any) -> None:
    with pytest.raises(ValueError, match="padding"):
        ours().nn.linear.canonicalize_padding(padding, 2)
