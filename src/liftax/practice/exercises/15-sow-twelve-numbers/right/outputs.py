# none
import jax
import jax.numpy as jnp

import liftax as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        x = nn.tanh(nn.Dense(x.shape[-1])(x))
        return x, jnp.linalg.norm(x)


def layer_norms(seed, x, depth):
    model = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth)()
    variables = model.init(jax.random.key(seed), x, None)
    return model.apply(variables, x, None)[1]
