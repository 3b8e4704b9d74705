"""Whole models and functions, built from lifts as a user would build them.

Example:

  >>> import numpy as np
  >>> from liftax.recipes import composed_lifts_forward
  >>> x = np.ones((4, 8), np.float32)
  >>> composed_lifts_forward(0, x, num_layers=3, features=8).shape
  (32,)
"""

from __future__ import annotations

import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import liftax as nn

__all__ = ["Block", "composed_lifts", "composed_lifts_forward"]


class Block(nn.Module):
    """One layer, `relu(x W + b)`, in the form that a scan over layers takes.

    Called with the carry `x` of shape `(..., features)` and a scanned value that it does not use;
    returns the new carry and no output.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return nn.relu(nn.Dense(self.features)(x)), None


def composed_lifts(num_layers: int, features: int) -> nn.Module:
    """A stack of ``num_layers`` blocks, mapped over a batch that shares its parameters.

    The scan stacks the parameters of the layers along a new axis 0, each layer with a key of its
    own; the vmap adds no axis. A kernel has the shape `(num_layers, features, features)`.

    Returns:
      A module; call it with a batch `(B, features)` and `None`. It returns the pair of the
      activation `(B, features)` and `None`.

    Raises:
      TypeError: ``num_layers`` or ``features`` is not an integer.
      ValueError: ``num_layers`` or ``features`` is smaller than one.

    Example:

      >>> import jax, jax.numpy as jnp
      >>> from liftax.recipes import composed_lifts
      >>> variables = composed_lifts(3, 8).init(jax.random.key(0), jnp.ones((4, 8)), None)
      >>> jax.tree.map(jnp.shape, variables["params"])
      {'Dense_0': {'bias': (3, 8), 'kernel': (3, 8, 8)}}
    """
    num_layers = _count("num_layers", num_layers)
    features = _count("features", features)
    # Inside: one layer after the other, with weights and a key of its own each.
    layers = nn.scan(
        Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=num_layers
    )
    # Around: all examples have the same weights, so that their key is not split.
    batched = nn.vmap(
        layers,
        in_axes=0,
        out_axes=0,
        variable_axes={"params": None},
        split_rngs={"params": False},
    )
    return batched(features=features)


def composed_lifts_forward(
    seed: int, x_batch: ArrayLike, num_layers: int, features: int
) -> jax.Array:
    """Initialises `composed_lifts` and runs it on a batch.

    Args:
      seed: the seed of the parameters.
      x_batch: float32 (or float64 under x64) of shape `(B, features)`, `B` at least one.
      num_layers: the number of layers, at least one.
      features: the width of the batch and of each layer, at least one.

    Returns:
      The last layer's activation, flattened to `(B * features,)`.

    Raises:
      TypeError: ``seed``, ``num_layers`` or ``features`` is not an integer, or ``x_batch`` does not
        hold floating-point numbers of at least 32 bits.
      ValueError: ``x_batch`` is not of shape `(B, features)`, or a number is out of range.

    Example:

      >>> import jax.numpy as jnp
      >>> from liftax.recipes import composed_lifts_forward
      >>> composed_lifts_forward(0, jnp.ones((2, 4)), num_layers=3, features=8)
      Traceback (most recent call last):
        ...
      ValueError: x_batch has shape (2, 4): its last axis must be features=8, so that each layer's \
output is as wide as its input
    """
    key = _key(seed)
    model = composed_lifts(num_layers, features)
    batch = _batch(x_batch, _count("features", features))
    variables = model.init(key, batch, None)
    activation, _ = model.apply(variables, batch, None)
    return jnp.ravel(activation)


def _integer(name: str, value: Any) -> int:
    # bool is an int to Python, but True layers is a mistake.
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be an integer, not the bool {value}")
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {type(value).__name__}") from None


def _count(name: str, value: object) -> int:
    count = _integer(name, value)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, not {count}")
    if count >= 2**31:
        raise ValueError(f"{name} must be below 2**31, and {count} is not")
    return count


def _key(seed: object) -> jax.Array:
    number = _integer("seed", seed)
    try:
        return jax.random.key(number)
    except OverflowError:
        raise ValueError(f"seed must fit in 64 bits, and {number} does not") from None


def _batch(x_batch: object, features: int) -> jax.Array:
    # numpy first, which says what lists it cannot make an array of.
    if not isinstance(x_batch, jax.Array):
        try:
            x_batch = np.asarray(x_batch)
        except ValueError:
            raise ValueError("x_batch has rows of different lengths") from None
    if not jnp.issubdtype(x_batch.dtype, jnp.floating):
        raise TypeError(f"x_batch must hold floating-point numbers, not {x_batch.dtype}")
    # The scan's carry would come out wider than it went in.
    if jnp.promote_types(x_batch.dtype, jnp.float32) != x_batch.dtype:
        raise TypeError(
            f"x_batch must not be narrower than the parameters, which are float32: cast it, "
            f"as each layer turns {x_batch.dtype} into float32"
        )
    if x_batch.ndim != 2:
        raise ValueError(
            f"x_batch has shape {x_batch.shape}: it must have two axes, (batch, features)"
        )
    if x_batch.shape[1] != features:
        raise ValueError(
            f"x_batch has shape {x_batch.shape}: its last axis must be features={features}, "
            "so that each layer's output is as wide as its input"
        )
    if x_batch.shape[0] == 0:
        raise ValueError(f"x_batch has shape {x_batch.shape}: it must hold at least one example")
    return jnp.asarray(x_batch)
