# none
import jax

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
        energy, slope = jax.value_and_grad(Energy(self.hidden, name="energy"))(positions)
        return energy, -slope
