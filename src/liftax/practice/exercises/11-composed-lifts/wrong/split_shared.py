# runs: LX201
import jax

import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(self.features)(x)), None


def composed_lifts_forward(seed, x_batch, num_layers, features):
    ScanLayer = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=num_layers
    )
    Batched = nn.vmap(ScanLayer, variable_axes={"params": None}, split_rngs={"params": True})
    model = Batched(features=features)
    variables = model.init(jax.random.key(seed), x_batch, None)
    final, _ = model.apply(variables, x_batch, None)
    return final.reshape(-1)
