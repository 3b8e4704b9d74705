"""Multi-head attention, with a cache for decoding one position at a time."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ..module import Module, compact, nowrap
from . import initializers
from ._util import check_broadcast, check_one, fail, merge_option
from .attention import check_rate, combine_masks, dot_product_attention
from .dtypes import Array, DotGeneral, Dtype, Initializer, PrecisionLike
from .linear import DenseGeneral, default_kernel_init
from .normalization import LayerNorm
from .sharded import OutSharding, lay_as, out_sharding_field, zeros_as


@functools.lru_cache(maxsize=128)
def _keywords(fn: Callable[..., Any]) -> frozenset[str] | None:
    """The keywords that ``fn`` takes; None where it takes any, or does not say."""
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return None
    return frozenset(p.name for p in parameters)


def _deprecated(module: Module, problem: str, change: str) -> None:
    """Warns of what Linen warns of, in the same category."""
    warnings.warn(str(fail(module, problem, change)), DeprecationWarning, stacklevel=2)


class MultiHeadDotProductAttention(Module):
    """Multi-head attention: ``out(attend(query(x_q), key(x_k), value(x_v)))``.

    Vaswani et al. 2017, https://arxiv.org/abs/1706.03762; with ``normalize_qk``,
    Dehghani et al. 2023, https://arxiv.org/abs/2302.05442.

    Shapes: ``(*batch, length, features) -> (*batch, length, out_features)``.

    Variables: ``params/{query,key,value}/kernel (features, heads, depth)``,
    ``params/out/kernel (heads, depth, out_features)``, the biases, with ``normalize_qk``
    ``params/{query,key}_ln/scale``, and with ``decode`` ``cache/cached_key``,
    ``cache/cached_value (*batch, length, heads, depth)`` and ``cache/cache_index``.

    With ``decode=True``, ``init`` makes a cache for as many positions as its input has;
    each ``apply`` then takes one position, adds it to the cache and attends to all
    positions so far.

    Attributes:
      num_heads: number of heads; divides ``qkv_features``.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters.
      qkv_features: size of all heads together; None takes that of the queries.
      out_features: size of the output; None takes that of the queries.
      broadcast_dropout: drop the same weights in all batch entries and heads.
      dropout_rate: part of the attention weights that is dropped.
      deterministic: no dropout; here or at the call.
      precision: see ``jax.lax.Precision``.
      kernel_init: initializer of the kernels.
      out_kernel_init: that of the last kernel; None takes ``kernel_init``.
      bias_init: initializer of the biases.
      out_bias_init: that of the last bias; None takes ``bias_init``.
      use_bias: whether the four maps have biases.
      attention_fn: called as ``attention_fn(query, key, value, **options)`` with those of
        the options ``mask``, ``dropout_rng``, ``dropout_rate``, ``broadcast_dropout``,
        ``deterministic``, ``dtype``, ``precision``, ``force_fp32_for_softmax`` and
        ``module`` that it takes; :func:`dot_product_attention`, or
        :func:`fused_dot_product_attention` to use the fused kernel of the device, or
        :func:`decode_attention`, which copies no cache.
      decode: keep a cache.
      normalize_qk: normalize queries and keys.
      force_fp32_for_softmax: take the softmax in float32.
      qkv_dot_general: used for queries, keys and values in place of
        ``jax.lax.dot_general``.
      out_dot_general: the same for the output.
      qkv_dot_general_cls: makes ``qkv_dot_general`` at each call.
      out_dot_general_cls: makes ``out_dot_general`` at each call.
      qk_attn_weights_einsum_cls: makes the einsum of the attention weights.
      attn_weights_value_einsum_cls: makes the einsum of weights and values.
      out_sharding: how the output lies on a mesh, see `sharded.OutSharding`; needed on explicit
        axes where the last kernel is split along the axes of the heads.

    Raises:
      LayerError: options or shapes do not fit each other; ``attention_fn`` does not take
        an option that is in use; the cache is full.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
      >>> x = jnp.ones((1, 5, 8))
      >>> variables = layer.init(jax.random.key(0), x)
      >>> variables['cache']['cached_key'].shape
      (1, 5, 2, 4)
      >>> y, new = layer.apply(variables, x[:, :1], mutable=['cache'])
      >>> y.shape, int(new['cache']['cache_index'])
      ((1, 1, 8), 1)
    """

    num_heads: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    qkv_features: int | None = None
    out_features: int | None = None
    broadcast_dropout: bool = True
    dropout_rate: float = 0.0
    deterministic: bool | None = None
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    out_kernel_init: Initializer | None = None
    bias_init: Initializer = initializers.zeros
    out_bias_init: Initializer | None = None
    use_bias: bool = True
    attention_fn: Callable[..., Array] = dot_product_attention
    decode: bool = False
    normalize_qk: bool = False
    force_fp32_for_softmax: bool = False
    qkv_dot_general: DotGeneral | None = None
    out_dot_general: DotGeneral | None = None
    qkv_dot_general_cls: Callable[[], DotGeneral] | None = None
    out_dot_general_cls: Callable[[], DotGeneral] | None = None
    qk_attn_weights_einsum_cls: Callable[..., Callable[..., Array]] | None = None
    attn_weights_value_einsum_cls: Callable[..., Callable[..., Array]] | None = None
    out_sharding: OutSharding = out_sharding_field()

    @compact
    def __call__(
        self,
        inputs_q: Array,
        inputs_k: Array | None = None,
        inputs_v: Array | None = None,
        *,
        inputs_kv: Array | None = None,
        mask: Array | None = None,
        deterministic: bool | None = None,
        dropout_rng: Array | None = None,
        sow_weights: bool = False,
    ) -> Array:
        """Attends from ``inputs_q`` to ``inputs_k`` and ``inputs_v``.

        Args:
          inputs_q: ``(*batch, q_length, features)``.
          inputs_k: ``(*batch, kv_length, features)``; None takes ``inputs_q``.
          inputs_v: the same; None takes ``inputs_k``.
          inputs_kv: an older way to give both, deprecated.
          mask: broadcasts to ``(*batch, heads, q_length, kv_length)``; no weight where it
            is False or 0.
          deterministic: no dropout; here or as a field.
          dropout_rng: key for the dropout, in place of the stream ``dropout``.
          sow_weights: sow the weights as ``intermediates/attention_weights``.
        """
        inputs_k, inputs_v = self._keys_and_values(inputs_q, inputs_k, inputs_v, inputs_kv)
        self._check_rank(inputs_q, inputs_k, inputs_v)
        width = inputs_q.shape[-1]
        qkv_features = width if self.qkv_features is None else self.qkv_features
        self._check_options(inputs_q, inputs_k, inputs_v, mask, qkv_features)
        drop = False
        # Without dropout nobody has to say whether there is any.
        if self.dropout_rate > 0.0:
            drop = not merge_option(self, "deterministic", self.deterministic, deterministic)

        project = functools.partial(
            DenseGeneral,
            axis=-1,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            features=(self.num_heads, qkv_features // self.num_heads),
            kernel_init=self.kernel_init,
            bias_init=self.bias_init,
            use_bias=self.use_bias,
            precision=self.precision,
            dot_general=self.qkv_dot_general,
            dot_general_cls=self.qkv_dot_general_cls,
        )
        # The names under which Linen stores them, made in its order.
        query = project(name="query")(inputs_q)
        key = project(name="key")(inputs_k)
        value = project(name="value")(inputs_v)

        if self.normalize_qk:
            normalize = functools.partial(
                LayerNorm, use_bias=False, dtype=self.dtype, param_dtype=self.param_dtype
            )
            query = normalize(name="query_ln")(query)
            key = normalize(name="key_ln")(key)

        if self.decode:
            key, value, mask = self._cached(query, key, value, mask)
        # Drawn here and not in the function, which may be a user's and has no streams.
        if drop and dropout_rng is None:
            dropout_rng = self.make_rng("dropout")
        y = self._attend(query, key, value, mask, dropout_rng if drop else None, sow_weights)

        return DenseGeneral(
            features=width if self.out_features is None else self.out_features,
            axis=(-2, -1),
            kernel_init=self.out_kernel_init or self.kernel_init,
            bias_init=self.out_bias_init or self.bias_init,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
            precision=self.precision,
            dot_general=self.out_dot_general,
            dot_general_cls=self.out_dot_general_cls,
            out_sharding=self.out_sharding,
            name="out",
        )(y)

    @nowrap
    def _keys_and_values(
        self,
        inputs_q: Array,
        inputs_k: Array | None,
        inputs_v: Array | None,
        inputs_kv: Array | None,
    ) -> tuple[Array, Array]:
        """The inputs of keys and values, however they were given."""
        if inputs_kv is not None:
            if inputs_k is not None or inputs_v is not None:
                raise fail(
                    self,
                    "inputs_kv is given together with inputs_k or inputs_v.",
                    "Pass inputs_k= and inputs_v= only.",
                )
            inputs_k = inputs_v = inputs_kv
            _deprecated(self, "inputs_kv= is deprecated.", "Pass inputs_k= and inputs_v=.")
        if inputs_k is None:
            if inputs_v is not None:
                raise fail(
                    self,
                    "inputs_v is given without inputs_k.",
                    "Pass inputs_k=; inputs_v= then takes the same value by itself.",
                )
            inputs_k = inputs_q
        if inputs_v is None:
            inputs_v = inputs_k
        # Linen's guess and its warning: values are seldom square, a mask of one sequence is.
        elif inputs_kv is None and jnp.shape(inputs_v)[-1:] == jnp.shape(inputs_v)[-2:-1]:
            _deprecated(
                self,
                f"inputs_v of shape {jnp.shape(inputs_v)} may be meant for a mask, which was the "
                f"third positional argument once.",
                "Pass a mask as mask=.",
            )
        return inputs_k, inputs_v

    @nowrap
    def _check_rank(self, *inputs: Array) -> None:
        # Old code has the mask where the values stand now: most such calls end here.
        shapes = [jnp.shape(x) for x in inputs]
        # Another attention_fn may make something of batch axes that differ.
        same = {s[:-2] for s in shapes} if self.attention_fn is dot_product_attention else ()
        if min(map(len, shapes)) < 2 or len(same) > 1:
            raise fail(
                self,
                f"queries, keys and values of shapes {shapes} do not have the same batch axes.",
                "Pass (*batch, length, features); the mask is a keyword, mask=.",
            )

    @nowrap
    def _check_options(
        self, query: Array, key: Array, value: Array, mask: Array | None, features: int
    ) -> None:
        # Told in the user's numbers: a reshape would tell of the size of an array.
        if self.num_heads < 1 or features % self.num_heads:
            name = "features of the input" if self.qkv_features is None else "qkv_features"
            raise fail(
                self,
                f"num_heads={self.num_heads} does not divide the {features} {name}.",
                "Change num_heads= or qkv_features=.",
            )
        check_rate(self, self.dropout_rate)
        check_one(self, "qkv_dot_general")
        check_one(self, "out_dot_general")
        if self.attention_fn is not dot_product_attention or self.decode:
            return
        if key.shape[-2] != value.shape[-2]:
            raise fail(
                self,
                f"there are {key.shape[-2]} keys and {value.shape[-2]} values.",
                "Change inputs_k= or inputs_v=.",
            )
        if mask is not None:
            lengths = (self.num_heads, query.shape[-2], key.shape[-2])
            check_broadcast(self, "mask", jnp.shape(mask), (*query.shape[:-2], *lengths))

    @nowrap
    def _cached(
        self, query: Array, key: Array, value: Array, mask: Array | None
    ) -> tuple[Array, Array, Array | None]:
        """Adds the position to the cache; what is in the cache, and the mask of what is."""
        ready = self.has_variable("cache", "cached_key")
        zeros = zeros_as(key), zeros_as(value)
        keys = self.variable("cache", "cached_key", zeros[0], key.shape, key.dtype)
        values = self.variable("cache", "cached_value", zeros[1], value.shape, value.dtype)
        index = self.variable("cache", "cache_index", lambda: jnp.array(0, jnp.int32))
        # In init the cache is made, for as many positions as there are; it is used afterwards.
        if not ready:
            return key, value, mask
        *batch, length, heads, depth = keys.value.shape
        expected = (*batch, 1, heads, depth)
        if query.shape != expected:
            raise fail(
                self,
                f"the cache takes one position of shape {expected}, the query is {query.shape}.",
                "Pass one position at a time, with the batch size given to init.",
            )
        now = index.value
        # In a trace JAX would make a traced value of a comparison with an index from outside it.
        if not isinstance(now, jax.core.Tracer) and np.asarray(now) >= length:
            raise fail(
                self,
                f"the cache is full: it has {length} positions, this is number {int(now) + 1}.",
                "Give init an input of more positions.",
            )
        zero = np.zeros((), now.dtype)  # with 64 bits a plain 0 would be an index of another type
        # One position of all batch entries and heads is written in place.
        place = (zero,) * len(batch) + (now, zero, zero)
        key, value = lay_as(key, keys.value), lay_as(value, values.value)
        keys.value = key = lax.dynamic_update_slice(keys.value, key, place)
        values.value = value = lax.dynamic_update_slice(values.value, value, place)
        index.value = now + 1
        # The cache is as long as it will be: what has not come yet is hidden.
        seen = jnp.broadcast_to(jnp.arange(length) <= now, (*batch, 1, 1, length))
        return key, value, combine_masks(mask, seen)

    @nowrap
    def _attend(
        self,
        query: Array,
        key: Array,
        value: Array,
        mask: Array | None,
        rng: Array | None,
        sow: bool,
    ) -> Array:
        """Calls ``attention_fn`` with the options it takes; one in use must be taken."""
        options = {
            "mask": mask,
            "dropout_rng": rng,
            "dropout_rate": self.dropout_rate,
            "broadcast_dropout": self.broadcast_dropout,
            "deterministic": rng is None,
            "dtype": self.dtype,
            "precision": self.precision,
            "force_fp32_for_softmax": self.force_fp32_for_softmax,
        }
        # A function of the user's may leave out what it has no use for, as Linen allows. One that
        # leaves out what is in use would compute something else.
        used = {
            "mask": mask is not None,
            "dropout_rng": rng is not None,
            "dropout_rate": rng is not None,
            "force_fp32_for_softmax": self.force_fp32_for_softmax,
            "module": sow,
        }
        if sow:
            options["module"] = self

        for name, make in (
            ("qk_attn_weights_einsum", self.qk_attn_weights_einsum_cls),
            ("attn_weights_value_einsum", self.attn_weights_value_einsum_cls),
        ):
            if make is not None:
                options[name] = make()
                used[name] = True

        fn = self.attention_fn
        try:
            # Reading a signature takes long, and it is the same function each time.
            taken = _keywords(fn)
        except TypeError:  # not hashable
            taken = _keywords.__wrapped__(fn)
        if taken is None:
            return fn(query, key, value, **options)
        missing = [name for name, use in used.items() if use and name not in taken]
        if missing:
            raise fail(
                self,
                f"attention_fn does not take {', '.join(missing)}, which is in use.",
                "Change attention_fn=, or do without.",
            )
        return fn(query, key, value, **{k: v for k, v in options.items() if k in taken})


class MultiHeadAttention(MultiHeadDotProductAttention):
    """:class:`MultiHeadDotProductAttention` under a shorter name.

    Modules that are not named are called ``MultiHeadAttention_0`` and so on.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.MultiHeadAttention(num_heads=2, qkv_features=16)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 5, 8)))
      >>> y.shape, variables['params']['query']['kernel'].shape
      ((1, 5, 8), (8, 2, 8))
    """


class SelfAttention(MultiHeadDotProductAttention):
    """:class:`MultiHeadDotProductAttention` of an input to itself.

    An older way to write ``MultiHeadDotProductAttention(...)(x)``, deprecated; the mask is the
    second positional argument.

    Example:
      >>> import warnings, jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.ones((1, 5, 8))
      >>> layer = nn.SelfAttention(num_heads=2)
      >>> with warnings.catch_warnings(action='ignore'):
      ...     variables = layer.init(jax.random.key(0), x)
      ...     layer.apply(variables, x, nn.make_causal_mask(x[..., 0])).shape
      (1, 5, 8)
    """

    @compact
    def __call__(  # type: ignore[override]
        self,
        inputs_q: Array,
        mask: Array | None = None,
        deterministic: bool | None = None,
        dropout_rng: Array | None = None,
        sow_weights: bool = False,
    ) -> Array:
        """Attends from ``inputs_q`` to itself; see :class:`MultiHeadDotProductAttention`."""
        _deprecated(self, "it is deprecated.", "Call MultiHeadDotProductAttention(...)(x).")
        return super().__call__(
            inputs_q,
            mask=mask,
            deterministic=deterministic,
            dropout_rng=dropout_rng,
            sow_weights=sow_weights,
        )
