"""The address that flax.linen has for activation functions."""

from .layers.activation import *  # noqa: F403
