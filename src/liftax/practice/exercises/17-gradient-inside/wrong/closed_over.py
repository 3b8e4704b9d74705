# runs: LX301
import liftax as nn


class Energy(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, positions):
        y = nn.tanh(nn.Dense(self.hidden)(positions))
        return nn.Dense(1)(y).sum()


class Forces(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, positions):
        model = Energy(self.hidden, name="energy")
        energy, (slope,) = nn.value_and_grad(lambda mdl, r: model(r), self, positions)
        return energy, -slope
