"""The decoder, its loss, and text sampled from it."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn

VOCABULARY = 256
"""Tokens are bytes."""


class Block(nn.Module):
    """One layer: causal self-attention and a feed-forward layer."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, decode: bool = False) -> jax.Array:
        width = x.shape[-1]
        # With a cache the layer masks what is not there yet by itself.
        mask = None if decode else nn.make_causal_mask(x[..., 0])
        attention = nn.MultiHeadDotProductAttention(self.heads, decode=decode, name="attention")
        x = x + attention(nn.LayerNorm(name="ln_1")(x), mask=mask)
        h = nn.Dense(4 * width, name="up")(nn.LayerNorm(name="ln_2")(x))
        return x + nn.Dense(width, name="down")(nn.gelu(h))


class Decoder(nn.Module):
    """Bytes ``(batch, length)`` to logits ``(batch, length, 256)``.

    Attributes:
      context: the longest text that it takes.
      width: of the residual stream.
      heads: of each attention.
      depth: the number of layers.
      run: how the stack runs.
      fsdp: the mesh axis over which the parameters of the layers are split.
    """

    context: int = 128
    width: int = 128
    heads: int = 4
    depth: int = 6
    # A word, or a `Pipeline`, as `Stack` takes it.
    run: Any = "scan"
    fsdp: str | None = None

    def setup(self) -> None:
        init = nn.initializers.normal(0.02)
        self.bytes = nn.Embed(VOCABULARY, self.width, embedding_init=init)
        self.positions = nn.Embed(self.context, self.width, embedding_init=init)
        self.blocks = nn.Stack(Block(self.heads), depth=self.depth, run=self.run, fsdp=self.fsdp)
        self.norm = nn.LayerNorm()

    def __call__(
        self, tokens: jax.Array, start: jax.Array | int = 0, decode: bool = False
    ) -> jax.Array:
        x = self.bytes(tokens) + self.positions(start + jnp.arange(tokens.shape[1]))
        # Left out where it says nothing: an argument of a pipelined stack has to be declared.
        x = self.blocks(x, decode=decode) if decode else self.blocks(x)
        return self.bytes.attend(self.norm(x))


def loss(model: Decoder, params: object, tokens: jax.Array) -> jax.Array:
    """The cross-entropy of each next byte, of tokens ``(batch, length + 1)``."""
    logits = model.apply({"params": params}, tokens[:, :-1])
    scores = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()


def empty_cache(model: Decoder) -> Any:
    """A cache for one text; only shapes are computed."""
    tokens = jnp.zeros((1, model.context), jnp.int32)
    # The cache is as long as what `init` is given.
    init = functools.partial(model.init, decode=True)
    cache = jax.eval_shape(init, jax.random.key(0), tokens)["cache"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache)


@functools.partial(jax.jit, static_argnums=(0, 4))
def sample(
    model: Decoder, params: Any, prompt: jax.Array, key: jax.Array, length: int
) -> jax.Array:
    """Continues a prompt ``(n,)`` to ``length`` bytes, one at a time, with a cache of what was.

    Each layer's keys and values stay in its cache, so a step computes one position; the layers
    are written out (``run="loop"``), since a step is too small to gain from a loop.
    """
    model = model.clone(run="loop", fsdp=None)

    def step(state: Any, position: jax.Array) -> Any:
        text, cache = state
        token = jax.lax.dynamic_slice_in_dim(text, position, 1)[None]
        logits, updated = model.apply(
            {"params": params, "cache": cache}, token, position, decode=True, mutable=["cache"]
        )
        drawn = jax.random.categorical(jax.random.fold_in(key, position), logits[0, 0] / 0.8)
        # Within the prompt the next byte is known, and the cache is filled by the same step: one
        # program for both, whatever the prompt's length.
        given = jax.lax.dynamic_slice_in_dim(text, position + 1, 1)[0]
        chosen = jnp.where(position + 1 < len(prompt), given, drawn.astype(text.dtype))
        text = jax.lax.dynamic_update_slice_in_dim(text, chosen[None], position + 1, 0)
        return (text, updated["cache"]), None

    text = jnp.zeros(length, jnp.int32).at[: len(prompt)].set(prompt)
    return jax.lax.scan(step, (text, empty_cache(model)), jnp.arange(length - 1))[0][0]
