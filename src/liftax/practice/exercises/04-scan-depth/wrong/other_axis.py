# layout: the axis of the scan stands elsewhere
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
            Block, variable_axes={"params": 1}, split_rngs={"params": True}, length=self.depth
        )
        return Layers(self.features)(x, None)[0]
