"""Which dtype a layer computes in.

A layer has two dtypes: ``param_dtype``, in which its parameters are stored, and
``dtype``, in which it computes. Where ``dtype`` is None, the inputs and the
parameters decide by JAX's usual promotion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike as ArrayLike

Array = jax.Array
Dtype = Any
Initializer = Callable[..., Any]
PrecisionLike = Any
PromoteDtypeFn = Callable[..., Any]
DotGeneral = Callable[..., Array]


def canonicalize_dtype(*args: Any, dtype: Dtype | None = None, inexact: bool = True) -> Dtype:
    """The dtype that ``args`` are to be cast to.

    Args:
      *args: arrays, scalars or None; None is passed over.
      dtype: the answer, where it is given; otherwise the args decide.
      inexact: demand a floating or complex dtype; integers then promote to float32.

    Raises:
      ValueError: ``dtype`` is not inexact although ``inexact`` asks for it, or there
        is nothing to infer a dtype from.

    Example:
      >>> import jax.numpy as jnp
      >>> from liftax.layers import dtypes
      >>> dtypes.canonicalize_dtype(jnp.ones(2, jnp.bfloat16), None, jnp.ones(2))
      dtype('float32')
      >>> dtypes.canonicalize_dtype(jnp.arange(2))
      dtype('float32')
    """
    if dtype is None:
        # Nearly always they agree, and JAX takes long to find that out.
        dtype = _uniform(args)
        if dtype is None:
            dtype = jnp.result_type(*(jnp.asarray(x) for x in args if x is not None))
        if inexact and not jnp.issubdtype(dtype, jnp.inexact):
            # Whole numbers: a layer computes in float32 at least.
            dtype = jnp.promote_types(jnp.float32, dtype)
    elif inexact and not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(f"dtype must be a floating or complex dtype, got {np.dtype(dtype).name}.")
    return dtype


def promote_dtype(*args: Any, dtype: Dtype | None = None, inexact: bool = True) -> list[Any]:
    """Casts all ``args`` to one dtype, that of :func:`canonicalize_dtype`.

    Args:
      *args: arrays, scalars or None; None comes back as None.
      dtype: the dtype to cast to, or None to infer it.
      inexact: demand a floating or complex dtype.

    Example:
      >>> import jax.numpy as jnp
      >>> from liftax.layers import dtypes
      >>> x, none, y = dtypes.promote_dtype(jnp.ones(2, jnp.bfloat16), None, 1.0)
      >>> x.dtype, none, y.dtype
      (dtype(bfloat16), None, dtype(bfloat16))
    """
    dtype = canonicalize_dtype(*args, dtype=dtype, inexact=inexact)
    return [x if x is None else cast(x, dtype) for x in args]


def as_array(x: ArrayLike) -> Array:
    """``x`` as an array; free where it is one."""
    return x if isinstance(x, jax.Array) else jnp.asarray(x)


def cast(x: Any, dtype: Dtype) -> Array:
    """``x`` as an array of ``dtype``, not weakly typed; free where it is one."""
    if getattr(x, "weak_type", True) is False and x.dtype == dtype:
        return x
    return jnp.asarray(x, dtype)


def _uniform(args: tuple[Any, ...]) -> Dtype | None:
    """The one dtype of all args, or None where promotion has something to decide."""
    dtype = None
    for x in args:
        if x is None:
            continue
        # A weak type, or anything but a JAX array, takes part in promotion.
        if getattr(x, "weak_type", True):
            return None
        if dtype is None:
            dtype = x.dtype
        elif x.dtype != dtype:
            return None
    return dtype
