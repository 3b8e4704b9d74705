"""The functional core: scopes, variables, streams, and lifts over functions of scopes."""

import importlib
from typing import Any

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

_LIFTS = {
    'custom_vjp', 'jit', 'jvp', 'remat', 'remat_scan', 'scan', 'vjp', 'vmap', 'while_loop',
}  # fmt: skip


def __getattr__(name: str) -> Any:
    # The lifts are above the core, so they are looked up when they are asked for.
    if name == "lift" or name in _LIFTS:
        lift = importlib.import_module("liftax.core.lift")
        return lift if name == "lift" else getattr(lift, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
