# layout: Own: params/
import liftax as nn


class Block(nn.Module):
    features: int

    @nn.compact
    def __call__(self, x, _):
        return nn.tanh(nn.Dense(self.features)(x)), None


def SharedInside(features, layers):
    """vmap over scan: one stack, shared by the examples."""
    stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)
    return nn.vmap(stack, variable_axes={"params": None}, split_rngs={"params": False})(features)


def OwnInside(features, layers):
    """vmap over scan: a stack for each example."""
    stack = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers)
    return nn.vmap(stack, variable_axes={"params": 0}, split_rngs={"params": True})(features)


class Shared(nn.Module):
    features: int
    layers: int

    @nn.compact
    def __call__(self, x):
        batched = nn.vmap(
            Block,
            in_axes=(0, None),
            variable_axes={"params": None},
            split_rngs={"params": False},
        )
        stack = nn.scan(
            batched, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers
        )
        return stack(self.features)(x, None)[0]


class Own(nn.Module):
    features: int
    layers: int

    @nn.compact
    def __call__(self, x):
        batched = nn.vmap(
            Block, in_axes=(0, None), variable_axes={"params": 0}, split_rngs={"params": True}
        )
        stack = nn.scan(
            batched, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.layers
        )
        return stack(self.features)(x, None)[0]


# Do vmap(scan) and scan(vmap) have their variables in the same places?
SAME = {
    "shared by the vmap": True,
    "both lifts say 0": False,
    "the inner lift says 0, the outer scan 1": True,
}
