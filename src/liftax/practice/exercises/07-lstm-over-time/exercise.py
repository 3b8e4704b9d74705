import liftax as nn


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, carry, xs):
        LSTM = nn.scan(
            nn.LSTMCell,
            variable_broadcast=...,  # what do all steps share?
            split_rngs=...,
            in_axes=...,  # which axis of xs is time?
            out_axes=...,
        )
        return LSTM(self.features)(carry, xs)
