"""The address that flax.linen has for normalizations."""

from .layers._util import to_tuple
from .layers.dtypes import Array as Array
from .layers.dtypes import Dtype as Dtype
from .layers.dtypes import Initializer as Initializer
from .layers.dtypes import canonicalize_dtype as canonicalize_dtype
from .layers.normalization import Axes as Axes
from .layers.normalization import BatchNorm as BatchNorm
from .layers.normalization import GroupNorm as GroupNorm
from .layers.normalization import InstanceNorm as InstanceNorm
from .layers.normalization import LayerNorm as LayerNorm
from .layers.normalization import RMSNorm as RMSNorm
from .layers.weight_norm import SpectralNorm as SpectralNorm
from .layers.weight_norm import WeightNorm as WeightNorm


def _canonicalize_axes(rank: int, axes: Axes) -> tuple[int, ...]:
    """Counts axes from 0, in ascending order.

    Example:
      >>> _canonicalize_axes(3, (-1, 0))
      (0, 2)
    """
    return tuple(sorted({axis % rank for axis in to_tuple(axes)}))
