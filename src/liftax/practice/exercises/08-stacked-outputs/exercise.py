import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        x = nn.relu(nn.Dense(self.features)(x))
        return x, ...  # what each layer reports


class Model(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        Layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            out_axes=...,  # where the reports of all layers are stacked
            length=self.depth,
        )
        x, means = Layers(self.features)(x, None)
        return x, means
