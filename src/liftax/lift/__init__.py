"""The lifts over functions of scopes."""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .autodiff import custom_vjp as custom_vjp
    from .autodiff import grad as grad
    from .autodiff import jvp as jvp
    from .autodiff import value_and_grad as value_and_grad
    from .autodiff import vjp as vjp
    from .branches import cond as cond
    from .branches import switch as switch
    from .collections import add_metadata_axis as add_metadata_axis
    from .collections import fold_rngs as fold_rngs
    from .collections import map_variables as map_variables
    from .collections import swap_collection as swap_collection
    from .loops import scan as scan
    from .mapping import vmap as vmap
    from .recurrence import remat_scan as remat_scan
    from .recurrence import while_loop as while_loop
    from .staging import checkpoint as checkpoint
    from .staging import jit as jit
    from .staging import remat as remat

__getattr__, __dir__ = lazy(
    __name__,
    {
        "add_metadata_axis": "collections",
        "checkpoint": "staging",
        "cond": "branches",
        "custom_vjp": "autodiff",
        "fold_rngs": "collections",
        "grad": "autodiff",
        "jit": "staging",
        "jvp": "autodiff",
        "map_variables": "collections",
        "remat": "staging",
        "remat_scan": "recurrence",
        "scan": "loops",
        "swap_collection": "collections",
        "switch": "branches",
        "value_and_grad": "autodiff",
        "vjp": "autodiff",
        "vmap": "mapping",
        "while_loop": "recurrence",
    },
)
