"""What an editor and a prompt show of modules, variables and of liftax itself."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

import liftax as nn
from liftax.core.scope import Variable


def test_a_variable_shows_its_place_and_no_contents():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            total = self.variable("state", "total", lambda: {"a": jnp.zeros(3), "b": 7.25})
            return repr(total), repr(Variable(self.scope, "state", "late"))

    shown, later = Model().apply({}, 0, mutable="state")[0]
    assert shown == "Variable(state/total: float32[3], float)"
    assert later == "Variable(state/late: no value yet)"


def test_completion_offers_what_is_public():
    import liftax.lazy

    assert "lazy" in vars(liftax) and "lazy" not in dir(nn)
    assert {"Dense", "scan", "layout", "errors"} <= set(dir(nn))
    assert not [name for name in dir(nn) if name.startswith("_") and not name.endswith("__")]


def test_a_module_shows_what_differs_from_its_defaults():
    assert repr(nn.Dense(4)) == "Dense(\n    # attributes\n    features = 4\n)"
    assert "use_bias = False" in repr(nn.Dense(4, use_bias=False))
    assert repr(nn.LayerNorm()) == "LayerNorm()"

    class Fields(nn.Module):
        plain: int = 3
        listed: tuple = (1, 2)
        made: dict = dataclasses.field(default_factory=dict)
        other: bool = True
        array: object = None

    assert repr(Fields()) == repr(Fields(3, (1, 2), {}, True)) == "Fields()"
    shown = repr(Fields(4, (1, 3), {"a": 1}, 1, jnp.zeros(3)))
    for text in ("plain = 4", "listed = (1, 3)", "made = {'a': 1}", "other = 1", "float32[3]"):
        assert text in shown
