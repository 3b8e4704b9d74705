"""Attention of a single query, by sums that read a cache where it lies.

A product of matrices wants the heads in front: XLA for CPUs copies keys and values into that order
before each, and a loop's slice of them with it, so that a cache is read, written and read again. A
sum of what is multiplied as it is read copies nothing.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

from ..module import Module
from .attention import check_shapes, dot_product_attention
from .dtypes import Array, Dtype, PrecisionLike
from .sharded import split_of


def decode_attention(
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
) -> Array:
    """:func:`dot_product_attention` for decoding: a single query reads each key and value once.

    Made for ``attention_fn`` of :class:`MultiHeadDotProductAttention` with ``decode=True``, and
    for caches of one's own. Products are added up in float32 where ``dtype`` is smaller, so the
    result equals :func:`dot_product_attention` up to rounding. Queries of another length than 1,
    as in a prompt, go to that function. Keys and values may have fewer heads than queries: each
    serves so many heads of the queries, one after the other.

    Args:
      query: ``(*batch, 1, heads, depth)``.
      key: ``(*batch, kv_length, kv_heads, depth)``; ``kv_heads`` divides ``heads``.
      value: ``(*batch, kv_length, kv_heads, v_depth)``.
      bias: added before the softmax; broadcasts to ``(*batch, heads, 1, kv_length)``.
      mask: weights are zero where it is False or 0; broadcasts likewise.
      broadcast_dropout: drop the same weights in all batch entries and heads.
      dropout_rng: key for the dropout.
      dropout_rate: part of the weights that is dropped.
      deterministic: no dropout.
      dtype: dtype to compute in; None promotes the inputs.
      precision: of the products of longer queries; see ``jax.lax.Precision``.
      module: sows the weights into its ``intermediates`` as ``attention_weights``.
      force_fp32_for_softmax: take the softmax, and return the weights, in float32.

    Returns:
      ``(*batch, 1, heads, v_depth)``.

    Raises:
      LayerError: shapes do not fit, or there is dropout without a key.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.MultiHeadDotProductAttention(2, decode=True, attention_fn=nn.decode_attention)
      >>> x = jnp.ones((1, 5, 8))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> y, new = layer.apply(variables, x[:, :1], mutable=['cache'])
      >>> y.shape
      (1, 1, 8)
    """
    key, value = _for_all_heads(query, key, value)
    check_shapes("decode_attention", query, key, value)
    attend = functools.partial(
        dot_product_attention,
        query,
        key,
        value,
        bias,
        mask,
        broadcast_dropout,
        dropout_rng,
        dropout_rate,
        deterministic,
        dtype,
        module=module,
        force_fp32_for_softmax=force_fp32_for_softmax,
    )
    if query.shape[-3] != 1:
        return attend(precision=precision)
    return attend(qk_attn_weights_einsum=_logits, attn_weights_value_einsum=_average)


def _for_all_heads(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
    """Keys and values, each head as often as it serves one of the query's."""
    if min(query.ndim, key.ndim, value.ndim) > 2 and key.shape[-2] == value.shape[-2] > 0:
        served, rest = divmod(query.shape[-2], key.shape[-2])
        if served > 1 and not rest:
            # What repeats is a part of the sums, and written down nowhere.
            key, value = (jnp.repeat(x, served, -2, out_sharding=split_of(x)) for x in (key, value))
    return key, value


def _logits(_: str, query: Array, key: Array) -> Array:
    """``(*batch, heads, 1, kv_length)`` of ``(*batch, 1 or kv_length, heads, depth)``."""
    sums = _sum(_wide(query) * _wide(key), -1)
    return jnp.swapaxes(sums, -1, -2)[..., None, :].astype(query.dtype)


def _average(_: str, weights: Array, value: Array) -> Array:
    """``(*batch, 1, heads, v_depth)`` of ``(*batch, heads, 1, kv_length)`` and the values."""
    by_position = jnp.swapaxes(_wide(weights)[..., 0, :], -1, -2)[..., None]
    dtype = jnp.promote_types(weights.dtype, value.dtype)
    return _sum(by_position * _wide(value), -3)[..., None, :, :].astype(dtype)


def _wide(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _sum(x: Array, axis: int) -> Array:
    """``x.sum(axis)``, the halves of the axis side by side in one reduction.

    XLA for CPUs hands the sum of one array to a library, before which what is summed must be in
    memory: a loop's slice of a cache is copied, and the cache with it if it has just been written.
    It writes the loop over two arrays itself, with all that makes them inside.
    """
    size = x.shape[axis]
    if size < 2:
        return x.sum(axis)
    half = -(-size // 2)
    first = lax.slice_in_dim(x, 0, half, axis=axis)
    second = lax.slice_in_dim(x, size - half, size, axis=axis)
    if size % 2:  # the one in the middle is in both
        second = jnp.where(lax.broadcasted_iota(jnp.int32, second.shape, axis % x.ndim), second, 0)
    zero = jnp.zeros((), x.dtype)

    def add(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] + b[0], a[1] + b[1]

    sums = lax.reduce((first, second), (zero, zero), add, (axis % x.ndim,))
    return sums[0] + sums[1]


@_sum.defjvp
def _(axis: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # A reduction over two arrays has no derivative; the sum's is the sum.
    return _sum(primals[0], axis), tangents[0].sum(axis)
