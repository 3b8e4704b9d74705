"""Pooling over windows of inputs with channels last: ``(batch, *space, channels)``.

Inputs may lack the batch axis, or have several.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from ._util import fail, sizes
from .conv import PaddingLike, Pads, canonicalize_padding
from .dtypes import Array, ArrayLike, as_array


def pool(
    inputs: ArrayLike,
    init: ArrayLike,
    reduce_fn: Callable[[Array, Array], Array],
    window_shape: Sequence[int],
    strides: Sequence[int] | None,
    padding: PaddingLike,
) -> Array:
    """Reduces each window of the input, by ``jax.lax.reduce_window``.

    JAX knows the gradient only for sums, maxima and minima.

    Args:
      inputs: ``(*batch, *space, channels)``.
      init: the neutral element of ``reduce_fn``.
      reduce_fn: an associative function of two values, such as ``jax.lax.add``.
      window_shape: size of the window in each dimension of space.
      strides: step of the window in each dimension; None is 1.
      padding: ``'SAME'``, ``'SAME_LOWER'``, ``'VALID'``, an int, or one int or
        (low, high) pair per dimension. Padding is with ``init``.

    Raises:
      LayerError: the options do not fit each other or the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
      >>> print(nn.pool(x, 1.0, jax.lax.mul, (2,), (2,), 'VALID').ravel())
      [ 2. 12.]
    """
    x = as_array(inputs)
    window, step, pads = _arguments(x.ndim, window_shape, strides, padding)
    # JAX pools over all axes alike: one that is missing is put in front.
    if alone := x.ndim == len(window) - 1:
        x = x[None]
    # Batch and channels are axes with a window of one.
    y = lax.reduce_window(x, init, reduce_fn, window, step, pads)
    return y[0] if alone else y


def _arguments(
    ndim: int, window_shape: Sequence[int], strides: Sequence[int] | None, padding: PaddingLike
) -> tuple[tuple[int, ...], tuple[int, ...], str | Pads]:
    """Window, strides and padding over all axes, a batch axis among them."""
    if not isinstance(window_shape, Sequence):
        raise fail("pool", f"window_shape={window_shape} is not a tuple.", "Pass a tuple of ints.")
    sizes("pool", "window_shape", window_shape, 1)
    rank = len(window_shape)
    if strides is None:
        strides = (1,) * rank
    if not isinstance(strides, Sequence) or len(strides) != rank:
        raise fail(
            "pool",
            f"strides={strides} is not one int for each of window_shape={tuple(window_shape)}.",
            "Change strides=.",
        )
    sizes("pool", "strides", strides, 1)
    if ndim <= rank:
        raise fail(
            "pool",
            f"window_shape={tuple(window_shape)} needs {rank} axes of space and one of "
            f"channels, the input has {ndim} axes.",
            "Change window_shape= or the input.",
        )
    pads = canonicalize_padding(padding, rank, module="pool")
    front = max(1, ndim - rank - 1)
    if not isinstance(pads, str):
        pads = ((0, 0),) * front + pads + ((0, 0),)
    ones = (1,) * front
    return (*ones, *window_shape, 1), (*ones, *strides, 1), pads


def avg_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: PaddingLike = "VALID",
    count_include_pad: bool = True,
) -> Array:
    """The mean of each window.

    Args:
      inputs: ``(*batch, *space, channels)``.
      window_shape: size of the window in each dimension of space.
      strides: step of the window in each dimension; None is 1.
      padding: see :func:`pool`.
      count_include_pad: whether the mean counts the padding, as zeros.

    Raises:
      LayerError: the options do not fit each other or the input.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
      >>> print(nn.avg_pool(x, (2,), strides=(2,)).ravel())
      [1.5 3.5]
    """
    x = as_array(inputs)
    total = pool(
        x,
        # Of the kind of the input: JAX does not promote here.
        0.0 if jnp.issubdtype(x.dtype, jnp.inexact) else 0,
        lax.add,
        window_shape,
        strides,
        padding,
    )
    if count_include_pad:
        return total / math.prod(window_shape)
    space = x.shape[-len(window_shape) - 1 : -1]
    # How much of each window is input: alike for all channels and examples.
    ones = jnp.ones((1,) * (x.ndim - len(space) - 1) + (*space, 1))
    return total / pool(ones, 0.0, lax.add, window_shape, strides, padding)


def max_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: PaddingLike = "VALID",
) -> Array:
    """The maximum of each window; padding never wins.

    Args: see :func:`pool`.

    Raises:
      LayerError: the options do not fit each other or the input.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
      >>> print(nn.max_pool(x, (2,), strides=(2,)).ravel())
      [2. 4.]
    """
    x = as_array(inputs)
    return pool(x, _extreme(x, -jnp.inf), lax.max, window_shape, strides, padding)


def min_pool(
    inputs: ArrayLike,
    window_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    padding: PaddingLike = "VALID",
) -> Array:
    """The minimum of each window; padding never wins.

    Args: see :func:`pool`.

    Raises:
      LayerError: the options do not fit each other or the input.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> x = jnp.arange(1.0, 5.0).reshape(1, 4, 1)
      >>> print(nn.min_pool(x, (2,), strides=(2,)).ravel())
      [1. 3.]
    """
    x = as_array(inputs)
    return pool(x, _extreme(x, jnp.inf), lax.min, window_shape, strides, padding)


def _extreme(x: Array, infinity: float) -> ArrayLike:
    """The value that loses to all others: an infinity, or the end of an integer's range."""
    # With just this value JAX takes the reduction for a maximum, and knows its gradient.
    if jnp.issubdtype(x.dtype, jnp.integer):
        info = jnp.iinfo(x.dtype)
        return np.asarray(info.max if infinity > 0 else info.min, x.dtype)
    return infinity
