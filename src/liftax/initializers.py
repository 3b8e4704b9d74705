"""The address that flax.linen has for initializers of parameters."""

from .layers.initializers import Initializer as Initializer
from .layers.initializers import constant as constant
from .layers.initializers import delta_orthogonal as delta_orthogonal
from .layers.initializers import glorot_normal as glorot_normal
from .layers.initializers import glorot_uniform as glorot_uniform
from .layers.initializers import he_normal as he_normal
from .layers.initializers import he_uniform as he_uniform
from .layers.initializers import kaiming_normal as kaiming_normal
from .layers.initializers import kaiming_uniform as kaiming_uniform
from .layers.initializers import lecun_normal as lecun_normal
from .layers.initializers import lecun_uniform as lecun_uniform
from .layers.initializers import normal as normal
from .layers.initializers import ones as ones
from .layers.initializers import ones_init as ones_init
from .layers.initializers import orthogonal as orthogonal
from .layers.initializers import truncated_normal as truncated_normal
from .layers.initializers import uniform as uniform
from .layers.initializers import variance_scaling as variance_scaling
from .layers.initializers import xavier_normal as xavier_normal
from .layers.initializers import xavier_uniform as xavier_uniform
from .layers.initializers import zeros as zeros
from .layers.initializers import zeros_init as zeros_init
