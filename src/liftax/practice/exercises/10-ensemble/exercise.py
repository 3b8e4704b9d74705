import liftax as nn


class Member(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.features)(nn.tanh(nn.Dense(2 * self.features)(x)))


class Ensemble(nn.Module):
    features: int
    members: int

    @nn.compact
    def __call__(self, x):
        Members = nn.vmap(
            Member,
            in_axes=...,
            axis_size=...,
            variable_axes=...,
            split_rngs=...,
        )
        ys = Members(self.features)(x)
        return ...
