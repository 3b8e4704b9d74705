"""A vision transformer on the digits, with stochastic depth.

Dosovitskiy et al. 2020, https://arxiv.org/abs/2010.11929; the rate at which a layer is skipped
grows with its number (Huang et al. 2016, https://arxiv.org/abs/1603.09382), so each layer gets
its own: an argument that the stack slices.

    python examples/vit.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn


class Block(nn.Module):
    """One encoder layer, whose branches are skipped at random for whole examples."""

    heads: int

    @nn.compact
    def __call__(self, x: jax.Array, skip: jax.Array, train: bool) -> jax.Array:
        def kept(h: jax.Array) -> jax.Array:
            if not train:
                return h
            keep = jax.random.bernoulli(self.make_rng("dropout"), 1 - skip, (len(h), 1, 1))
            return h * keep / (1 - skip)

        h = nn.LayerNorm()(x)
        x = x + kept(nn.MultiHeadDotProductAttention(self.heads)(h))
        h = nn.Dense(2 * x.shape[-1])(nn.LayerNorm()(x))
        return x + kept(nn.Dense(x.shape[-1])(nn.gelu(h)))


class ViT(nn.Module):
    """Images ``(batch, 8, 8)`` to logits of ten classes."""

    width: int = 32
    heads: int = 4
    depth: int = 4
    skip: float = 0.1
    run: str = "scan"
    store: str = "stacked"
    remat: nn.Remat | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (2, 2), strides=(2, 2), name="patches")(images[..., None])
        x = x.reshape(len(x), -1, self.width)
        first = self.param("class", nn.initializers.zeros, (1, 1, self.width))
        x = jnp.concatenate([jnp.tile(first, (len(x), 1, 1)), x], axis=1)
        x = x + self.param("positions", nn.initializers.normal(0.02), x.shape[1:])
        encoder = nn.Stack(
            Block(self.heads),
            depth=self.depth,
            per_layer=["skip"],
            run=self.run,
            store=self.store,
            remat=self.remat,
            name="encoder",
        )
        x = encoder(x, jnp.linspace(0, self.skip, self.depth), train)
        return nn.Dense(10, name="head")(nn.LayerNorm(name="norm")(x[:, 0]))


def loss(model: ViT, variables: Any, images: Any, labels: Any, rngs: Any = None) -> jax.Array:
    """The cross-entropy of the labels."""
    logits = model.apply(variables, images, rngs is not None, rngs=rngs)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], -1).mean()


def digits() -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """1,437 images to train and 360 to test, with their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = jax.random.permutation(jax.random.key(0), len(data.target))
    images = jnp.asarray(data.images / 16, jnp.float32)[order]
    labels = jnp.asarray(data.target)[order]
    return (images[:1437], labels[:1437]), (images[1437:], labels[1437:])


def main() -> None:
    import optax

    (images, labels), (test_images, test_labels) = digits()
    model = ViT(remat=nn.Remat(policy="dots_saveable"))
    variables = model.init(jax.random.key(0), images[:1])
    optimizer = optax.adamw(2e-3)

    @jax.jit
    def train(variables: Any, state: Any, key: jax.Array) -> Any:
        batch = jax.random.randint(key, (128,), 0, len(images))
        by_params = functools.partial(
            loss, model, images=images[batch], labels=labels[batch], rngs={"dropout": key}
        )
        value, grads = jax.value_and_grad(by_params)(variables)
        updates, state = optimizer.update(grads, state, variables)
        return optax.apply_updates(variables, updates), state, value

    state = optimizer.init(variables)
    for step in range(301):
        variables, state, value = train(variables, state, jax.random.key(step))
        if step % 100 == 0:
            found = model.apply(variables, test_images).argmax(-1)
            print(f"step {step}: loss {value:.3f}, accuracy {(found == test_labels).mean():.3f}")


if __name__ == "__main__":
    main()
