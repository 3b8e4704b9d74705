"""A decoder in the style of Llama and Qwen: one block, declared once.

Touvron et al. 2023, https://arxiv.org/abs/2302.13971: RMS norms before attention and before a gated
feed-forward layer, rotary positions, grouped-query attention. Qwen2 has biases on queries, keys and
values, Qwen3 norms on queries and keys. `liftax convert --from-hf llama` (or `qwen`) brings the
checkpoints of either to the names of this model.

    python examples/llama.py
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

import liftax as nn


def rotated(x: jax.Array, base: float) -> jax.Array:
    """Rotary positions: turns pairs of features of ``(batch, length, heads, size)``."""
    half = x.shape[-1] // 2
    angles = jnp.arange(x.shape[1])[:, None, None] * base ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Attention(nn.Module):
    """Causal attention; ``kv_heads`` serve all heads."""

    heads: int
    kv_heads: int
    size: int  # of one head
    base: float
    bias: bool
    norms: bool
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        project = functools.partial(nn.DenseGeneral, use_bias=self.bias)
        q = project((self.heads, self.size), name="q")(x)
        k = project((self.kv_heads, self.size), name="k")(x)
        v = project((self.kv_heads, self.size), name="v")(x)
        if self.norms:
            q = nn.RMSNorm(self.epsilon, name="q_norm")(q)
            k = nn.RMSNorm(self.epsilon, name="k_norm")(k)
        q, k = rotated(q, self.base), rotated(k, self.base)
        y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
        return nn.DenseGeneral(x.shape[-1], axis=(-2, -1), use_bias=False, name="out")(y)


class Block(nn.Module):
    """One layer."""

    attention: Attention
    hidden: int
    epsilon: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = functools.partial(nn.RMSNorm, self.epsilon)
        x = x + self.attention(norm(name="before_attention")(x))
        h = norm(name="before_mlp")(x)
        dense = functools.partial(nn.Dense, use_bias=False)
        gate = nn.silu(dense(self.hidden, name="gate")(h))
        return x + dense(x.shape[-1], name="down")(gate * dense(self.hidden, name="up")(h))


class Llama(nn.Module):
    """Tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``."""

    vocabulary: int
    width: int = 32
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    depth: int = 4
    base: float = 1e4
    bias: bool = False
    norms: bool = False
    tied: bool = False
    size: int | None = None  # of one head; the width in equal parts where None
    epsilon: float = 1e-6
    run: str = "scan"
    store: str = "stacked"
    remat: nn.Remat | None = None

    def setup(self) -> None:
        attention = Attention(
            self.heads,
            self.kv_heads,
            self.size or self.width // self.heads,
            self.base,
            self.bias,
            self.norms,
            self.epsilon,
            parent=None,
        )
        self.embed = nn.Embed(self.vocabulary, self.width)
        self.blocks = nn.Stack(
            Block(attention, self.hidden, self.epsilon),
            depth=self.depth,
            run=self.run,
            store=self.store,
            remat=self.remat,
        )
        self.norm = nn.RMSNorm(self.epsilon)
        if not self.tied:
            self.head = nn.Dense(self.vocabulary, use_bias=False)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = self.norm(self.blocks(self.embed(tokens)))
        return self.embed.attend(x) if self.tied else self.head(x)


def loss(model: Llama, variables: object, tokens: jax.Array) -> jax.Array:
    """The cross-entropy of each next token."""
    scores = jax.nn.log_softmax(model.apply(variables, tokens[:, :-1]))
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()


def main() -> None:
    model = Llama(vocabulary=16)
    tokens = jnp.arange(24).reshape(2, 12) % 16
    variables = model.init(jax.random.key(0), tokens)
    print(jax.tree.map(jnp.shape, variables["params"]["blocks"]))
    print(f"loss {loss(model, variables, tokens):.3f}")


if __name__ == "__main__":
    main()
