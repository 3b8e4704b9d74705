# runs: LX101
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
            split_rngs={"params": False},
            length=self.times,
        )
        x, _ = Repeated(self.features)(x, None)
        return x
