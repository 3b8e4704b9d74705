"""The address that flax.linen has for pooling."""

from .layers.pooling import avg_pool as avg_pool
from .layers.pooling import max_pool as max_pool
from .layers.pooling import min_pool as min_pool
from .layers.pooling import pool as pool
