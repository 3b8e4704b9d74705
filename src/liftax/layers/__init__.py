"""The layers: modules that a model is made of, one family a file.

A layer says what is learned, under which name and with which shape, and leaves the numbers
to :mod:`jax.nn` and :mod:`jax.lax`. Names, fields, defaults, parameters and results are
those of flax.linen.
"""

from . import activation as activation
from . import dtypes as dtypes
from . import initializers as initializers
from .activation import (
    PReLU,
    celu,
    elu,
    gelu,
    glu,
    hard_sigmoid,
    hard_silu,
    hard_swish,
    hard_tanh,
    leaky_relu,
    log_sigmoid,
    log_softmax,
    logsumexp,
    normalize,
    one_hot,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    soft_sign,
    softmax,
    softplus,
    standardize,
    swish,
    tanh,
)
from .attention import (
    combine_masks,
    dot_product_attention,
    dot_product_attention_weights,
    fused_dot_product_attention,
    make_attention_mask,
    make_causal_mask,
)
from .combinators import BatchApply, Sequential
from .conv import Conv, ConvLocal, ConvTranspose
from .initializers import ones, ones_init, zeros, zeros_init
from .linear import Dense, DenseGeneral, Einsum, Embed
from .multihead import MultiHeadAttention, MultiHeadDotProductAttention, SelfAttention
from .normalization import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from .pooling import avg_pool, max_pool, min_pool, pool
from .recurrent import (
    RNN,
    Bidirectional,
    ConvLSTMCell,
    GRUCell,
    LSTMCell,
    MGUCell,
    OptimizedLSTMCell,
    RNNCellBase,
    SimpleCell,
)
from .stochastic import Dropout
from .weight_norm import SpectralNorm, WeightNorm

__all__ = [
    "RNN",
    "BatchApply",
    "BatchNorm",
    "Bidirectional",
    "Conv",
    "ConvLSTMCell",
    "ConvLocal",
    "ConvTranspose",
    "Dense",
    "DenseGeneral",
    "Dropout",
    "Einsum",
    "Embed",
    "GRUCell",
    "GroupNorm",
    "InstanceNorm",
    "LSTMCell",
    "LayerNorm",
    "MGUCell",
    "MultiHeadAttention",
    "MultiHeadDotProductAttention",
    "OptimizedLSTMCell",
    "PReLU",
    "RMSNorm",
    "RNNCellBase",
    "SelfAttention",
    "Sequential",
    "SimpleCell",
    "SpectralNorm",
    "WeightNorm",
    "activation",
    "avg_pool",
    "celu",
    "combine_masks",
    "dot_product_attention",
    "dot_product_attention_weights",
    "dtypes",
    "elu",
    "fused_dot_product_attention",
    "gelu",
    "glu",
    "hard_sigmoid",
    "hard_silu",
    "hard_swish",
    "hard_tanh",
    "initializers",
    "leaky_relu",
    "log_sigmoid",
    "log_softmax",
    "logsumexp",
    "make_attention_mask",
    "make_causal_mask",
    "max_pool",
    "min_pool",
    "normalize",
    "one_hot",
    "ones",
    "ones_init",
    "pool",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "soft_sign",
    "softmax",
    "softplus",
    "standardize",
    "swish",
    "tanh",
    "zeros",
    "zeros_init",
]
