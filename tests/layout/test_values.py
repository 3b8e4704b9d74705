"""What a layout says of the numbers of a model."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn
from liftax.layout.shown import Layout

KEY, X = jax.random.key(0), jnp.ones((2, 4))


@pytest.fixture(scope="module")
def given():
    lift = {"variable_axes": {"params": 1}, "split_rngs": {"params": True}, "length": 3}

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4, param_dtype=jnp.bfloat16)(x), None

    model = nn.scan(Block, **lift)()
    return nn.layout(model, KEY, X, None), model.init(KEY, X, None)


def test_each_array_and_each_layer(given):
    layout, variables = given
    variables = jax.tree.map(np.array, variables)
    kernel = variables["params"]["Dense_0"]["kernel"]
    assert kernel.shape == (4, 3, 4)
    kernel[:, 1] = 0
    kernel[0, 2, 0] = np.nan
    told = layout.with_values(variables)
    row = told["params/Dense_0/kernel"]
    whole = kernel.astype(np.float32)
    assert row.stats.mean == pytest.approx(np.nanmean(whole), rel=1e-5)
    assert row.stats.spread == pytest.approx(np.nanstd(whole), rel=1e-5)
    assert (row.stats.smallest, row.stats.largest) == (np.nanmin(whole), np.nanmax(whole))
    assert row.stats.zeros == pytest.approx(1 / 3)
    assert row.stats.nonfinite == pytest.approx(1 / 48)
    assert [s.zeros for s in row.per_layer] == [0, 1, 0]
    assert [s.nonfinite for s in row.per_layer] == [0, 0, 1 / 16]
    assert Layout.from_dict(json.loads(json.dumps(told.to_dict()))) == told
    assert "scan 1" in str(told) and "Values" in told.to_html() and "Values" in told._repr_html_()


def test_other_variables_are_refused(given):
    layout, variables = given
    with pytest.raises(nn.errors.ScopeVariableNotFoundError, match="is not among the variables"):
        layout.with_values({"params": {}})
    wrong = jax.tree.map(lambda x: x[:2], variables)
    with pytest.raises(nn.errors.ScopeParamShapeError, match=r"kernel has shape \(4, 3, 4\) in"):
        layout.with_values({"params": {"Dense_0": {**wrong["params"]["Dense_0"]}}})


def test_what_has_no_numbers():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.variable("state", "key", lambda: jax.random.key(0))
            self.variable("state", "none", lambda: jnp.zeros((0,)))
            self.variable("state", "lost", lambda: jnp.full((2,), jnp.nan))
            return x

    told = nn.layout(Net(), KEY, X).with_values(Net().init(KEY, X))
    assert told["state/key"].stats is None
    assert told["state/none"].stats.mean is None
    assert (told["state/lost"].stats.largest, told["state/lost"].stats.nonfinite) == (None, 1)
