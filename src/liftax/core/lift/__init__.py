"""The lifts over functions of scopes."""

from ...lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
