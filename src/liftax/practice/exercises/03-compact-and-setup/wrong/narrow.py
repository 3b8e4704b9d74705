# layout: Compact: params/up/kernel: yours [in 5, out 5], goal [in 5, out 7]
import liftax as nn


class Compact(nn.Module):
    features: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(nn.Dense(self.features, name="up")(x))
        return x + nn.Dense(self.features, name="down")(y)


class Setup(nn.Module):
    features: int
    hidden: int

    def setup(self):
        self.up = nn.Dense(self.hidden)
        self.down = nn.Dense(self.features)

    def __call__(self, x):
        return x + self.down(nn.relu(self.up(x)))
