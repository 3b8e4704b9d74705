# layout: the scan gave every iteration weights of its own
import liftax as nn


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, carry, xs):
        LSTM = nn.scan(
            nn.LSTMCell,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=1,
            out_axes=1,
        )
        return LSTM(self.features)(carry, xs)
