# numbers: the output has shape
import liftax as nn


class Pool(nn.Module):
    """One set of points, (points, inputs), as one vector."""

    features: int

    @nn.compact
    def __call__(self, x):
        scores = nn.softmax(nn.Dense(1, name="score")(x), axis=0)
        return (scores * nn.Dense(self.features, name="value")(x)).sum(0)


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, xs):
        Batched = nn.vmap(
            Pool,
            in_axes=1,
            variable_axes={"params": None},
            split_rngs={"params": False},
        )
        return Batched(self.features)(xs)
