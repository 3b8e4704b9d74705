"""Dropout."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from ..module import Module, compact
from ._util import fail, merge_option, normalize_axes
from .dtypes import Array, as_array
from .sharded import bernoulli_as


class Dropout(Module):
    """Sets a random part of the input to zero, and scales the rest up to keep the mean.

    ``y = where(keep, x / (1 - rate), 0)`` with ``keep`` true with probability
    ``1 - rate``. Srivastava et al. 2014, https://jmlr.org/papers/v15/srivastava14a.html.

    Shapes: as the input.

    Attributes:
      rate: the part that is set to zero, from 0 to 1.
      broadcast_dims: axes along which the mask is the same.
      deterministic: True leaves the input as it is; here or at the call.
      rng_collection: the stream that the key is drawn from.

    Raises:
      LayerError: ``deterministic`` is not given just once, ``rate`` is not in 0 to 1, or
        the input is of an integer dtype.
      InvalidRngError: the stream is missing.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.Dropout(0.5)
      >>> x = jnp.ones(6)
      >>> y = layer.apply({}, x, deterministic=False, rngs={'dropout': jax.random.key(0)})
      >>> print(y)
      [0. 2. 2. 0. 0. 0.]
      >>> print(layer.apply({}, x, deterministic=True))
      [1. 1. 1. 1. 1. 1.]
    """

    rate: float
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @compact
    def __call__(
        self, inputs: Array, deterministic: bool | None = None, rng: Array | None = None
    ) -> Array:
        """Drops parts of ``inputs``; ``rng`` is the key, in place of the stream."""
        idle = merge_option(self, "deterministic", self.deterministic, deterministic)
        if not 0 <= self.rate <= 1:
            raise fail(self, f"rate={self.rate} is not in 0 to 1.", "Change rate=.")
        # Before a key is asked for: a model in evaluation is handed none.
        if idle or self.rate == 0:
            return inputs
        # The rest would be scaled by one over nothing.
        if self.rate == 1:
            return jnp.zeros_like(inputs)
        inputs = as_array(inputs)
        if not jnp.issubdtype(inputs.dtype, jnp.inexact):
            raise fail(
                self,
                f"the input is of dtype {inputs.dtype}, which cannot be scaled.",
                "Cast the input to a floating dtype.",
            )
        shape = inputs.shape
        # The draws are as many as the mask has elements: along a broadcast axis there is one.
        if self.broadcast_dims:
            same = normalize_axes(self, "broadcast_dims", self.broadcast_dims, inputs.ndim)
            shape = tuple(1 if i in same else n for i, n in enumerate(shape))
        key = self.make_rng(self.rng_collection) if rng is None else rng
        kept = 1.0 - self.rate
        mask = bernoulli_as(inputs, key, kept, shape)
        return lax.select(mask, inputs / kept, jnp.zeros_like(inputs))
