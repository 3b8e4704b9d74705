# layout: from the hidden width back
import liftax as nn


class Block(nn.Module):
    hidden: int

    @nn.compact
    def __call__(self, x, _):
        y = nn.Dense(self.hidden, name="up")(x)
        return x + nn.Dense(x.shape[-1], name="down")(nn.relu(y)), None


Layers = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=6)
Members = nn.vmap(
    Layers, in_axes=None, axis_size=3, variable_axes={"params": 1}, split_rngs={"params": True}
)

# Members(hidden=16) is called with x of shape (8, 4): 8 examples of 4 features.
SHAPES = {
    "params/up/kernel": (6, 3, 4, 16),
    "params/up/bias": (6, 3, 16),
    "params/down/kernel": (6, 3, 4, 16),
}
