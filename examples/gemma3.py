"""A decoder in the style of Gemma 3: five local layers to one global, and a remainder.

Gemma Team 2025, https://arxiv.org/abs/2503.19786: grouped-query attention with normalized
queries and keys, rotary positions of two wavelengths, RMS norms before and after each part,
gated feed-forward layers, embeddings scaled and tied.

The cache of a local layer is a ring of as many positions as its window has, that of a global
layer holds them all: caches that differ in shape, handed to the layers by position.

    python examples/gemma3.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn

Cache = dict[str, jax.Array]


def rotated(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary positions: turns pairs of features of ``(batch, length, heads, size)``.

    Su et al. 2021, https://arxiv.org/abs/2104.09864.
    """
    half = x.shape[-1] // 2
    angles = positions[..., None, None] * base ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Attention(nn.Module):
    """Causal attention, to ``window`` positions or to all; ``kv_heads`` serve all heads."""

    heads: int
    kv_heads: int
    size: int
    window: int | None
    base: float

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: Cache | None
    ) -> tuple[jax.Array, Cache | None]:
        project = functools.partial(nn.DenseGeneral, use_bias=False)
        q = nn.RMSNorm(name="q_norm")(project((self.heads, self.size), name="q")(x))
        k = nn.RMSNorm(name="k_norm")(project((self.kv_heads, self.size), name="k")(x))
        v = project((self.kv_heads, self.size), name="v")(x)
        q, k = rotated(q, positions, self.base), rotated(k, positions, self.base)
        at = jnp.broadcast_to(positions, x.shape[:2])
        if cache is not None:
            slots = positions % cache["at"].shape[1]
            cache = {
                "k": cache["k"].at[:, slots].set(k),
                "v": cache["v"].at[:, slots].set(v),
                "at": cache["at"].at[:, slots].set(at),
            }
            k, v, at = cache["k"], cache["v"], cache["at"]
        ahead = positions[:, None] - at[:, None, None, :]
        mask = (ahead >= 0) & (at >= 0)[:, None, None, :]
        if self.window is not None:
            mask &= ahead < self.window
        attend = nn.decode_attention if x.shape[1] == 1 else jax.nn.dot_product_attention
        y = attend(q, k, v, mask=mask)
        return project(x.shape[-1], axis=(-2, -1), name="out")(y), cache


class Block(nn.Module):
    """One layer; local where it has a window."""

    heads: int = 4
    kv_heads: int = 2
    size: int = 8
    window: int | None = None
    base: float = 1e6

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, cache: Cache | None = None
    ) -> tuple[jax.Array, Cache | None]:
        attend = Attention(
            self.heads, self.kv_heads, self.size, self.window, self.base, name="attention"
        )
        h, cache = attend(nn.RMSNorm(name="before_attention")(x), positions, cache)
        x = x + nn.RMSNorm(name="after_attention")(h)
        h = nn.RMSNorm(name="before_mlp")(x)
        gate = nn.gelu(nn.Dense(4 * x.shape[-1], use_bias=False, name="gate")(h))
        h = gate * nn.Dense(4 * x.shape[-1], use_bias=False, name="up")(h)
        h = nn.Dense(x.shape[-1], use_bias=False, name="down")(h)
        return x + nn.RMSNorm(name="after_mlp")(h), cache

    @nn.nowrap
    def empty_cache(self, batch: int, length: int) -> Cache:
        length = min(length, self.window or length)
        kv = jnp.zeros((batch, length, self.kv_heads, self.size))
        return {"k": kv, "v": kv, "at": jnp.full((batch, length), -1)}


class Gemma3(nn.Module):
    """Tokens ``(batch, length)`` to logits; with caches, also the caches afterwards."""

    vocabulary: int
    width: int = 32
    window: int = 4
    repeats: int = 2
    remainder: int = 2
    run: str = "scan"
    store: str = "stacked"
    remat: nn.Remat | None = None

    def setup(self) -> None:
        self.embed = nn.Embed(self.vocabulary, self.width)
        self.blocks = nn.Stack(
            [self.local] * 5 + [Block()],
            repeats=self.repeats,
            after=[self.local] * self.remainder,
            outputs="positions",
            per_layer=["cache"],
            run=self.run,
            store=self.store,
            remat=self.remat,
        )
        self.norm = nn.RMSNorm()

    @property
    def local(self) -> Block:
        return Block(window=self.window, base=1e4, parent=None)

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None = None, cache: Any = None
    ) -> Any:
        if positions is None:
            positions = jnp.arange(tokens.shape[1])
        x = self.embed(tokens) * self.width**0.5
        x, caches = self.blocks(x, positions, cache=cache)
        logits = self.embed.attend(self.norm(x))
        return logits if cache is None else (logits, caches)

    @nn.nowrap
    def empty_cache(self, batch: int, length: int) -> nn.ByPosition:
        """Caches for every layer: those of the pattern have an axis of its repeats."""

        def repeated(block: Block) -> Any:
            cache = block.empty_cache(batch, length)
            return jax.tree.map(lambda x: jnp.stack([x] * self.repeats), cache)

        local = self.local
        pattern = [*[local] * 5, Block(parent=None)]
        return nn.ByPosition(
            block=tuple(map(repeated, pattern)),
            after=(local.empty_cache(batch, length),) * self.remainder,
        )


@functools.partial(jax.jit, static_argnums=0)
def decode(model: Gemma3, variables: Any, tokens: jax.Array) -> jax.Array:
    """The logits of all positions, computed one by one from the caches."""

    def step(cache: Any, position: jax.Array) -> Any:
        token = jax.lax.dynamic_slice_in_dim(tokens, position, 1, axis=1)
        logits, cache = model.apply(variables, token, position[None], cache)
        return cache, logits[:, 0]

    start = model.empty_cache(*tokens.shape)
    return jax.lax.scan(step, start, jnp.arange(tokens.shape[1]))[1].swapaxes(0, 1)


def loss(model: Gemma3, variables: Any, tokens: jax.Array) -> jax.Array:
    """The cross-entropy of each next token."""
    scores = jax.nn.log_softmax(model.apply(variables, tokens[:, :-1]))
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()


def main() -> None:
    import optax

    model = Gemma3(vocabulary=16, remat=nn.Remat())
    # Each sequence counts upward in its own stride.
    first, stride = jnp.meshgrid(jnp.arange(16), jnp.arange(1, 5))
    tokens = (first.reshape(-1, 1) + stride.reshape(-1, 1) * jnp.arange(12)) % 16
    variables = model.init(jax.random.key(0), tokens)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(variables: Any, state: Any) -> Any:
        value, grads = jax.value_and_grad(functools.partial(loss, model, tokens=tokens))(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, value

    state = optimizer.init(variables)
    for step in range(61):
        variables, state, value = train(variables, state)
        if step % 20 == 0:
            print(f"step {step}: loss {value:.3f}")
    logits = decode(model.clone(run="loop"), variables, tokens[:4])
    error = jnp.abs(logits - model.apply(variables, tokens[:4])).max()
    print(f"decoded one by one, with caches: the logits differ by at most {error:.1e}")


if __name__ == "__main__":
    main()
