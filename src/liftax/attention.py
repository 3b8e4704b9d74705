"""The address that flax.linen has for attention."""

from .layers.attention import combine_masks as combine_masks
from .layers.attention import dot_product_attention as dot_product_attention
from .layers.attention import dot_product_attention_weights as dot_product_attention_weights
from .layers.attention import fused_dot_product_attention as fused_dot_product_attention
from .layers.attention import make_attention_mask as make_attention_mask
from .layers.attention import make_causal_mask as make_causal_mask
from .layers.dtypes import Array as Array
from .layers.dtypes import Dtype as Dtype
from .layers.dtypes import Initializer as Initializer
from .layers.dtypes import PrecisionLike as PrecisionLike
from .layers.dtypes import promote_dtype as promote_dtype
from .layers.linear import DenseGeneral as DenseGeneral
from .layers.linear import default_kernel_init as default_kernel_init
from .layers.multihead import MultiHeadAttention as MultiHeadAttention
from .layers.multihead import MultiHeadDotProductAttention as MultiHeadDotProductAttention
from .layers.multihead import SelfAttention as SelfAttention
from .layers.normalization import LayerNorm as LayerNorm
