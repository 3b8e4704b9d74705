"""What lies where: the layout of a model's variables, its findings, and how to look at them."""

from .build import layout
from .findings import RULES, Rule, rule_of
from .model import (
    Along,
    Axis,
    CollectionTotal,
    Cost,
    Enclosing,
    Finding,
    Layout,
    LiftNode,
    LiftTotal,
    StackNode,
    VariableLayout,
)

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
    "Rule",
    "StackNode",
    "VariableLayout",
    "layout",
    "rule_of",
]
