# budget: the layer is traced 5 times for 5 blocks
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(nn.Dense(self.features)(x))


class Model(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        return nn.Stack(Block(self.features), depth=self.depth, run="loop")(x)
