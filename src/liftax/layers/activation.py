"""Activation functions, those of :mod:`jax.nn`, and the one that learns: :class:`PReLU`."""

from __future__ import annotations

import jax.numpy as jnp
from jax.nn import (
    celu,
    elu,
    gelu,
    glu,
    hard_sigmoid,
    hard_silu,
    hard_swish,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    logsumexp,
    one_hot,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_sign,
    softmax,
    softplus,
    standardize,
    swish,
)
from jax.numpy import tanh

from ..module import Module, compact
from . import initializers
from .dtypes import Array, ArrayLike, Dtype, as_array, cast

normalize = standardize
"""An older name of :func:`jax.nn.standardize`."""

__all__ = [
    "PReLU",
    "celu",
    "elu",
    "gelu",
    "glu",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "normalize",
    "one_hot",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_sign",
    "softmax",
    "softplus",
    "standardize",
    "swish",
    "tanh",
]


class PReLU(Module):
    """A rectifier whose slope below zero is learned: ``y = x if x >= 0 else a * x``.

    He et al. 2015, "Delving Deep into Rectifiers", https://arxiv.org/abs/1502.01852.

    Variables: ``params/negative_slope``, a scalar.

    Attributes:
      param_dtype: the dtype of the slope.
      negative_slope_init: the slope at initialization.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.array([-2.0, 3.0])
      >>> y, variables = nn.PReLU().init_with_output(jax.random.key(0), x)
      >>> print(y)
      [-0.02  3.  ]
    """

    param_dtype: Dtype = jnp.float32
    negative_slope_init: float = 0.01

    @compact
    def __call__(self, inputs: ArrayLike) -> Array:
        """Applies the activation to an array of any shape; shape and dtype are kept."""
        inputs = as_array(inputs)
        # A field that is a number, and not an initializer: so it is in Linen.
        init = initializers.constant(self.negative_slope_init)
        slope = self.param("negative_slope", init, (), self.param_dtype)
        # A slope in float32 must not widen an input in half precision.
        slope = cast(slope, inputs.dtype)
        return jnp.where(inputs >= 0, inputs, slope * inputs)
