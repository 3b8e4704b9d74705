import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(self.features)(x)), None


class Model(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        Layers = nn.scan(
            Block,
            variable_axes=...,  # what happens to the parameters along the new axis?
            split_rngs=...,  # and to the key that initialises them?
            length=...,
        )
        x, _ = Layers(self.features)(x, None)
        return x
