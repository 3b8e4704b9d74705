# none
import jax
import jax.numpy as jnp

import liftax as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, dtype):
        x = nn.tanh(nn.Dense(x.shape[-1])(x))
        return x, jnp.linalg.norm(x.astype(dtype))


def layer_norms(seed, x, depth):
    model = nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=depth,
    )()
    # A dtype is an argument like any other.
    variables = model.init(jax.random.key(seed), x, jnp.float32)
    return model.apply(variables, x, jnp.float32)[1]
