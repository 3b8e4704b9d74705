# numbers: output[1] has shape (3, 2, 1), and is to have (2, 3, 1)
import liftax as nn


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, carry, xs):
        LSTM = nn.scan(
            nn.LSTMCell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
        )
        return LSTM(self.features)(carry, xs)
