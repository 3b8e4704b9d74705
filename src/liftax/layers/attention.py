"""Attention: the functions, and the masks they take."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..module import Module
from ._util import check_broadcast, dot_general, fail, is_differentiated
from .dtypes import (
    Array,
    ArrayLike,
    DotGeneral,
    Dtype,
    PrecisionLike,
    as_array,
    cast,
    promote_dtype,
)
from .sharded import bernoulli_as

Einsum = Callable[..., Array]


def check_shapes(name: str, query: Array, key: Array, value: Array | None = None) -> None:
    """Queries, keys and values must agree in batch, heads, length and depth."""
    q, k = jnp.shape(query), jnp.shape(key)
    v = jnp.shape(value) if value is not None else k
    shapes = f"query {q}, key {k}" + ("" if value is None else f", value {v}")
    problem = None
    if not len(q) == len(k) == len(v) or len(q) < 3:
        problem = "they must have the same number of axes, at least 3"
    elif not q[:-3] == k[:-3] == v[:-3]:
        problem = "their batch axes must be the same"
    elif not q[-2] == k[-2] == v[-2]:
        problem = "they must have the same number of heads, the last axis but one"
    elif q[-1] != k[-1]:
        problem = "query and key must have the same depth, the last axis"
    elif k[-3] != v[-3]:
        problem = "key and value must have the same length"
    if problem:
        raise fail(name, f"{shapes}: {problem}.", "Pass (*batch, length, heads, depth).")


def check_rate(module: object, rate: float) -> None:
    """Raises LayerError for a rate that is no part of the whole."""
    if not 0.0 <= rate <= 1.0:
        raise fail(module, f"dropout_rate={rate} is not in 0 to 1.", "Change dropout_rate=.")


def _no_clash(
    name: str,
    einsums: Sequence[Einsum | None],
    precision: PrecisionLike,
    dot: DotGeneral | None,
) -> bool:
    """Whether custom einsums are used; both or none, and no option of the default ones."""
    given = [e is not None for e in einsums]
    if any(given) and not all(given):
        raise fail(
            name,
            "one of qk_attn_weights_einsum and attn_weights_value_einsum is given.",
            "Pass both or none.",
        )
    if any(given) and (precision is not None or dot is not None):
        raise fail(
            name,
            "custom einsums are given together with precision or einsum_dot_general.",
            "Set these in the custom einsums.",
        )
    return any(given)


def _default_einsum(precision: PrecisionLike, dot: DotGeneral | None) -> Einsum:
    if dot is not None:
        return functools.partial(jnp.einsum, precision=precision, _dot_general=dot)

    def einsum(equation: str, a: Array, b: Array) -> Array:
        # What jnp.einsum comes to here, without the search for it.
        quick = a.dtype == b.dtype and not isinstance(precision, tuple)
        if quick and not is_differentiated(a, b):
            return _QUICK[equation](a, b, precision)
        return jnp.einsum(equation, a, b, precision=precision)

    return einsum


def _logits(query: Array, key: Array, precision: PrecisionLike) -> Array:
    # Batch axes and heads in front, as the equation has them.
    n = query.ndim
    batch = (*range(n - 3), n - 2)
    return dot_general(query, key, (((n - 1,), (n - 1,)), (batch, batch)), precision)


def _average(weights: Array, value: Array, precision: PrecisionLike) -> Array:
    n = value.ndim
    batch = ((*range(n - 3), n - 2), tuple(range(n - 2)))
    y = dot_general(value, weights, (((n - 3,), (n - 1,)), batch), precision)
    return lax.transpose(y, (*range(n - 3), n - 1, n - 3, n - 2))


_LOGITS, _AVERAGE = "...qhd,...khd->...hqk", "...hqk,...khd->...qhd"
_QUICK = {_LOGITS: _logits, _AVERAGE: _average}


def dot_product_attention_weights(
    query: Array,
    key: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Dtype | None = None,
    precision: PrecisionLike = None,
    module: Module | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: DotGeneral | None = None,
    einsum: Einsum | None = None,
) -> Array:
    """The weights of attention, ``softmax(q @ k.T / sqrt(depth) + bias)``.

    Args:
      query: ``(*batch, q_length, heads, depth)``.
      key: ``(*batch, kv_length, heads, depth)``.
      bias: added before the softmax; broadcasts to the weights.
      mask: weights are zero where it is False or 0; broadcasts to the weights.
      broadcast_dropout: drop the same weights in all batch entries and heads.
      dropout_rng: key for the dropout.
      dropout_rate: part of the weights that is dropped.
      deterministic: no dropout.
      dtype: dtype to compute in; None promotes the inputs.
      precision: see ``jax.lax.Precision``.
      module: sows the weights into its ``intermediates`` as ``attention_weights``.
      force_fp32_for_softmax: take the softmax, and return the weights, in float32.
      einsum_dot_general: used in the einsum in place of ``jax.lax.dot_general``.
      einsum: used in place of ``jax.numpy.einsum``.

    Returns:
      ``(*batch, heads, q_length, kv_length)``.

    Raises:
      LayerError: shapes do not fit, options contradict each other, or there is dropout
        without a key.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> q = k = jnp.ones((1, 2, 1, 4))
      >>> print(nn.dot_product_attention_weights(q, k, mask=nn.make_causal_mask(q[..., 0, 0])))
      [[[[1.  0. ]
         [0.5 0.5]]]]
    """
    name = "dot_product_attention_weights"
    check_shapes(name, query, key)
    _no_clash(name, [einsum], precision, einsum_dot_general)
    shape = (*query.shape[:-3], query.shape[-2], query.shape[-3], key.shape[-3])
    for what, x in (("bias", bias), ("mask", mask)):
        if x is not None:
            check_broadcast(name, what, jnp.shape(x), shape)
    check_rate(name, dropout_rate)
    drop = not deterministic and dropout_rate > 0.0
    if drop and dropout_rng is None:
        raise fail(
            name,
            f"dropout_rate={dropout_rate} needs a key.",
            "Pass dropout_rng=, or deterministic=True.",
        )
    query, key = promote_dtype(query, key, dtype=dtype)
    dtype = query.dtype
    if einsum is None:
        einsum = _default_einsum(precision, einsum_dot_general)
    # The root is taken in the default float dtype, then rounded to that of the query.
    default_float = jax.dtypes.canonicalize_dtype(float)
    root = np.sqrt(np.asarray(query.shape[-1], default_float)).astype(dtype)
    # The query is divided, which is smaller than the logits.
    weights = einsum(_LOGITS, query / root, key)

    if bias is not None:
        weights = weights + bias
    if mask is not None:
        # Not -inf: a query that may see nothing would be NaN, and so would all that follows.
        weights = jnp.where(mask, weights, jnp.finfo(dtype).min)
    # The logits of half precision have been rounded by then: it is the sum that gains.
    if force_fp32_for_softmax and dtype != jnp.float32:
        weights = jax.nn.softmax(weights.astype(jnp.float32))
    else:
        weights = cast(jax.nn.softmax(weights), dtype)

    if module is not None:
        module.sow("intermediates", "attention_weights", weights)
    if drop and dropout_rng is not None:
        kept = 1.0 - dropout_rate
        if broadcast_dropout:
            # The key's draws are these alone: that is what broadcasting saves.
            shape = (1,) * (key.ndim - 2) + weights.shape[-2:]
            keep = jax.random.bernoulli(dropout_rng, kept, shape)
        else:
            keep = bernoulli_as(weights, dropout_rng, kept, shape)
        weights = weights * (keep.astype(dtype) / jnp.asarray(kept, dtype=dtype))
    return weights


def dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Dtype | None = None,
    precision: PrecisionLike = None,
    module: Module | None = None,
    force_fp32_for_softmax: bool = False,
    einsum_dot_general: DotGeneral | None = None,
    qk_attn_weights_einsum: Einsum | None = None,
    attn_weights_value_einsum: Einsum | None = None,
) -> Array:
    """Attention: ``softmax(q @ k.T / sqrt(depth) + bias) @ v``.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762. See
    :func:`dot_product_attention_weights` for the arguments not listed here.

    Args:
      query: ``(*batch, q_length, heads, depth)``.
      key: ``(*batch, kv_length, heads, depth)``.
      value: ``(*batch, kv_length, heads, v_depth)``.
      qk_attn_weights_einsum: used in place of ``jax.numpy.einsum`` for the weights.
      attn_weights_value_einsum: the same for the product of weights and values.

    Returns:
      ``(*batch, q_length, heads, v_depth)``.

    Raises:
      LayerError: shapes do not fit, options contradict each other, or there is dropout
        without a key.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> q, k, v = (jnp.ones((2, n, 4, 8)) for n in (3, 5, 5))
      >>> nn.dot_product_attention(q, k, v).shape
      (2, 3, 4, 8)
    """
    name = "dot_product_attention"
    einsums = [qk_attn_weights_einsum, attn_weights_value_einsum]
    # Told under this function's name, before the other one looks at them again.
    custom = _no_clash(name, einsums, precision, einsum_dot_general)
    check_shapes(name, query, key, value)
    query, key, value = promote_dtype(query, key, value, dtype=dtype)
    weights = dot_product_attention_weights(
        query,
        key,
        bias,
        mask,
        broadcast_dropout,
        dropout_rng,
        dropout_rate,
        deterministic,
        query.dtype,
        precision,
        module,
        force_fp32_for_softmax,
        einsum_dot_general,
        qk_attn_weights_einsum,
    )
    einsum = attn_weights_value_einsum if custom else _default_einsum(precision, einsum_dot_general)
    assert einsum is not None
    return einsum(_AVERAGE, weights, value)


def fused_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    bias: Array | None = None,
    mask: Array | None = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Dtype | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
    implementation: str | None = None,
) -> Array:
    """Attention by ``jax.nn.dot_product_attention``, which has a fused kernel on some devices.

    Made for ``attention_fn`` of :class:`MultiHeadDotProductAttention`. The softmax is taken
    in float32, so the result equals :func:`dot_product_attention` up to rounding. There is
    no dropout. Dao et al. 2022, https://arxiv.org/abs/2205.14135.

    Args:
      query: ``(*batch, q_length, heads, depth)``.
      key: ``(*batch, kv_length, heads, depth)``.
      value: ``(*batch, kv_length, heads, depth)``.
      bias: added before the softmax; broadcasts to ``(*batch, heads, q_length, kv_length)``.
      mask: weights are zero where it is False or 0; broadcasts likewise.
      dropout_rate: must be 0 unless ``deterministic``.
      deterministic: no dropout.
      dtype: dtype to compute in; None promotes the inputs.
      is_causal: hide later positions, without a mask in memory.
      scale: factor of the logits; None is ``1 / sqrt(depth)``.
      implementation: ``'xla'``, ``'cudnn'``, or None to let JAX choose.

    Returns:
      ``(*batch, q_length, heads, depth)``.

    Raises:
      LayerError: shapes do not fit, or dropout is asked for.

    Example:
      >>> import functools, jax, jax.numpy as jnp, liftax as nn
      >>> causal = functools.partial(nn.fused_dot_product_attention, is_causal=True)
      >>> layer = nn.MultiHeadDotProductAttention(num_heads=2, attention_fn=causal)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((3, 5, 8)))
      >>> y.shape
      (3, 5, 8)
    """
    name = "fused_dot_product_attention"
    check_shapes(name, query, key, value)
    if dropout_rate > 0.0 and not deterministic:
        raise fail(
            name,
            f"dropout_rate={dropout_rate}, but the fused kernel has no dropout.",
            "Pass deterministic=True, dropout_rate=0, or use dot_product_attention.",
        )
    query, key, value = promote_dtype(query, key, value, dtype=dtype)
    batch = query.shape[:-3]
    shape = (*batch, query.shape[-2], query.shape[-3], key.shape[-3])

    # JAX's function takes one batch axis.
    def flat(x: Any, what: str | None = None) -> Any:
        """``x`` with one batch axis."""
        if x is None:
            return None
        if what is not None:
            check_broadcast(name, what, jnp.shape(x), shape)
            x = as_array(x)
            x = jnp.reshape(x, (1,) * (len(shape) - x.ndim) + x.shape)
            if len(batch) != 1:
                x = jnp.broadcast_to(x, (*batch, *x.shape[-3:]))
        return x if len(batch) == 1 else jnp.reshape(x, (-1, *x.shape[-3:]))

    mask = flat(mask, "mask")
    out = jax.nn.dot_product_attention(
        flat(query),
        flat(key),
        flat(value),
        bias=flat(bias, "bias"),
        # Linen's masks are numbers, JAX's are not.
        mask=None if mask is None else mask.astype(bool),
        scale=scale,
        is_causal=is_causal,
        implementation=implementation,  # type: ignore[arg-type]
    )
    return out if len(batch) == 1 else jnp.reshape(out, (*batch, *out.shape[-3:]))


def make_attention_mask(
    query_input: ArrayLike,
    key_input: ArrayLike,
    pairwise_fn: Callable[..., Array] = jnp.multiply,
    extra_batch_dims: int = 0,
    dtype: Dtype = jnp.float32,
) -> Array:
    """A mask from a function of each query's and each key's value.

    Args:
      query_input: ``(*batch, q_length)``.
      key_input: ``(*batch, kv_length)``.
      pairwise_fn: of a query's and a key's value, elementwise.
      extra_batch_dims: number of axes of size 1 to add in front.
      dtype: dtype of the mask.

    Returns:
      ``(*extra, *batch, 1, q_length, kv_length)``; the 1 stands for the heads.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> valid = jnp.array([[1, 1, 0]])
      >>> print(nn.make_attention_mask(valid, valid))
      [[[[1. 1. 0.]
         [1. 1. 0.]
         [0. 0. 0.]]]]
    """
    mask = pairwise_fn(
        jnp.expand_dims(as_array(query_input), -1), jnp.expand_dims(as_array(key_input), -2)
    )
    mask = jnp.expand_dims(mask, (*range(extra_batch_dims), -3))
    return mask.astype(dtype)


def make_causal_mask(x: ArrayLike, extra_batch_dims: int = 0, dtype: Dtype = jnp.float32) -> Array:
    """The mask with which a position sees itself and those before it.

    Args:
      x: ``(*batch, length)``; only the shape counts.
      extra_batch_dims: number of axes of size 1 to add in front.
      dtype: dtype of the mask.

    Returns:
      ``(*extra, *batch, 1, length, length)``; the 1 stands for the heads.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> print(nn.make_causal_mask(jnp.ones((1, 3))))
      [[[[1. 0. 0.]
         [1. 1. 0.]
         [1. 1. 1.]]]]
    """
    shape = jnp.shape(x)
    # A position sees those of its own number or less.
    index = jnp.broadcast_to(jnp.arange(shape[-1], dtype=jnp.int32), shape)
    return make_attention_mask(index, index, jnp.greater_equal, extra_batch_dims, dtype)


def combine_masks(*masks: Array | None, dtype: Dtype = jnp.float32) -> Array | None:
    """The mask that is true where all masks are; None among them is passed over.

    Args:
      *masks: of the same number of axes, broadcasting to each other.
      dtype: dtype of the result.

    Returns:
      The mask, or None where there is none.

    Raises:
      LayerError: the masks differ in their number of axes.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> valid = nn.make_attention_mask(jnp.ones((1, 2)), jnp.array([[1, 0]]))
      >>> print(nn.combine_masks(valid, None, nn.make_causal_mask(jnp.ones((1, 2)))))
      [[[[1. 0.]
         [1. 0.]]]]
    """
    given = [as_array(m) for m in masks if m is not None]
    if not given:
        return None
    # They would broadcast, and mean something else: a batch axis against one of heads.
    if len({m.ndim for m in given}) > 1:
        raise fail(
            "combine_masks",
            f"the masks have shapes {', '.join(str(m.shape) for m in given)}.",
            "Give all of them the same number of axes.",
        )
    return functools.reduce(jnp.logical_and, given).astype(dtype)
