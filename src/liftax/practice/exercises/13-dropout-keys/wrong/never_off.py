# keys: Neither: the examples have different masks
import jax.numpy as jnp

import liftax as nn


class Drop(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        mask = nn.Dropout(0.5, deterministic=False)(jnp.ones_like(x))
        return x * mask, mask


def masks(layers, layer_keys, example_keys):
    stack = nn.scan(Drop, split_rngs={"dropout": layer_keys}, length=layers)
    return nn.vmap(stack, split_rngs={"dropout": example_keys})


class PerLayer(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        return masks(self.layers, True, False)()(x, None)[1]


class PerExample(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        return masks(self.layers, False, True)()(x, None)[1]


class Neither(nn.Module):
    layers: int

    @nn.compact
    def __call__(self, x):
        return masks(self.layers, False, 1)()(x, None)[1]
