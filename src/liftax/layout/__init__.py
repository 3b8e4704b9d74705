"""What lies where: the layout of a model's variables, its findings, and how to look at them."""

from ..errors import RULES as RULES
from ..errors import Rule as Rule
from ..errors import rule_of as rule_of
from .build import layout as layout
from .data import Along as Along
from .data import Axis as Axis
from .data import CollectionTotal as CollectionTotal
from .data import Cost as Cost
from .data import Enclosing as Enclosing
from .data import Finding as Finding
from .data import LiftNode as LiftNode
from .data import LiftTotal as LiftTotal
from .data import Residual as Residual
from .data import Residuals as Residuals
from .data import StackNode as StackNode
from .data import VariableLayout as VariableLayout
from .shown import Layout as Layout
