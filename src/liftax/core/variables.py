"""The address that flax.core has for handles of variables."""

from .scope import Variable as Variable
