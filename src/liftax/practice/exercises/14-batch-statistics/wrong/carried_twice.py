# layout: Stacked: batch_stats/
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        x = nn.Dense(self.features)(x)
        return nn.relu(nn.BatchNorm(use_running_average=False)(x)), None


class Stacked(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        Layers = nn.scan(
            Block,
            variable_axes={"params": 0},
            variable_carry="batch_stats",
            split_rngs={"params": True},
            length=self.depth,
        )
        return Layers(self.features)(x, None)[0]


class Carried(nn.Module):
    features: int
    depth: int

    @nn.compact
    def __call__(self, x):
        Repeated = nn.scan(
            Block,
            variable_broadcast="params",
            variable_carry="batch_stats",
            split_rngs={"params": False},
            length=self.depth,
        )
        return Repeated(self.features)(x, None)[0]
