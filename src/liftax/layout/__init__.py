"""What lies where: the layout of a model's variables, its findings, and how to look at them."""

import sys
import types
from typing import Any

from .build import layout
from .findings import RULES, Rule, rule_of
from .model import (
    Along,
    Axis,
    CollectionTotal,
    Cost,
    Finding,
    Layout,
    LiftNode,
    LiftTotal,
    VariableLayout,
)

__all__ = [
    "RULES",
    "Along",
    "Axis",
    "CollectionTotal",
    "Cost",
    "Finding",
    "Layout",
    "LiftNode",
    "LiftTotal",
    "Rule",
    "VariableLayout",
    "layout",
    "rule_of",
]


class _Package(types.ModuleType):
    """This package, callable: `liftax.layout` is the function, whatever was imported first."""

    def __call__(self, *args: Any, **kwargs: Any) -> Layout:
        return layout(*args, **kwargs)


sys.modules[__name__].__class__ = _Package
