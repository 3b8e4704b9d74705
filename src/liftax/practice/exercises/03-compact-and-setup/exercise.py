import liftax as nn


class Compact(nn.Module):
    features: int
    hidden: int

    @nn.compact
    def __call__(self, x):
        y = nn.relu(...)
        return x + ...


class Setup(nn.Module):
    features: int
    hidden: int

    def setup(self):
        self.up = ...
        self.down = ...

    def __call__(self, x):
        return x + ...
