"""Modules: layers and models as dataclasses, and the lifts over them."""

from typing import TYPE_CHECKING

from ..lazy import lazy
from .calls import compact as compact
from .calls import compact_name_scope as compact_name_scope
from .calls import nowrap as nowrap
from .module import Module as Module
from .run import apply as apply
from .run import init as init
from .run import init_with_output as init_with_output
from .sharing import merge_param as merge_param
from .sharing import share_scope as share_scope
from .state import disable_named_call as disable_named_call
from .state import enable_named_call as enable_named_call
from .state import intercept_methods as intercept_methods
from .state import override_named_call as override_named_call

if TYPE_CHECKING:
    from .functional import cond as cond
    from .functional import custom_vjp as custom_vjp
    from .functional import grad as grad
    from .functional import jvp as jvp
    from .functional import switch as switch
    from .functional import value_and_grad as value_and_grad
    from .functional import vjp as vjp
    from .loops import remat_scan as remat_scan
    from .loops import scan as scan
    from .loops import vmap as vmap
    from .loops import while_loop as while_loop
    from .staging import add_metadata_axis as add_metadata_axis
    from .staging import checkpoint as checkpoint
    from .staging import fold_rngs as fold_rngs
    from .staging import jit as jit
    from .staging import map_variables as map_variables
    from .staging import named_call as named_call
    from .staging import remat as remat

__getattr__, __dir__ = lazy(
    __name__,
    {
        "cond": "functional",
        "custom_vjp": "functional",
        "grad": "functional",
        "jvp": "functional",
        "switch": "functional",
        "value_and_grad": "functional",
        "vjp": "functional",
        "remat_scan": "loops",
        "scan": "loops",
        "vmap": "loops",
        "while_loop": "loops",
        "add_metadata_axis": "staging",
        "checkpoint": "staging",
        "fold_rngs": "staging",
        "jit": "staging",
        "map_variables": "staging",
        "named_call": "staging",
        "remat": "staging",
    },
)
