"""A decoder in the style of Gemma 3n and 4: embeddings for every layer, keys and values shared.

Gemma Team 2025, https://ai.google.dev/gemma/docs/gemma-3n: each layer has a small embedding of the
token of its own, which is gated by the residual stream and added to it; and the later layers have
no keys and values, but attend to those of the last layer of their kind, local or global, that has.

Both go through scans. The embeddings of all layers are one array, of which each layer gets its
slice (``per_layer=``). What goes through the layers that have keys and values is the residual
stream and the newest keys and values of each kind; after them those are an argument, the same for
all layers.

    python examples/gemma4.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn

Kept = dict[str, jax.Array]
"""Keys ``k`` and values ``v``, ``(batch, length, heads, size)``, and at which positions: ``at``."""


def rotated(x: jax.Array, positions: jax.Array, base: float) -> jax.Array:
    """Rotary positions: turns pairs of features of ``(batch, length, heads, size)``."""
    half = x.shape[-1] // 2
    angles = positions[..., None, None] * base ** (-jnp.arange(half) / half)
    sin, cos = jnp.sin(angles), jnp.cos(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


class Attention(nn.Module):
    """Causal attention, to ``window`` positions or to all.

    It makes its keys and values, puts them into a cache if there is one, and returns what it has
    attended to; given ``kept``, it attends to that.
    """

    heads: int
    kv_heads: int
    size: int
    window: int | None
    base: float

    @nn.compact
    def __call__(
        self, x: jax.Array, positions: jax.Array, kept: Kept | None, cache: Kept | None
    ) -> tuple[jax.Array, Kept]:
        project = functools.partial(nn.DenseGeneral, use_bias=False)
        q = nn.RMSNorm(name="q_norm")(project((self.heads, self.size), name="q")(x))
        q = rotated(q, positions, self.base)
        if kept is None:
            k = nn.RMSNorm(name="k_norm")(project((self.kv_heads, self.size), name="k")(x))
            v = project((self.kv_heads, self.size), name="v")(x)
            at = jnp.broadcast_to(positions, x.shape[:2])
            kept = {"k": rotated(k, positions, self.base), "v": v, "at": at}
            if cache is not None:
                slots = positions % cache["at"].shape[1]
                kept = {name: cache[name].at[:, slots].set(kept[name]) for name in kept}
        ahead = positions[:, None] - kept["at"][:, None, None, :]
        mask = (ahead >= 0) & (kept["at"] >= 0)[:, None, None, :]
        if self.window is not None:
            mask &= ahead < self.window
        attend = nn.decode_attention if x.shape[1] == 1 else jax.nn.dot_product_attention
        y = attend(q, kept["k"], kept["v"], mask=mask)
        return project(x.shape[-1], axis=(-2, -1), name="out")(y), kept


class Block(nn.Module):
    """What all layers have; local where there is a window."""

    heads: int = 4
    kv_heads: int = 1
    size: int = 8
    window: int | None = None
    base: float = 1e6

    @property
    def kind(self) -> str:
        return "global" if self.window is None else "local"

    @nn.compact
    def layer(
        self,
        x: jax.Array,
        positions: jax.Array,
        embedded: jax.Array,
        kept: Kept | None = None,
        cache: Kept | None = None,
    ) -> tuple[jax.Array, Kept]:
        width, dense = x.shape[-1], functools.partial(nn.Dense, use_bias=False)
        attend = Attention(
            self.heads, self.kv_heads, self.size, self.window, self.base, name="attention"
        )
        h, kept = attend(nn.RMSNorm(name="before_attention")(x), positions, kept, cache)
        x = x + nn.RMSNorm(name="after_attention")(h)
        h = nn.RMSNorm(name="before_mlp")(x)
        h = nn.gelu(dense(4 * width, name="gate")(h)) * dense(4 * width, name="up")(h)
        x = x + nn.RMSNorm(name="after_mlp")(dense(width, name="down")(h))
        # The embedding that this layer alone has of the token.
        h = nn.gelu(dense(embedded.shape[-1], name="gate_embedded")(x)) * embedded
        x = x + nn.RMSNorm(name="after_embedded")(dense(width, name="up_embedded")(h))
        return x, kept


class Makes(Block):
    """A layer that has keys and values; the newest of each kind go on with ``x``."""

    def __call__(
        self,
        through: tuple[jax.Array, dict[str, Kept]],
        positions: jax.Array,
        embedded: jax.Array,
        cache: Kept | None = None,
    ) -> tuple[tuple[jax.Array, dict[str, Kept]], Kept | None]:
        x, newest = through
        x, kept = self.layer(x, positions, embedded, cache=cache)
        return (x, {**newest, self.kind: kept}), None if cache is None else kept

    @nn.nowrap
    def empty(self, batch: int, length: int) -> Kept:
        kv = jnp.zeros((batch, length, self.kv_heads, self.size))
        return {"k": kv, "v": kv, "at": jnp.full((batch, length), -1)}

    @nn.nowrap
    def empty_cache(self, batch: int, length: int) -> Kept:
        return self.empty(batch, min(length, self.window or length))


class Shares(Block):
    """A layer that attends to the keys and values of another one of its kind."""

    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        embedded: jax.Array,
        kept: dict[str, Kept],
    ) -> jax.Array:
        return self.layer(x, positions, embedded, kept[self.kind])[0]


class Gemma4(nn.Module):
    """Tokens ``(batch, length)`` to logits; with caches, also the caches afterwards."""

    vocabulary: int
    width: int = 32
    embedded: int = 8  # the width of the embeddings that the layers have
    window: int = 4
    locals: int = 4  # to one global layer
    makes: int = 2  # repeats of the pattern that have keys and values
    shares: int = 1  # and those that share them
    run: str = "scan"
    store: str = "stacked"
    remat: nn.Remat | None = None

    def setup(self) -> None:
        options: Any = {"run": self.run, "store": self.store, "remat": self.remat}
        self.embed = nn.Embed(self.vocabulary, self.width)
        self.making = nn.Stack(
            self.pattern(Makes),
            repeats=self.makes,
            outputs="positions",
            per_layer=["embedded", "cache"],
            **options,
        )
        self.sharing = nn.Stack(
            self.pattern(Shares), repeats=self.shares, per_layer=["embedded"], **options
        )
        layers = len(self.making) + len(self.sharing)
        self.embed_layers = nn.Embed(self.vocabulary, layers * self.embedded)
        self.project = nn.DenseGeneral((layers, self.embedded), use_bias=False)
        self.project_norm = nn.RMSNorm()
        self.norm = nn.RMSNorm()

    @nn.nowrap
    def pattern(self, cls: type[Any]) -> list[Any]:
        local = cls(window=self.window, base=1e4, parent=None)
        return [local] * self.locals + [cls(parent=None)]

    def start(self, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        """What goes into the first layer, and what each layer gets: ``[layers, batch, ...]``."""
        x = self.embed(tokens) * self.width**0.5
        projected = self.project_norm(self.project(x) * self.width**-0.5)
        looked_up = self.embed_layers(tokens).reshape(projected.shape) * self.embedded**0.5
        return x, jnp.moveaxis((projected + looked_up) * 2**-0.5, 2, 0)

    def end(self, x: jax.Array) -> jax.Array:
        return self.embed.attend(self.norm(x))

    def __call__(
        self, tokens: jax.Array, positions: jax.Array | None = None, cache: Any = None
    ) -> Any:
        if positions is None:
            positions = jnp.arange(tokens.shape[1])
        x, embedded = self.start(tokens)
        # Nobody reads these: the first layer of each kind puts its own in their place.
        if cache is None:
            empty = Makes(parent=None).empty(*tokens.shape)
            newest = {"local": empty, "global": empty}
        else:
            places = {"local": cache.block[0], "global": cache.block[-1]}
            newest = jax.tree.map(lambda part: part[0], places)
        count = len(self.making)
        (x, newest), caches = self.making((x, newest), positions, embedded[:count], cache=cache)
        x = self.sharing(x, positions, embedded[count:], newest)
        logits = self.end(x)
        return logits if cache is None else (logits, caches)

    @nn.nowrap
    def empty_cache(self, batch: int, length: int) -> nn.ByPosition:
        """Caches for the layers that have keys and values."""

        def repeated(block: Makes) -> Any:
            cache = block.empty_cache(batch, length)
            return jax.tree.map(lambda x: jnp.stack([x] * self.makes), cache)

        return nn.ByPosition(block=tuple(map(repeated, self.pattern(Makes))))


def written_out(model: Gemma4, variables: Any, tokens: jax.Array) -> jax.Array:
    """The same model as a Python loop over its layers."""
    bound, positions = model.bind(variables), jnp.arange(tokens.shape[1])
    x, embedded = bound.start(tokens)
    kept: dict[str, Kept] = {}
    for i, layer in enumerate([*bound.making[:], *bound.sharing[:]]):
        given = kept[layer.kind] if isinstance(layer, Shares) else None
        x, kept[layer.kind] = layer.layer(x, positions, embedded[i], given)
    return bound.end(x)


@functools.partial(jax.jit, static_argnums=0)
def decode(model: Gemma4, variables: Any, tokens: jax.Array) -> jax.Array:
    """The logits of all positions, computed one by one from the caches."""

    def step(cache: Any, position: jax.Array) -> Any:
        token = jax.lax.dynamic_slice_in_dim(tokens, position, 1, axis=1)
        logits, cache = model.apply(variables, token, position[None], cache)
        return cache, logits[:, 0]

    start = model.empty_cache(*tokens.shape)
    return jax.lax.scan(step, start, jnp.arange(tokens.shape[1]))[1].swapaxes(0, 1)


def loss(model: Gemma4, variables: Any, tokens: jax.Array) -> jax.Array:
    """The cross-entropy of each next token."""
    scores = jax.nn.log_softmax(model.apply(variables, tokens[:, :-1]))
    return -jnp.take_along_axis(scores, tokens[:, 1:, None], -1).mean()


def main() -> None:
    import optax

    model = Gemma4(vocabulary=16, remat=nn.Remat())
    # Each sequence counts upward in its own stride.
    first, stride = jnp.meshgrid(jnp.arange(16), jnp.arange(1, 5))
    tokens = (first.reshape(-1, 1) + stride.reshape(-1, 1) * jnp.arange(12)) % 16
    print(nn.layout(model, jax.random.key(0), tokens))
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
