"""What lies where: the layout of a model's variables, its findings, and how to look at them."""

from ..errors import RULES, Rule, rule_of
from .build import layout
from .data import (
    Along,
    Axis,
    CollectionTotal,
    Cost,
    Enclosing,
    Finding,
    LiftNode,
    LiftTotal,
    Residual,
    Residuals,
    StackNode,
    VariableLayout,
)
from .shown import Layout

__all__ = [
    "RULES",
    "Along",
    "Axis",
    "CollectionTotal",
    "Cost",
    "Enclosing",
    "Finding",
    "Layout",
    "LiftNode",
    "LiftTotal",
    "Residual",
    "Residuals",
    "Rule",
    "StackNode",
    "VariableLayout",
    "layout",
    "rule_of",
]
