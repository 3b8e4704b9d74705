"""What lies split over a mesh along the axis of a lift: refused in words, with what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import liftax as nn
from liftax.errors import SplitAxisError

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
X = jnp.ones((4, 2))


class Sum(nn.Module):
    @nn.compact
    def __call__(self, carry, row):
        return carry + nn.Dense(2)(row), None


class Drop(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x, scale):
        return x + scale * nn.Dense(2)(x)


def refused(run, split, whole, *says):
    """Asserts that an input that is split is refused so, and that the whole one goes through."""
    with pytest.raises(SplitAxisError, match="(.|\n)*".join(map(re.escape, says))):
        jax.eval_shape(run, split)
    jax.eval_shape(run, whole)


@pytest.fixture
def mesh():
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "model"))) as mesh:
        yield mesh


def rows(tree):
    """Split along the first axis of each array."""
    return jax.tree.map(lambda leaf: jax.device_put(leaf, P("data")), tree)


def test_a_scan(mesh):
    shared = nn.scan(Sum, variable_broadcast="params", split_rngs={"params": False})()
    says = "scan of Sum: argument 'row' is split", "found: float32[4,2] split as P('data', None)"
    expected = "in_axes=0", "expected: that axis whole", "reshard(value, P(None, None))"
    refused(lambda x: shared.init(KEYS, X[0], x), rows(X), X, *says, *expected)
    variables = shared.init(KEYS, X[0], X)
    refused(lambda x: shared.apply(variables, X[0], x), rows(X), X, *says, *expected)
    # Split along another axis it may be.
    shared.apply(variables, X[0], jax.device_put(X, P(None, "model")))

    own = nn.scan(Sum, variable_axes={"params": 0}, split_rngs={"params": True})()
    variables = own.init(KEYS, X[0], X)
    says = "scan of Sum: variable params/Dense_0/bias is split", "variable_axes['params']=0"
    refused(lambda v: own.apply(v, X[0], X), rows(variables), variables, *says)


def test_a_stack(mesh):
    stack = nn.Stack(Scaled(), depth=4, per_layer=("scale",))
    variables, scale = stack.init(KEYS, X, jnp.ones(4)), jnp.ones(4)
    says = "stack of Scaled: variable params/Dense_0/bias", "param_axis=0", "fsdp="
    refused(lambda v: stack.apply(v, X, scale), rows(variables), variables, *says)
    says = "argument 'scale'", "found: float32[4] split as P('data',)"
    refused(lambda s: stack.apply(variables, X, s), rows(scale), scale, *says)


def test_a_map_goes_over_what_is_split_alike(mesh):
    each = {"params": True, "dropout": True}
    own = nn.vmap(Drop, variable_axes={"params": 0}, split_rngs=each)()
    variables = own.init(KEYS, X)
    says = "vmap of Drop: what is mapped over is split over the mesh in two ways", "argument 'x'"
    says += "split as P('data', None), in_axes=0", "variable params/Dense_0/bias", "reshard"
    refused(lambda x: own.apply(variables, x, rngs=KEYS), rows(X), X, *says)
    # The keys, which nobody hands in by themselves, follow.
    expected = own.apply(variables, X, rngs=KEYS)
    found = own.apply(rows(variables), rows(X), rngs=KEYS)
    assert found.sharding.spec == P("data", None)
    np.testing.assert_array_equal(found, expected)
    made = own.init(KEYS, rows(X))
    assert made["params"]["Dense_0"]["bias"].sharding.spec == P("data", None)
