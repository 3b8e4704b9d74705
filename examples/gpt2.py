"""A decoder in the style of GPT-2, trained scanned and decoded with its KV cache.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners": layer norm before
attention and before the feed-forward layer, learned positions, output tied to the embedding.

    python examples/gpt2.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn

TEXT = (
    "a person writes one layer for one example; liftax scans it over depth, maps it over a "
    "batch, and keeps every parameter, cache and key in its place. "
) * 8


class Block(nn.Module):
    """One layer: causal self-attention and a feed-forward layer."""

    heads: int
    dropout: float = 0.0
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False, decode: bool = False) -> jax.Array:
        drop = functools.partial(nn.Dropout, self.dropout, deterministic=not train)
        width = x.shape[-1]
        mask = None if decode else nn.make_causal_mask(x[..., 0])
        norm = functools.partial(nn.LayerNorm, self.epsilon)
        h = norm(name="ln_1")(x)
        attend = nn.MultiHeadDotProductAttention(
            self.heads, decode=decode, attention_fn=nn.decode_attention, name="attn"
        )
        h = attend(h, mask=mask)
        x = x + drop()(h)
        h = nn.Dense(4 * width, name="up")(norm(name="ln_2")(x))
        return x + drop()(nn.Dense(width, name="down")(nn.gelu(h)))


class GPT2(nn.Module):
    """Tokens ``(batch, length)`` to logits ``(batch, length, vocabulary)``."""

    vocabulary: int
    context: int = 32
    width: int = 32
    heads: int = 2
    depth: int = 4
    dropout: float = 0.0
    epsilon: float = 1e-5
    run: str = "scan"
    store: str = "stacked"
    remat: nn.Remat | None = None

    def setup(self) -> None:
        init = nn.initializers.normal(0.02)
        self.wte = nn.Embed(self.vocabulary, self.width, embedding_init=init)
        self.wpe = nn.Embed(self.context, self.width, embedding_init=init)
        self.blocks = nn.Stack(
            Block(self.heads, self.dropout, self.epsilon),
            depth=self.depth,
            run=self.run,
            store=self.store,
            remat=self.remat,
        )
        self.ln_f = nn.LayerNorm(self.epsilon)

    def __call__(
        self, tokens: jax.Array, positions: Any = None, train: bool = False, decode: bool = False
    ) -> jax.Array:
        if positions is None:
            positions = jnp.arange(tokens.shape[1])
        x = self.wte(tokens) + self.wpe(positions)
        return self.wte.attend(self.ln_f(self.blocks(x, train=train, decode=decode)))


def loss(model: GPT2, variables: Any, tokens: jax.Array, rngs: Any = None) -> jax.Array:
    """The cross-entropy of each next token."""
    logits = model.apply(variables, tokens[:, :-1], train=rngs is not None, rngs=rngs)
    scores = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()


def empty_cache(model: GPT2, batch: int) -> Any:
    """A cache of zeros for ``batch`` sequences; only shapes are computed."""
    tokens = jnp.zeros((batch, model.context), jnp.int32)
    init = functools.partial(model.init, decode=True)
    cache = jax.eval_shape(init, jax.random.key(0), tokens)["cache"]
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), cache)


@functools.partial(jax.jit, static_argnums=(0, 3))
def generate(model: GPT2, variables: Any, prompt: jax.Array, length: int) -> jax.Array:
    """Continues prompts ``(batch, n)`` greedily to ``length`` tokens, one by one."""

    def step(state: Any, position: jax.Array) -> Any:
        tokens, cache = state
        token = jax.lax.dynamic_slice_in_dim(tokens, position, 1, axis=1)
        logits, updated = model.apply(
            {**variables, "cache": cache}, token, position[None], decode=True, mutable=["cache"]
        )
        given = jax.lax.dynamic_slice_in_dim(tokens, position + 1, 1, axis=1)
        chosen = jnp.where(position + 1 < prompt.shape[1], given, logits.argmax(-1))
        tokens = jax.lax.dynamic_update_slice_in_dim(tokens, chosen, position + 1, axis=1)
        return (tokens, updated["cache"]), None

    tokens = jnp.zeros((len(prompt), length), prompt.dtype).at[:, : prompt.shape[1]].set(prompt)
    start = tokens, empty_cache(model, len(prompt))
    return jax.lax.scan(step, start, jnp.arange(length - 1))[0][0]


def main() -> None:
    import optax

    letters = sorted(set(TEXT))
    text = jnp.asarray([letters.index(c) for c in TEXT])
    model = GPT2(len(letters), dropout=0.1, remat=nn.Remat("dots_saveable"))
    variables = model.init(jax.random.key(0), text[None, : model.context])
    optimizer = optax.adam(3e-3)

    @jax.jit
    def train(variables: Any, state: Any, key: jax.Array) -> Any:
        starts = jax.random.randint(key, (16,), 0, len(text) - model.context)
        tokens = text[starts[:, None] + jnp.arange(model.context)]
        by_params = functools.partial(loss, model, tokens=tokens, rngs={"dropout": key})
        value, grads = jax.value_and_grad(by_params)(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, value

    state = optimizer.init(variables)
    for step in range(301):
        variables, state, value = train(variables, state, jax.random.key(step))
        if step % 100 == 0:
            print(f"step {step}: loss {value:.3f}")
    prompt = text[None, :8]
    tokens = generate(model.clone(run="loop"), variables, prompt, model.context)
    print("".join(letters[i] for i in tokens[0]))


if __name__ == "__main__":
    main()
