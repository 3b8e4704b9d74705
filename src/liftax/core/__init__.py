"""The functional core: scopes, variables, streams, and lifts over functions of scopes."""

from ..lazy import lazy
from . import metadata as meta  # noqa: F401
from .filters import DenyList as DenyList
from .metadata import AxisMetadata as AxisMetadata
from .metadata import map_axis_meta as map_axis_meta
from .metadata import unbox as unbox
from .roles import In as In
from .roles import Out as Out
from .roles import broadcast as broadcast
from .run import apply as apply
from .run import bind as bind
from .run import init as init
from .run import lazy_init as lazy_init
from .scope import Scope as Scope
from .variable import Variable as Variable

# The lifts stand above the core, so they are looked up when they are asked for.
__getattr__, __dir__ = lazy(
    __name__,
    {
        "lift": "lift",
        "custom_vjp": "lift",
        "jit": "lift",
        "jvp": "lift",
        "remat": "lift",
        "remat_scan": "lift",
        "scan": "lift",
        "vjp": "lift",
        "vmap": "lift",
        "while_loop": "lift",
    },
)
