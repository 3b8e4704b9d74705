"""The address that flax.linen has for the choice of dtypes."""

from .layers.dtypes import Array as Array
from .layers.dtypes import Dtype as Dtype
from .layers.dtypes import canonicalize_dtype as canonicalize_dtype
from .layers.dtypes import promote_dtype as promote_dtype
