"""Initializers of parameters: those of :mod:`jax.nn.initializers`, and two spellings more."""

from __future__ import annotations

from jax.nn.initializers import (
    Initializer,
    constant,
    delta_orthogonal,
    glorot_normal,
    glorot_uniform,
    he_normal,
    he_uniform,
    kaiming_normal,
    kaiming_uniform,
    lecun_normal,
    lecun_uniform,
    normal,
    ones,
    orthogonal,
    truncated_normal,
    uniform,
    variance_scaling,
    xavier_normal,
    xavier_uniform,
    zeros,
)

__all__ = [
    "Initializer",
    "constant",
    "delta_orthogonal",
    "glorot_normal",
    "glorot_uniform",
    "he_normal",
    "he_uniform",
    "kaiming_normal",
    "kaiming_uniform",
    "lecun_normal",
    "lecun_uniform",
    "normal",
    "ones",
    "ones_init",
    "orthogonal",
    "truncated_normal",
    "uniform",
    "variance_scaling",
    "xavier_normal",
    "xavier_uniform",
    "zeros",
    "zeros_init",
]


def zeros_init() -> Initializer:
    """The initializer that makes zeros.

    Example:
      >>> import jax
      >>> from liftax.layers import initializers
      >>> print(initializers.zeros_init()(jax.random.key(0), (2,)))
      [0. 0.]
    """
    return zeros


def ones_init() -> Initializer:
    """The initializer that makes ones.

    Example:
      >>> import jax
      >>> from liftax.layers import initializers
      >>> print(initializers.ones_init()(jax.random.key(0), (2,)))
      [1. 1.]
    """
    return ones
