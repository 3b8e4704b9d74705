"""Modules lifted: the transformations over module classes and functions of modules."""

from ..lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
