"""Stacks of layers: one declaration, any way to run and to store them."""

from .places import StackLayout as StackLayout
from .places import stack_layouts as stack_layouts
from .plan import Remat as Remat
from .plan import override_stacks as override_stacks
from .slices import ByPosition as ByPosition
from .stack import Stack as Stack
