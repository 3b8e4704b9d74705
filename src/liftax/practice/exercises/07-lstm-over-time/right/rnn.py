# none
import liftax as nn


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, carry, xs):
        cell = nn.LSTMCell(self.features)
        return nn.RNN(cell, return_carry=True)(xs, initial_carry=carry)
