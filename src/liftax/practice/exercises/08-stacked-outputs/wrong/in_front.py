# numbers: output[1] has shape (3, 2), and is to have (2, 3)
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        x = nn.relu(nn.Dense(self.features)(x))
        return x, x.mean(-1)


class Model(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        Layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.depth,
        )
        x, means = Layers(self.features)(x, None)
        return x, means
