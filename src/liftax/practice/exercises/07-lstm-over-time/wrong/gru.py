# runs: line
import liftax as nn


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, carry, xs):
        LSTM = nn.scan(
            nn.GRUCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        return LSTM(self.features)(carry, xs)
