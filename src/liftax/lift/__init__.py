"""The lifts over functions of scopes."""

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
from .staging import jit as jit
from .staging import remat as remat

checkpoint = remat
