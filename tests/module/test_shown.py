"""What an editor and a prompt show of modules, variables and of liftax itself."""

from __future__ import annotations

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
