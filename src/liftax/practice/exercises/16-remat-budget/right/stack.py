# none
import liftax as nn


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(16 * x.shape[-1], name="up")(x)
        y = nn.tanh(y) * nn.sigmoid(y)
        return x + nn.Dense(x.shape[-1], name="down")(y)


class Model(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        return nn.Stack(Block(), depth=self.depth, remat=nn.Remat())(x)
