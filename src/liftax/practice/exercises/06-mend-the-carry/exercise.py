import liftax as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        features = x.shape[-1]
        y = nn.Dense(4 * features, name="up")(x)
        y = nn.relu(y)
        y = nn.Dense(4 * features, name="down")(y)
        return y, None


class Model(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        Layers = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth
        )
        x, _ = Layers()(x, None)
        return x
