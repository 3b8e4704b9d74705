import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, kind):
        def mix(mdl, x):
            return nn.tanh(nn.Dense(mdl.features, name="mix")(x))

        def skip(mdl, x):
            return ...

        return ..., None


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, kinds):
        Layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True})
        return Layers(self.features)(...)[0]
