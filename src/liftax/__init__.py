"""liftax: lifted transformations for neural-network modules on JAX.

A person writes one layer for one example; liftax scans it over depth, vmaps it over a
batch, remats, jits and differentiates it, and keeps every parameter, statistic, cache and
random key in its place.

The stub beside this file is the one list of public names. Each is loaded when it is first
asked for.

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

from .lazy import lazy

__getattr__, __dir__, __all__ = lazy(__name__, __file__)
