"""Modules: layers and models as dataclasses, and the lifts over them."""

from ..lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
