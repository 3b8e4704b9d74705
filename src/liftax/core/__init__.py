"""The functional core: scopes, variables, streams, and lifts over functions of scopes."""

from ..lazy import lazy
from . import frozen_dict

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
# flax's own, and there only where flax is: `from liftax.core import *` goes without.
__all__ = [name for name in __all__ if name not in frozen_dict.NAMES]
