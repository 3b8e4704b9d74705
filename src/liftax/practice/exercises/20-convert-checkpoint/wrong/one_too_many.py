# numbers: frozen with
import jax

import liftax as nn


def as_layers(params, stack):
    return nn.to_layers({"params": params}, stack)


def scaled(grads, stack, decay):
    def scale(layer, tree):
        rate = decay ** (layer.depth - 1 - layer.index)
        return jax.tree.map(lambda g: rate * g, tree)

    return nn.map_layers(scale, grads, layout=stack)


def frozen(grads, stack, first):
    def freeze(layer, tree):
        keep = layer.index > first
        return jax.tree.map(lambda g: keep * g, tree)

    return nn.map_layers(freeze, grads, layout=stack)
