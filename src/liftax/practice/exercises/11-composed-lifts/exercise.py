import jax

import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        new_x = ...  # Dense(features), then relu
        return new_x, None


def composed_lifts_forward(seed, x_batch, num_layers, features):
    ScanLayer = ...  # num_layers blocks, each with weights of its own
    BatchedScanLayer = ...  # over the examples, which share them
    model = BatchedScanLayer(features=features)
    variables = model.init(jax.random.key(seed), x_batch, None)
    ...  # apply, and flatten what comes out
