"""The address that flax.linen has for modules made of modules."""

from .layers.combinators import Sequential as Sequential
