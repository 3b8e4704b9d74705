"""Layers made of layers: a chain, and a call over several batch axes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..errors import LayerError
from ..module import Module, compact
from ..pytrees import is_array
from ._util import fail


class Sequential(Module):
    """Calls its layers one after the other: ``layers[-1](... layers[0](*args))``.

    A layer that returns a tuple hands it on as positional arguments, one that returns a
    dict as keyword arguments. A layer is any callable; a function may make modules, whose
    names are then those of modules made here.

    Attributes:
      layers: the callables, a list or tuple, at least one.

    Raises:
      LayerError: ``layers`` is empty, not a sequence, or has what cannot be called.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> net = nn.Sequential([nn.Dense(4), nn.relu, lambda x: nn.Dense(x.shape[-1])(x)])
      >>> y, variables = net.init_with_output(jax.random.key(0), jnp.ones((2, 3)))
      >>> y.shape, sorted(variables['params'])
      ((2, 4), ['Dense_0', 'layers_0'])
    """

    layers: Sequence[Callable[..., Any]]

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Sequence):
            raise fail(
                self,
                f"layers is of type {type(self.layers).__name__}, not a sequence of callables.",
                "Pass a list or tuple.",
            )
        super().__post_init__()

    @compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the first layer with the arguments, and each next one with what came out."""
        if not self.layers:
            raise fail(self, "layers is empty.", "Pass at least one layer.")
        # All of them first: nothing is made for a chain that cannot be run to its end.
        for i, layer in enumerate(self.layers):
            if not callable(layer):
                raise fail(
                    self,
                    f"layers[{i}] is of type {type(layer).__name__}, which cannot be called.",
                    "Change layers=.",
                )
            if isinstance(layer, type) and issubclass(layer, Module):
                raise fail(
                    self,
                    f"layers[{i}] is the class {layer.__name__}, not a layer.",
                    f"Pass an instance, {layer.__name__}(...).",
                )
        out = self.layers[0](*args, **kwargs)
        for layer in self.layers[1:]:
            # A list is one argument, as in Linen.
            if isinstance(out, tuple):
                out = layer(*out)
            elif isinstance(out, dict):
                out = layer(**out)
            else:
                out = layer(out)
        return out


class BatchApply:
    """Calls ``f`` with the first ``num_dims`` axes of its array arguments merged into one.

    Arguments of fewer axes pass unchanged. The first axis of each result is split again.

    Args:
      f: the function or module to call.
      num_dims: how many leading axes to merge.

    Raises:
      LayerError: the arguments differ in the axes to merge, or none has as many.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> nn.BatchApply(lambda x: x @ jnp.ones((4, 5)))(jnp.ones((2, 3, 4))).shape
      (2, 3, 5)
    """

    # No module: it has no variables, and ``f`` keeps the name that it has.
    def __init__(self, f: Callable[..., Any], num_dims: int = 2):
        self.f, self.num_dims = f, num_dims

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        n = self.num_dims

        # Options and small arrays go along as they are.
        def merged(x: Any) -> bool:
            return is_array(x) and x.ndim >= n

        fronts = {x.shape[:n] for x in jax.tree.leaves((args, kwargs)) if merged(x)}
        if len(fronts) != 1:
            raise LayerError(
                f"BatchApply: the leading {n} axes of the arguments are {sorted(fronts)}, "
                "not the same for all.\nChange num_dims= or the arguments."
            )
        front = fronts.pop()

        def merge(x: Any) -> Any:
            return jnp.reshape(x, (-1, *x.shape[n:])) if merged(x) else x

        out = self.f(*jax.tree.map(merge, args), **jax.tree.map(merge, kwargs))
        return jax.tree.map(lambda x: jnp.reshape(x, (*front, *x.shape[1:])), out)
