# layout: the scan draws the same key every time, so all start out identical; look at split_rngs
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
            Block, variable_axes={"params": 0}, split_rngs={"params": False}, length=self.depth
        )
        return Layers(self.features)(x, None)[0]
