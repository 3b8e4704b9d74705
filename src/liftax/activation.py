"""The address that flax.linen has for activation functions."""

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
