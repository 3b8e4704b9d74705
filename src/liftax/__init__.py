"""liftax: lifted transformations for neural-network modules on JAX.

A person writes one layer for one example; liftax scans it over depth, vmaps it over a
batch, remats, jits and differentiates it, and keeps every parameter, statistic, cache and
random key in its place.

This file is the one list of public names. The core, the lifts and `Module` are loaded at
once; layers and tools are loaded when they are first asked for.

Example:
  >>> import jax, liftax as nn
  >>> class Block(nn.Module):
  ...     features: int
  ...     @nn.compact
  ...     def __call__(self, x, _):
  ...         return nn.relu(nn.Dense(self.features)(x)), None
  >>> Layers = nn.scan(
  ...     Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
  >>> Batch = nn.vmap(Layers, variable_axes={'params': None}, split_rngs={'params': False})
  >>> x = jax.numpy.ones((8, 4))
  >>> variables = Batch(features=4).init(jax.random.key(0), x, None)
  >>> variables['params']['Dense_0']['kernel'].shape
  (3, 4, 4)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import core as core
from . import errors as errors
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
from .core.variable import Variable as Variable
from .errors import LiftWarning as LiftWarning
from .lazy import lazy
from .module.calls import compact as compact
from .module.calls import compact_name_scope as compact_name_scope
from .module.calls import nowrap as nowrap
from .module.module import Module as Module
from .module.run import apply as apply
from .module.run import init as init
from .module.run import init_with_output as init_with_output
from .module.sharing import merge_param as merge_param
from .module.sharing import share_scope as share_scope
from .module.state import disable_named_call as disable_named_call
from .module.state import enable_named_call as enable_named_call
from .module.state import intercept_methods as intercept_methods
from .module.state import override_named_call as override_named_call

if TYPE_CHECKING:
    from . import recipes as recipes
    from . import spmd as spmd
    from .layers import activation as activation
    from .layers import attention as attention
    from .layers import combinators as combinators
    from .layers import dtypes as dtypes
    from .layers import initializers as initializers
    from .layers import linear as linear
    from .layers import normalization as normalization
    from .layers import pooling as pooling
    from .layers import recurrent as recurrent
    from .layers import stochastic as stochastic
    from .layers.activation import PReLU as PReLU
    from .layers.activation import celu as celu
    from .layers.activation import elu as elu
    from .layers.activation import gelu as gelu
    from .layers.activation import glu as glu
    from .layers.activation import hard_sigmoid as hard_sigmoid
    from .layers.activation import hard_silu as hard_silu
    from .layers.activation import hard_swish as hard_swish
    from .layers.activation import hard_tanh as hard_tanh
    from .layers.activation import leaky_relu as leaky_relu
    from .layers.activation import log_sigmoid as log_sigmoid
    from .layers.activation import log_softmax as log_softmax
    from .layers.activation import logsumexp as logsumexp
    from .layers.activation import normalize as normalize
    from .layers.activation import one_hot as one_hot
    from .layers.activation import relu as relu
    from .layers.activation import relu6 as relu6
    from .layers.activation import selu as selu
    from .layers.activation import sigmoid as sigmoid
    from .layers.activation import silu as silu
    from .layers.activation import soft_sign as soft_sign
    from .layers.activation import softmax as softmax
    from .layers.activation import softplus as softplus
    from .layers.activation import standardize as standardize
    from .layers.activation import swish as swish
    from .layers.activation import tanh as tanh
    from .layers.attention import combine_masks as combine_masks
    from .layers.attention import dot_product_attention as dot_product_attention
    from .layers.attention import dot_product_attention_weights as dot_product_attention_weights
    from .layers.attention import fused_dot_product_attention as fused_dot_product_attention
    from .layers.attention import make_attention_mask as make_attention_mask
    from .layers.attention import make_causal_mask as make_causal_mask
    from .layers.combinators import BatchApply as BatchApply
    from .layers.combinators import Sequential as Sequential
    from .layers.conv import Conv as Conv
    from .layers.conv import ConvLocal as ConvLocal
    from .layers.conv import ConvTranspose as ConvTranspose
    from .layers.initializers import ones as ones
    from .layers.initializers import ones_init as ones_init
    from .layers.initializers import zeros as zeros
    from .layers.initializers import zeros_init as zeros_init
    from .layers.linear import Dense as Dense
    from .layers.linear import DenseGeneral as DenseGeneral
    from .layers.linear import Einsum as Einsum
    from .layers.linear import Embed as Embed
    from .layers.multihead import MultiHeadAttention as MultiHeadAttention
    from .layers.multihead import MultiHeadDotProductAttention as MultiHeadDotProductAttention
    from .layers.multihead import SelfAttention as SelfAttention
    from .layers.normalization import BatchNorm as BatchNorm
    from .layers.normalization import GroupNorm as GroupNorm
    from .layers.normalization import InstanceNorm as InstanceNorm
    from .layers.normalization import LayerNorm as LayerNorm
    from .layers.normalization import RMSNorm as RMSNorm
    from .layers.pooling import avg_pool as avg_pool
    from .layers.pooling import max_pool as max_pool
    from .layers.pooling import min_pool as min_pool
    from .layers.pooling import pool as pool
    from .layers.recurrent import ConvLSTMCell as ConvLSTMCell
    from .layers.recurrent import GRUCell as GRUCell
    from .layers.recurrent import LSTMCell as LSTMCell
    from .layers.recurrent import MGUCell as MGUCell
    from .layers.recurrent import OptimizedLSTMCell as OptimizedLSTMCell
    from .layers.recurrent import RNNCellBase as RNNCellBase
    from .layers.recurrent import SimpleCell as SimpleCell
    from .layers.rnn import RNN as RNN
    from .layers.rnn import Bidirectional as Bidirectional
    from .layers.stochastic import Dropout as Dropout
    from .layers.weight_norm import SpectralNorm as SpectralNorm
    from .layers.weight_norm import WeightNorm as WeightNorm
    from .layout.build import layout as layout
    from .layout.model import Layout as Layout
    from .module.functional import cond as cond
    from .module.functional import custom_vjp as custom_vjp
    from .module.functional import grad as grad
    from .module.functional import jvp as jvp
    from .module.functional import switch as switch
    from .module.functional import value_and_grad as value_and_grad
    from .module.functional import vjp as vjp
    from .module.loops import remat_scan as remat_scan
    from .module.loops import scan as scan
    from .module.loops import vmap as vmap
    from .module.loops import while_loop as while_loop
    from .module.staging import add_metadata_axis as add_metadata_axis
    from .module.staging import checkpoint as checkpoint
    from .module.staging import fold_rngs as fold_rngs
    from .module.staging import jit as jit
    from .module.staging import map_variables as map_variables
    from .module.staging import named_call as named_call
    from .module.staging import remat as remat
    from .module.summary import summary as summary
    from .module.summary import tabulate as tabulate
    from .spmd import LogicallyPartitioned as LogicallyPartitioned
    from .spmd import RulesFallback as RulesFallback
    from .spmd import get_logical_axis_rules as get_logical_axis_rules
    from .spmd import logical_axis_rules as logical_axis_rules
    from .spmd import logical_to_mesh as logical_to_mesh
    from .spmd import logical_to_mesh_axes as logical_to_mesh_axes
    from .spmd import logical_to_mesh_sharding as logical_to_mesh_sharding
    from .spmd import set_logical_axis_rules as set_logical_axis_rules
    from .spmd import with_logical_constraint as with_logical_constraint
    from .spmd import with_logical_partitioning as with_logical_partitioning
    from .stack.formats import load_checkpoint as load_checkpoint
    from .stack.formats import save_checkpoint as save_checkpoint
    from .stack.found import stackings_of as stackings_of
    from .stack.perlayer import layer_counts as layer_counts
    from .stack.perlayer import layer_norms as layer_norms
    from .stack.perlayer import map_layers as map_layers
    from .stack.places import StackLayout as StackLayout
    from .stack.places import stack_layouts as stack_layouts
    from .stack.plan import Remat as Remat
    from .stack.plan import override_stacks as override_stacks
    from .stack.slices import ByPosition as ByPosition
    from .stack.stack import Stack as Stack
    from .stack.stackings import Stacking as Stacking
    from .stack.store import to_layers as to_layers
    from .stack.store import to_stacked as to_stacked

__getattr__, __dir__ = lazy(
    __name__,
    {
        "BatchApply": "layers.combinators",
        "BatchNorm": "layers.normalization",
        "Bidirectional": "layers.rnn",
        "ByPosition": "stack.slices",
        "Conv": "layers.conv",
        "ConvLSTMCell": "layers.recurrent",
        "ConvLocal": "layers.conv",
        "ConvTranspose": "layers.conv",
        "Dense": "layers.linear",
        "DenseGeneral": "layers.linear",
        "Dropout": "layers.stochastic",
        "Einsum": "layers.linear",
        "Embed": "layers.linear",
        "GRUCell": "layers.recurrent",
        "GroupNorm": "layers.normalization",
        "InstanceNorm": "layers.normalization",
        "LSTMCell": "layers.recurrent",
        "LayerNorm": "layers.normalization",
        "Layout": "layout.model",
        "LogicallyPartitioned": "spmd",
        "MGUCell": "layers.recurrent",
        "MultiHeadAttention": "layers.multihead",
        "MultiHeadDotProductAttention": "layers.multihead",
        "OptimizedLSTMCell": "layers.recurrent",
        "PReLU": "layers.activation",
        "RMSNorm": "layers.normalization",
        "RNN": "layers.rnn",
        "RNNCellBase": "layers.recurrent",
        "Remat": "stack.plan",
        "RulesFallback": "spmd",
        "SelfAttention": "layers.multihead",
        "Sequential": "layers.combinators",
        "SimpleCell": "layers.recurrent",
        "SpectralNorm": "layers.weight_norm",
        "Stack": "stack.stack",
        "StackLayout": "stack.places",
        "Stacking": "stack.stackings",
        "WeightNorm": "layers.weight_norm",
        "activation": "layers.activation",
        "add_metadata_axis": "module.staging",
        "attention": "layers.attention",
        "avg_pool": "layers.pooling",
        "celu": "layers.activation",
        "checkpoint": "module.staging",
        "combinators": "layers.combinators",
        "combine_masks": "layers.attention",
        "cond": "module.functional",
        "custom_vjp": "module.functional",
        "dot_product_attention": "layers.attention",
        "dot_product_attention_weights": "layers.attention",
        "dtypes": "layers.dtypes",
        "elu": "layers.activation",
        "fold_rngs": "module.staging",
        "fused_dot_product_attention": "layers.attention",
        "gelu": "layers.activation",
        "get_logical_axis_rules": "spmd",
        "glu": "layers.activation",
        "grad": "module.functional",
        "hard_sigmoid": "layers.activation",
        "hard_silu": "layers.activation",
        "hard_swish": "layers.activation",
        "hard_tanh": "layers.activation",
        "initializers": "layers.initializers",
        "jit": "module.staging",
        "jvp": "module.functional",
        "layer_counts": "stack.perlayer",
        "layer_norms": "stack.perlayer",
        "layout": "layout.build",
        "leaky_relu": "layers.activation",
        "linear": "layers.linear",
        "load_checkpoint": "stack.formats",
        "log_sigmoid": "layers.activation",
        "log_softmax": "layers.activation",
        "logical_axis_rules": "spmd",
        "logical_to_mesh": "spmd",
        "logical_to_mesh_axes": "spmd",
        "logical_to_mesh_sharding": "spmd",
        "logsumexp": "layers.activation",
        "make_attention_mask": "layers.attention",
        "make_causal_mask": "layers.attention",
        "map_layers": "stack.perlayer",
        "map_variables": "module.staging",
        "max_pool": "layers.pooling",
        "min_pool": "layers.pooling",
        "named_call": "module.staging",
        "normalization": "layers.normalization",
        "normalize": "layers.activation",
        "one_hot": "layers.activation",
        "ones": "layers.initializers",
        "ones_init": "layers.initializers",
        "override_stacks": "stack.plan",
        "pool": "layers.pooling",
        "pooling": "layers.pooling",
        "recipes": "recipes",
        "recurrent": "layers.recurrent",
        "relu": "layers.activation",
        "relu6": "layers.activation",
        "remat": "module.staging",
        "remat_scan": "module.loops",
        "save_checkpoint": "stack.formats",
        "scan": "module.loops",
        "selu": "layers.activation",
        "set_logical_axis_rules": "spmd",
        "sigmoid": "layers.activation",
        "silu": "layers.activation",
        "soft_sign": "layers.activation",
        "softmax": "layers.activation",
        "softplus": "layers.activation",
        "spmd": "spmd",
        "stack_layouts": "stack.places",
        "stackings_of": "stack.found",
        "standardize": "layers.activation",
        "stochastic": "layers.stochastic",
        "summary": "module.summary:summary",
        "swish": "layers.activation",
        "switch": "module.functional",
        "tabulate": "module.summary",
        "tanh": "layers.activation",
        "to_layers": "stack.store",
        "to_stacked": "stack.store",
        "value_and_grad": "module.functional",
        "vjp": "module.functional",
        "vmap": "module.loops",
        "while_loop": "module.loops",
        "with_logical_constraint": "spmd",
        "with_logical_partitioning": "spmd",
        "zeros": "layers.initializers",
        "zeros_init": "layers.initializers",
    },
)

_TOOLS = {"TYPE_CHECKING", "annotations", "compat", "lazy", "lift", "module"}
__all__ = [name for name in __dir__() if not name.startswith("_") and name not in _TOOLS]
