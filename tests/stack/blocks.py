"""Layers that the tests of stacks are made of, and the ways to run them."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

import liftax as nn
from liftax.stack.storage import stacked

RUNS = ("scan", "loop", "scan of 2", "scan of sqrt")
STORES = ("stacked", "layers")
KEY = jax.random.key(0)
# Keys that compile quickly inside loops.
RNGS = {name: jax.random.key(i, impl="unsafe_rbg") for i, name in enumerate(["params", "dropout"])}
X = jax.random.normal(jax.random.key(3), (2, 4))


def dense(features, **options):
    """A dense layer whose initializer compiles quickly."""
    return nn.Dense(features, kernel_init=nn.initializers.uniform(0.8), **options)


class Residual(nn.Module):
    """Draws keys, creates parameters, names a value."""

    rate: float = 0.0

    @nn.compact
    def __call__(self, x):
        h = dense(x.shape[-1])(nn.tanh(x))
        h = nn.Dropout(self.rate, deterministic=self.rate == 0)(h)
        return x + checkpoint_name(h, "branch")


class Wide(nn.Module):
    """Parameters of other names and shapes than `Residual`."""

    @nn.compact
    def __call__(self, x):
        return x + dense(x.shape[-1], name="down")(nn.relu(dense(6, name="up")(x)))


class Scale(nn.Module):
    """A parameter without axes."""

    @nn.compact
    def __call__(self, x):
        return x * self.param("gain", nn.initializers.uniform(1.0), (1,))


class WithOutputs(nn.Module):
    """Returns a pair, and takes arguments for all layers and for each."""

    extra: int = 0

    @nn.compact
    def __call__(self, x, rate, scale=1.0, *, index=None):
        h = dense(x.shape[-1])(x)
        ys = {"mean": h.mean(), "index": index, "h": jnp.zeros(3 + self.extra) + h.sum()}
        return x + rate * scale * h, ys


class Normed(nn.Module):
    """Batch statistics and dropout."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return x + nn.Dropout(0.3, deterministic=not train)(dense(x.shape[-1])(x))


class Uses(nn.Module):
    """Holds a module that may be shared."""

    inner: nn.Module

    @nn.compact
    def __call__(self, x):
        return x + dense(x.shape[-1])(nn.tanh(self.inner(x)))


class Counts(nn.Module):
    """Writes a state that may be carried."""

    @nn.compact
    def __call__(self, x):
        n = self.variable("count", "n", lambda: jnp.zeros((), jnp.int32))
        n.value += 1
        return nn.tanh(dense(x.shape[-1])(x) + n.value)


def same(a, b, rtol=1e-5, atol=1e-6):
    """Asserts that two trees have one structure and, to rounding, one content."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=rtol, atol=atol)


def equal(a, b):
    """Asserts that two trees agree to the last bit."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert jnp.shape(x) == jnp.shape(y)
        np.testing.assert_array_equal(x, y)


def as_stacked(stack, variables):
    """A stack's collections in stacked storage, whatever it stores them in."""
    return stacked(variables, stack.layout()) if stack.store == "layers" else variables


def loss_and_grads(module, variables, *args, rngs=None, **kwargs):
    """A value and its gradient by the variables."""

    def loss(variables):
        out = module.apply(variables, *args, rngs=rngs, **kwargs)
        return sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(out))

    return jax.value_and_grad(loss)(variables)


def every_way(stack, *, runs=RUNS, stores=STORES, remats=(None,)):
    """The same stack, run and stored in every way."""
    for run in runs:
        for store in stores:
            for remat in remats:
                yield stack.clone(run=run, store=store, remat=remat)


def way(stack):
    return f"run={stack.run}, store={stack.store}, remat={stack.remat}"


def primitives(fn, *args):
    """How often each primitive occurs in a program, loops and calls within included."""
    found = {}

    def visit(jaxpr):
        for eqn in jaxpr.eqns:
            found[eqn.primitive.name] = found.get(eqn.primitive.name, 0) + 1
            for value in eqn.params.values():
                for part in value if isinstance(value, (tuple, list)) else (value,):
                    inner = getattr(part, "jaxpr", part)
                    if hasattr(inner, "eqns"):
                        visit(inner)

    visit(jax.make_jaxpr(fn)(*args).jaxpr)
    return found


@contextlib.contextmanager
def spread(stages):
    """The mesh, as a context, on which each stage of a pipeline has a device."""
    kinds, devices = (AxisType.Auto,), jax.devices()[:stages]
    mesh = jax.make_mesh((stages,), ("stage",), kinds, devices=devices)
    with jax.set_mesh(mesh):
        yield mesh


@dataclasses.dataclass
class Calls:
    """Counts calls of a layer as Python."""

    n: int = 0


def counting(calls):
    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.n += 1
            return nn.tanh(dense(x.shape[-1])(x))

    return Counting
