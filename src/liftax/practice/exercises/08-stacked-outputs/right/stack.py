# none
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Dense(self.features)(x))
        return x, x.mean(-1)


class Model(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        x, means = nn.Stack(Block(self.features), depth=self.depth, outputs=True)(x)
        return x, means.T
