"""Models exported with symbolic sizes, and the exported programs run at three sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False, "dropout": True}}
EACH = {"variable_axes": {"params": 0}, "split_rngs": {"params": True, "dropout": True}}
ONE_SET = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, c, x):
        c = nn.Dropout(0.5, deterministic=False)(nn.Dense(4)(c) + x)
        return c, c.sum(-1)


class Constant(nn.Module):
    @nn.compact
    def __call__(self, c, x):
        w = self.param("w", nn.initializers.ones, (4,))
        return c * w + x, w


CASES = {
    "length": (nn.scan(Layer, **SHARED)(), "2, 4", "n, 2, 4"),
    "length, reverse, last axis": (
        nn.scan(Layer, in_axes=1, out_axes=-1, reverse=True, **SHARED)(),
        "2, 4",
        "2, n, 4",
    ),
    "length, output broadcast": (
        nn.scan(Constant, out_axes=nn.broadcast, **SHARED)(),
        "2, 4",
        "n, 2, 4",
    ),
    "batch": (nn.scan(Layer, **EACH)(), "n, 4", "3, n, 4"),
    "RNN": (nn.RNN(nn.GRUCell(4), reverse=True, keep_order=True), "m, n, 4"),
    "vmap": (nn.vmap(nn.Dense, **ONE_SET)(3), "n, 4"),
    "Stack": (nn.Stack(nn.Dense(4), depth=4, remat=nn.Remat(every=2)), "n, 4"),
    "attention": (nn.MultiHeadDotProductAttention(2), "m, n, 4"),
}


@pytest.mark.parametrize("name", CASES)
def test_exported(name):
    model, *specs = CASES[name]
    scope = export.SymbolicScope()
    shapes = [export.symbolic_shape(spec, scope=scope) for spec in specs]

    def inputs(n):
        sizes = {"n": n, "m": n + 1}
        plain = [[sizes.get(str(size)) or int(size) for size in shape] for shape in shapes]
        return [np.random.default_rng(n).normal(size=s).astype("float32") for s in plain]

    variables = model.init(KEYS, *inputs(2))

    def run(variables, *args):
        def loss(variables):
            return sum(map(jnp.sum, jax.tree.leaves(model.apply(variables, *args, rngs=KEYS))))

        gradients = jax.grad(loss)(variables) if name in ("length", "Stack") else None
        return model.apply(variables, *args, rngs=KEYS), gradients

    abstract = [jax.ShapeDtypeStruct(shape, "float32") for shape in shapes]
    program = export.export(jax.jit(run))(variables, *abstract)
    for n in (1, 3, 6):
        found, expected = program.call(variables, *inputs(n)), run(variables, *inputs(n))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5), found, expected
        )
