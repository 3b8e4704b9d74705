"""The NaN finder around a part of a program: who makes NaN in it is told where."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from .. import jax_private
from ..core.events import users_line
from ..errors import NonFiniteError
from ..pytrees import is_inexact
from .nonfinite import find_nonfinite


@contextlib.contextmanager
def nan_finder() -> Iterator[None]:
    """In the block, the first call whose result has NaN raises an error that says what made it.

    Each call of a jitted function, and each operation outside of one, runs as ever and is then
    looked at; only one that returns NaN is searched, as `find_nonfinite` does it. Buffers are not
    donated in the block, so that a step can be searched after it ran. NaN that a call was given
    is no fault of that call. Infinity raises nothing, but is named where NaN came of it.

    Raises:
      NonFiniteError: with operation, line, module, layer and direction; its ``found`` is the
        `NonFinite`.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> @jax.jit
      ... def step(w):
      ...     return w - jax.grad(lambda w: jnp.sqrt(jnp.sum(w**2)))(w)
      >>> with nn.nan_finder():
      ...     w = step(jnp.ones(3))
      >>> try:
      ...     with nn.nan_finder():
      ...         w = step(jnp.zeros(3))
      ... except nn.errors.NonFiniteError as error:
      ...     print(error.found.operation, error.found.backward, error.found.became_nan.operation)
      div False mul
    """

    def see(
        primitive: Any, inputs: Sequence[Any], params: Mapping[str, Any], outputs: Sequence[Any]
    ) -> None:
        if not any(map(_has_nan, outputs)):
            return
        found = find_nonfinite(lambda *given: primitive.bind(*given, **params), *inputs)
        if found is not None and found.operation is not None:
            # What runs outside of every jit was written by the call that runs now.
            found = dataclasses.replace(found, line=found.line or users_line())
            raise NonFiniteError(str(found), found=found)

    with jax_private.watched(see):
        yield


def _has_nan(value: Any) -> bool:
    return is_inexact(value) and bool(jnp.isnan(value).any())
