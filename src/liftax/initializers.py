"""The address that flax.linen has for initializers of parameters."""

from .layers.initializers import *  # noqa: F403
