"""A deep LSTM: a scan over time inside a scan over depth.

Each layer is a recurrent network over the whole sequence (Hochreiter and Schmidhuber 1997) with
a residual connection around it. The task: is the number of ones so far odd?

    python examples/lstm.py
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp

import liftax as nn


class Layer(nn.Module):
    """One recurrent layer over ``(batch, time, width)``."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return x + nn.RNN(nn.OptimizedLSTMCell(x.shape[-1]), name="over_time")(nn.LayerNorm()(x))


class DeepLSTM(nn.Module):
    """Bits ``(batch, time)`` to logits of the parity so far."""

    width: int = 16
    depth: int = 4
    run: str = "scan"
    store: str = "stacked"
    remat: nn.Remat | None = None

    @nn.compact
    def __call__(self, bits: jax.Array) -> jax.Array:
        x = nn.Embed(2, self.width)(bits)
        layers = nn.Stack(
            Layer(), depth=self.depth, run=self.run, store=self.store, remat=self.remat
        )
        return nn.Dense(1)(nn.LayerNorm()(layers(x)))[..., 0]


def loss(model: DeepLSTM, variables: Any, bits: jax.Array) -> jax.Array:
    """The logistic loss of the parity at each time."""
    odd = jnp.cumsum(bits, axis=1) % 2
    logits = model.apply(variables, bits)
    return jnp.mean(jax.nn.softplus(logits) - odd * logits)


def main() -> None:
    import optax

    model = DeepLSTM(remat=nn.Remat())
    bits = jax.random.bernoulli(jax.random.key(0), shape=(64, 16)).astype(jnp.int32)
    variables = model.init(jax.random.key(1), bits)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(variables: Any, state: Any, key: jax.Array) -> Any:
        bits = jax.random.bernoulli(key, shape=(64, 16)).astype(jnp.int32)
        value, grads = jax.value_and_grad(functools.partial(loss, model, bits=bits))(variables)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(variables, updates), state, value

    state = optimizer.init(variables)
    for step in range(101):
        variables, state, value = train(variables, state, jax.random.key(step))
        if step % 25 == 0:
            right = (model.apply(variables, bits) > 0) == jnp.cumsum(bits, axis=1) % 2
            print(f"step {step}: loss {value:.3f}, right {right.mean():.3f}")


if __name__ == "__main__":
    main()
