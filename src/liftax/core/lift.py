"""The lifts over functions of scopes, under the name that users of the core know.

The lifts stand above the core; this file only points up to them, and nothing in
the core imports it.
"""

from ..lift import add_metadata_axis as add_metadata_axis
from ..lift import checkpoint as checkpoint
from ..lift import cond as cond
from ..lift import custom_vjp as custom_vjp
from ..lift import fold_rngs as fold_rngs
from ..lift import grad as grad
from ..lift import jit as jit
from ..lift import jvp as jvp
from ..lift import map_variables as map_variables
from ..lift import remat as remat
from ..lift import remat_scan as remat_scan
from ..lift import scan as scan
from ..lift import swap_collection as swap_collection
from ..lift import switch as switch
from ..lift import value_and_grad as value_and_grad
from ..lift import vjp as vjp
from ..lift import vmap as vmap
from ..lift import while_loop as while_loop
from .roles import In as In
from .roles import Out as Out
