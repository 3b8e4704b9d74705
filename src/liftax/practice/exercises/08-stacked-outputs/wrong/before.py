# numbers: output[1] is
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        return nn.relu(nn.Dense(self.features)(x)), x.mean(-1)


class Model(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        Layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            out_axes=1,
            length=self.depth,
        )
        x, means = Layers(self.features)(x, None)
        return x, means
