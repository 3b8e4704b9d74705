"""Stacks of layers: one declaration, any way to run and to store them."""

from .arguments import ByPosition as ByPosition
from .fsdp import FSDP as FSDP
from .fsdp import fsdp_sharding as fsdp_sharding
from .options import Remat as Remat
from .options import override_stacks as override_stacks
from .stack import Stack as Stack
from .storage import StackLayout as StackLayout
from .storage import stack_layouts as stack_layouts
