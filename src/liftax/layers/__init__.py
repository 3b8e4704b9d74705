"""The layers: modules that a model is made of, one family a file.

A layer says what is learned, under which name and with which shape, and leaves the numbers
to :mod:`jax.nn` and :mod:`jax.lax`. Names, fields, defaults, parameters and results are
those of flax.linen.
"""

from ..lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
