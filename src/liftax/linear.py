"""The address that flax.linen has for dense, embedding and convolution layers."""

from jax import lax

from .layers._util import to_tuple
from .layers.conv import Conv as Conv
from .layers.conv import ConvBase, dimension_numbers
from .layers.conv import ConvLocal as ConvLocal
from .layers.conv import ConvTranspose as ConvTranspose
from .layers.conv import PaddingLike as PaddingLike
from .layers.dtypes import Array as Array
from .layers.dtypes import Dtype as Dtype
from .layers.dtypes import Initializer as Initializer
from .layers.dtypes import PrecisionLike as PrecisionLike
from .layers.dtypes import PromoteDtypeFn as PromoteDtypeFn
from .layers.dtypes import promote_dtype as promote_dtype
from .layers.linear import Dense as Dense
from .layers.linear import DenseGeneral as DenseGeneral
from .layers.linear import Einsum as Einsum
from .layers.linear import Embed as Embed
from .layers.linear import canonicalize_padding as canonicalize_padding
from .layers.linear import default_embed_init as default_embed_init
from .layers.linear import default_kernel_init as default_kernel_init

# Names that flax keeps to itself there, and programs import all the same.
_Conv = ConvBase
_canonicalize_tuple = to_tuple


def _normalize_axes(axes: tuple[int, ...], ndim: int) -> tuple[int, ...]:
    """Counts axes from 0, in ascending order.

    Example:
      >>> _normalize_axes((-1, 0), 3)
      (0, 2)
    """
    return tuple(sorted(axis + ndim if axis < 0 else axis for axis in axes))


def _conv_dimension_numbers(input_shape: tuple[int, ...]) -> lax.ConvDimensionNumbers:
    """Returns how convolutions read an input of this shape: the channels last.

    Example:
      >>> _conv_dimension_numbers((1, 8, 8, 3)).lhs_spec
      (0, 3, 1, 2)
    """
    return dimension_numbers(len(input_shape))
