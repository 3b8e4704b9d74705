"""The address that flax.core has for boxed variables."""

from .boxes import PARTITION_NAME as PARTITION_NAME
from .boxes import AxisMetadata as AxisMetadata
from .boxes import Partitioned as Partitioned
from .boxes import add_axis as add_axis
from .boxes import get_global_mesh as get_global_mesh
from .boxes import get_partition_spec as get_partition_spec
from .boxes import get_sharding as get_sharding
from .boxes import global_mesh_defined as global_mesh_defined
from .boxes import is_axis_metadata as is_axis_metadata
from .boxes import map_axis_meta as map_axis_meta
from .boxes import remove_axis as remove_axis
from .boxes import replace_boxed as replace_boxed
from .boxes import unbox as unbox
from .boxes import with_partitioning as with_partitioning
from .linen_names import LogicalNames as LogicalNames
from .linen_names import TAxisMetadata as TAxisMetadata
