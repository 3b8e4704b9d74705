from typing import Any

import jax

import liftax as nn
from liftax.practice.grading import Call, Function, Grading, f32


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.Dense(x.shape[-1])(nn.relu(x))


def params(depth: int, features: int) -> Any:
    dense = {"kernel": f32(depth, features, features), "bias": f32(depth, features)}
    return {"block_0": {"Dense_0": dense}}


def as_layers(depth: int, features: int) -> Call:
    return Call(args=(params(depth, features), nn.Stack(Block(), depth=depth)))


def scaled(depth: int, features: int) -> Call:
    return Call(args=(params(depth, features), nn.Stack(Block(), depth=depth), 0.5))


def frozen(depth: int, features: int) -> Call:
    return Call(args=(params(depth, features), nn.Stack(Block(), depth=depth), 2))


GRADING = Grading(
    parts=(
        Function("as_layers", as_layers),
        Function("scaled", scaled),
        Function("frozen", frozen),
    ),
    shown={"depth": 12, "features": 8},
    sizes={"depth": (3, 4), "features": (1, 2)},
)
