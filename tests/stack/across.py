"""Training steps of pipelines that each of several processes runs, for a test to compare.

Nothing here, or imported from here, computes as it is imported: a process joins the others first.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liftax as nn

RUNS = {"gpipe": nn.Pipeline(2, 4), "circular": nn.Pipeline(2, 4, repeats=2)}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Dense(x.shape[-1], kernel_init=nn.initializers.uniform(0.8))(nn.tanh(x))
        return x + nn.Dropout(0.3, deterministic=False)(h)


def step(run, variables, x):
    """What comes out, the gradients, and the variables after a step of an optimiser."""
    stack = nn.Stack(Block(), depth=4, run=run)

    def loss(variables, x):
        y = stack.apply(variables, x, rngs={"dropout": jax.random.key(1, impl="unsafe_rbg")})
        return jnp.sum(jnp.sin(y)), y

    (_, y), grads = jax.value_and_grad(loss, has_aux=True)(variables, x)
    optimizer = optax.sgd(0.1, momentum=0.9)
    updates, _ = optimizer.update(grads, optimizer.init(variables))
    return y, grads, optax.apply_updates(variables, updates)


def given():
    """Variables and a batch, the same in every process."""
    x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    variables = nn.Stack(Block(), depth=4).init(jax.random.key(0), x)
    return jax.tree.map(np.asarray, (variables, x))


def steps(runs, variables, x):
    """On four devices, of which this process may have a part: the leaves of each run's step."""
    devices = jax.devices()[:4]
    mesh = jax.make_mesh((2, 2), ("stage", "data"), (AxisType.Auto,) * 2, devices=devices)
    whole = NamedSharding(mesh, PartitionSpec())
    rows, out = NamedSharding(mesh, PartitionSpec("data")), {}

    def put(value, place):
        return jax.make_array_from_callback(value.shape, place, lambda at: value[at])

    with jax.set_mesh(mesh):
        x, variables = put(x, rows), jax.tree.map(lambda value: put(value, whole), variables)
        for name in runs:
            found = jax.jit(step, static_argnums=0, out_shardings=whole)(RUNS[name], variables, x)
            out[name] = [np.asarray(leaf) for leaf in jax.tree.leaves(found)]
    return out
