"""Ten models for the page, from one layer to 2,000 variables."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import liftax as nn

SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(x.shape[-1])(nn.LayerNorm()(x))), None


class Attends(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        y = nn.MultiHeadDotProductAttention(num_heads=2)(nn.LayerNorm(name="norm")(x))
        return x + y, None


def named(name: str) -> dict:
    return {"metadata_params": {nn.PARTITION_NAME: name}}


class Net(nn.Module):
    """A function of a module and its arguments, as a module."""

    body: object

    @nn.compact
    def __call__(self, *args):
        return self.body(*args)


def pyramid(x):
    for features in (4, 8):
        x = nn.Conv(features, (3, 3))(x)
        x = nn.relu(nn.BatchNorm(use_running_average=False)(x))
    return nn.Dense(3)(x.mean((1, 2)))


def transformer(ids):
    x = nn.Embed(11, 8, name="embed")(ids)
    stack = nn.scan(nn.remat(Attends), length=3, **STACKED, **named("layers"))
    x, _ = stack(name="blocks")(x, None)
    return nn.Dense(11, name="head")(x)


def mixture(x):
    experts = nn.vmap(nn.Dense, in_axes=None, axis_size=4, axis_name="experts", **STACKED)
    stack = nn.scan(Block, length=3, **STACKED, **named("layers"))
    x, _ = stack(name="blocks")(x, None)
    return experts(8, name="experts")(x).mean(0)


def wide(x):
    for _ in range(1000):
        x = nn.Dense(4)(x)
    return x


def f32(*shape):
    return jax.ShapeDtypeStruct(shape, "float32")


def models():
    """Name -> (module, arguments)."""
    deep = Block
    for length in (2, 3, 4):
        deep = nn.scan(deep, length=length, **STACKED)
    batched = nn.vmap(
        nn.scan(Block, length=12, **STACKED, **named("layers")),
        in_axes=(0, None),
        axis_name="batch",
        **SHARED,
    )
    return {
        "dense": (nn.Dense(3), f32(2, 4)),
        "composed": (batched(), f32(8, 16), None),
        "nested": (deep(), f32(2, 4), None),
        "recurrent": (nn.RNN(nn.LSTMCell(5)), f32(2, 7, 3)),
        "both ways": (nn.Bidirectional(nn.RNN(nn.GRUCell(5)), nn.RNN(nn.GRUCell(5))), f32(2, 7, 3)),
        "convolution": (Net(pyramid), f32(2, 8, 8, 3)),
        "transformer": (Net(transformer), jax.ShapeDtypeStruct((2, 6), jnp.int32)),
        "ensemble": (
            nn.vmap(nn.Dense, in_axes=None, axis_size=5, axis_name="member", **STACKED)(3),
            f32(2, 4),
        ),
        "mixture": (Net(mixture), f32(2, 8)),
        "large": (Net(wide), f32(2, 4)),
    }
