# layout: variable_broadcast in place of variable_axes
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(self.features)(x)), None


class Model(nn.Module):
    features: int
    times: int

    @nn.compact
    def __call__(self, x):
        Repeated = nn.scan(
            Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.times,
        )
        x, _ = Repeated(self.features)(x, None)
        return x
