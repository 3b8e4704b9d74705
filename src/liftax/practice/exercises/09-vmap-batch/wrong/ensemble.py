# layout: the vmap gave every example weights of its own; look at variable_axes of the vmap
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
            in_axes=0,
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        return Batched(self.features)(xs)
