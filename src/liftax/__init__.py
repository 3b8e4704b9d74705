"""liftax: lifted transformations for neural-network modules on JAX.

A person writes one layer for one example; liftax scans it over depth, vmaps it over a
batch, remats, jits and differentiates it, and keeps every parameter, statistic, cache and
random key in its place.

    import liftax as nn
"""

from . import core as core
from . import errors as errors
from . import spmd as spmd
from .core import meta as meta
from .core.filters import DenyList as DenyList
from .core.metadata import PARTITION_NAME as PARTITION_NAME
from .core.metadata import Partitioned as Partitioned
from .core.metadata import get_partition_spec as get_partition_spec
from .core.metadata import get_sharding as get_sharding
from .core.metadata import unbox as unbox
from .core.metadata import with_partitioning as with_partitioning
from .core.roles import In as In
from .core.roles import Out as Out
from .core.roles import broadcast as broadcast
from .core.scope import Variable as Variable
from .errors import LiftWarning as LiftWarning
from .layers import *
from .layout import Layout as Layout
from .layout import layout as layout
from .module import *
from .spmd import *
