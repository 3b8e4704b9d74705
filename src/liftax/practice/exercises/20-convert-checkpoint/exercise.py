import jax

import liftax as nn


def as_layers(params, stack):
    return ...


def scaled(grads, stack, decay):
    def scale(layer, tree):
        rate = ...  # of the layer.depth layers this is layer.index
        return jax.tree.map(lambda g: rate * g, tree)

    return nn.map_layers(scale, grads, layout=stack)


def frozen(grads, stack, first):
    def freeze(layer, tree):
        keep = ...
        return jax.tree.map(lambda g: keep * g, tree)

    return ...
