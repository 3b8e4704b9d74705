"""The address that flax.linen has for dropout."""

from .layers.stochastic import Dropout as Dropout
