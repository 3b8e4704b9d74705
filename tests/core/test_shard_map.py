"""The lifted shard_map: each device runs the module on its part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import liftax as nn
from liftax.errors import LiftOptionError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

P = jax.P
KEY = jax.random.key(0)
X = jax.random.normal(KEY, (8, 4))
TRACES: list[object] = []


class Block(nn.Module):
    """A product, statistics, keys, and a collective."""

    @nn.compact
    def __call__(self, x, drop=False):
        TRACES.append(x.shape)
        y = nn.Dense(4)(x)
        mean = self.variable("batch_stats", "mean", jnp.zeros, (4,))
        now = jax.lax.pmean(y.mean(0), "data")
        if not self.is_initializing():
            mean.value = now
        return nn.Dropout(0.5, deterministic=not drop)(y) - now


def made(sizes, names, kind=AxisType.Auto):
    return jax.make_mesh(sizes, names, axis_types=(kind,) * len(names))


@pytest.fixture
def mesh() -> jax.sharding.Mesh:
    return made((4, 2), ("data", "model"))


def lifted(**options):
    return nn.shard_map(Block, in_specs=(P("data"),), out_specs=P("data"), **options)


def test_it_equals_the_module_on_the_whole_batch(mesh):
    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = nn.Dense(4)(x)
            return y - y.mean(0)

    TRACES.clear()
    layer = lifted(mesh=mesh)()
    variables = layer.init(KEY, X)
    assert TRACES == [(2, 4)]  # one trace, of a part
    expected = Plain().init(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, variables["params"], expected["params"])

    def loss(model, collections):
        def run(params):
            y = model.apply({**collections, "params": params}, X, mutable=["batch_stats"])[0]
            return jnp.sum(jnp.sin(y)), y

        return jax.jit(jax.grad(run, has_aux=True))

    ours = loss(layer, variables)(variables["params"])
    theirs = loss(Plain(), {})(expected["params"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), ours, theirs)
    _, new = layer.apply(variables, X, mutable=["batch_stats"])
    assert new["batch_stats"]["mean"].shape == (4,)


def test_variables_of_the_parts_and_keys_of_the_devices(mesh):
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x):
            bias = self.param("bias", nn.initializers.normal(), (1, 4))
            return x + bias

    spec = {"params": P("data")}
    one = made((4,), ("data",))
    options = {"in_specs": (P("data"),), "out_specs": P("data"), "variable_specs": spec}
    for split in (True, False):
        layer = nn.shard_map(Own, **options, mesh=one, split_rngs={"params": split})()
        bias = layer.init(KEY, X)["params"]["bias"]
        assert bias.shape == (4, 4)
        assert bool((bias[0] == bias[1]).all()) is not split
        y = layer.apply({"params": {"bias": bias}}, X)
        np.testing.assert_allclose(y, X + np.repeat(bias, 2, 0), rtol=1e-6)

    # The mesh of the context, under a scan over depth, and a mask for each device.
    class Deep(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return lifted(split_rngs={"dropout": True})(name="block")(x, drop=True), None

    roles = {"variable_axes": {"params": 0, "batch_stats": 0}, "length": 2}
    deep = nn.scan(Deep, **roles, split_rngs={"params": True, "dropout": True})
    with jax.set_mesh(made((4,), ("data",))):
        y, variables = jax.jit(deep().init_with_output)(
            {"params": KEY, "dropout": KEY}, jnp.ones((8, 4))
        )
    kernel = variables["params"]["block"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 4, 4) and y[0].shape == (8, 4)


def test_explicit_axes():
    mesh = made((4,), ("data",), AxisType.Explicit)
    with jax.set_mesh(mesh):
        layer, x = lifted()(), jax.device_put(X, P("data"))
        y, variables = layer.init_with_output(KEY, x)
        assert y.sharding.spec[0] == "data"

        def total(params):
            return layer.apply({**variables, "params": params}, x, mutable=True)[0].sum()

        grads = jax.grad(total)(variables["params"])
        assert grads["Dense_0"]["kernel"].shape == (4, 4)
        assert "shard_map" in str(nn.layout(lifted()(), KEY, x))


def test_refused(mesh):
    with pytest.raises(LiftOptionError, match=r"(?s)in_specs has a spec for each.*2 arguments"):
        lifted(mesh=mesh)().init(KEY, X, True)
    with pytest.raises(LiftOptionError, match="there is no mesh"):
        lifted()().init(KEY, X)
    with pytest.raises(LiftOptionError, match="variable_specs does not give a spec"):
        lifted(variable_specs={"params": "data"})
    with pytest.raises(LiftOptionError, match="split_rngs does not give a bool"):
        lifted(split_rngs={"params": 1})
