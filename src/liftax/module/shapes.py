"""What a module would make of its arguments, as shapes: nothing is computed."""

from __future__ import annotations

from collections.abc import Mapping

import jax

from ..core.types import Tree
from ..pytrees import is_array, split
from .module import Module


def init_shapes(
    module: Module, rngs: object, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Mapping[str, Tree]:
    """Returns the shapes of the variables that ``module.init(rngs, *args, **kwargs)`` makes.

    Args:
      module: an unbound module.
      rngs, args, kwargs: as for its ``init``; an array, or the shape of one in its place.
    """
    # A trace has arrays for arguments: all else is closed over, as the module has it in a call.
    arrays, rest = split((rngs, args, kwargs), is_array)

    def init(arrays: list[jax.Array]) -> Mapping[str, Tree]:
        rngs, args, kwargs = rest.filled(arrays)
        return module.init(rngs, *args, **kwargs)

    return jax.eval_shape(init, arrays)
