import jax

import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        new_x = nn.relu(nn.Dense(self.features)(x))
        return new_x, None


def composed_lifts_forward(seed, x_batch, num_layers, features):
    ScanLayer = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=num_layers
    )
    BatchedScanLayer = nn.vmap(
        ScanLayer,
        in_axes=0,
        out_axes=0,
        variable_axes={"params": None},
        split_rngs={"params": False},
    )
    model = BatchedScanLayer(features=features)
    variables = model.init(jax.random.key(seed), x_batch, None)
    final, _ = model.apply(variables, x_batch, None)
    return final.reshape(-1)
