"""The address that flax.core has for the mark of what a loop does not change."""

from .roles import broadcast as broadcast
