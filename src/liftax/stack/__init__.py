"""Stacks of layers: one declaration, any way to run and to store them."""

from .arguments import ByPosition as ByPosition
from .options import Remat as Remat
from .options import override_stacks as override_stacks
from .stack import Stack as Stack
from .storage import StackLayout as StackLayout
from .storage import stack_layouts as stack_layouts
