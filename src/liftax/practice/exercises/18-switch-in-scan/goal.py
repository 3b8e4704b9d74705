import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, kind):
        def mix(mdl, x):
            return nn.tanh(nn.Dense(mdl.features, name="mix")(x))

        def skip(mdl, x):
            return x + nn.Dense(mdl.features, name="skip")(x)

        return nn.switch(kind, [mix, skip], self, x), None


class Model(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, kinds):
        Layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True})
        return Layers(self.features)(x, kinds)[0]
