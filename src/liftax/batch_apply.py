"""The address that flax.linen has for calls with merged batch axes."""

from .layers.combinators import BatchApply as BatchApply
