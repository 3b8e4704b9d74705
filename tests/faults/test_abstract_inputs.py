"""What is known of an input besides its shape and dtype: kept on the way into a body."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import liftax

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)


def models(nn):
    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            w = self.param("w", lambda key: jnp.ones((), jnp.bfloat16))
            return c * w.astype(c.dtype) + x.astype(c.dtype), x * w

    class Sums(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            w = self.param("w", lambda key: jnp.ones((), jnp.bfloat16))
            return c * w + x * w, None

    class Counts(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            n = self.variable("state", "n", lambda: jnp.zeros(()))
            n.value += 1
            return Body()(c, x)

    class Constant(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return Body()(c, x)[0], self.param("v", lambda key: jnp.ones(()))

    class Map(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return c, x * self.param("w", lambda key: jnp.ones((), jnp.bfloat16))

    shared = {"variable_broadcast": "params", "split_rngs": {"params": False}}
    each = {"params": 0, "state": 0}
    return {
        "shared": nn.scan(Body, **shared),
        "stacked": nn.scan(Body, variable_axes=each, split_rngs={"params": True}),
        "sums": nn.scan(Sums, **shared),
        "counts": nn.scan(Counts, variable_axes={"state": 0}, **shared),
        "constant": nn.scan(Constant, out_axes=nn.broadcast, **shared),
        "reverse": nn.scan(Body, reverse=True, **shared),
        "nested": nn.scan(nn.remat(Counts), variable_axes={"state": 0}, **shared),
        "vmap": nn.vmap(
            Map, variable_axes={"params": None}, split_rngs={"params": False}, in_axes=(None, 0)
        ),
        "remat": nn.remat(Map),
        "jit": nn.jit(Map),
    }


OURS, LINENS = models(liftax), models(linen)


def types(tree):
    return jax.tree.map(lambda x: str(jax.typeof(x)), tree)


@pytest.mark.parametrize("carry", ["bfloat16", "float32", "weak"])
@pytest.mark.parametrize("name", OURS)
def test_weak_types(name, carry):
    xs = jnp.broadcast_to(jnp.asarray(2.0), (3,))
    assert jax.typeof(xs).weak_type
    c = 0.0 if carry == "weak" else jnp.zeros((), carry)
    ours, theirs = (m[name]().init_with_output(KEY, c, xs) for m in (OURS, LINENS))
    assert types(ours) == types(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", OURS)
def test_varying_axes(name):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Auto,))
    c, xs = jnp.ones(8), jnp.arange(24.0).reshape(3, 8)

    def run(models):
        def local(c, xs):
            model = models[name]()
            variables = model.init(KEY, c, xs)
            found.append(types((variables, model.init_with_output(KEY, c, xs))))
            return model.apply(variables, c, xs, mutable=True)[0][0]

        found = []
        mapped = jax.shard_map(local, mesh=mesh, in_specs=(P("i"), P(None, "i")), out_specs=P("i"))
        return jax.jit(mapped)(c, xs), found[-1]

    ours, theirs = run(OURS), run(LINENS)
    np.testing.assert_array_equal(ours[0], theirs[0])
    assert ours[1] == theirs[1]


@pytest.mark.parametrize("name", OURS)
def test_explicit_shardings(name):
    mesh = jax.make_mesh((4,), ("i",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        c = jax.device_put(jnp.ones(8), P("i"))
        xs = jax.device_put(jnp.arange(24.0).reshape(3, 8), P(None, "i"))
        ours, theirs = (m[name]().init_with_output(KEY, c, xs) for m in (OURS, LINENS))
    assert types(ours) == types(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("name", ["shared", "stacked", "vmap"])
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg", None])
def test_keys_as_inputs(name, kind):
    def keyed(nn):
        class Draws(nn.Module):
            @nn.compact
            def __call__(self, c, key):
                w = self.param("w", lambda key: jnp.ones(()))
                return c, jax.random.normal(key) * w

        split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        shared = {"variable_broadcast": "params", "split_rngs": {"params": False}}
        if name == "vmap":
            return nn.vmap(Draws, **split, in_axes=(None, 0))()
        return nn.scan(Draws, **(shared if name == "shared" else split))()

    key = jax.random.PRNGKey(3) if kind is None else jax.random.key(3, impl=kind)
    keys = jax.random.split(key, 3)
    ours, theirs = (keyed(nn).init_with_output(KEY, 0, keys) for nn in (liftax, linen))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
