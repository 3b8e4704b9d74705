"""The address that flax.linen has for tables of a model."""

from .module.summary import tabulate as tabulate
