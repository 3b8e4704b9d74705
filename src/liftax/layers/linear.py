"""Layers that are one contraction with a learned kernel, and the table of embeddings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..module import Module, compact, nowrap
from . import initializers
from ._util import (
    add_bias,
    check_one,
    check_size,
    dot_general,
    fail,
    matmul,
    merge_option,
    normalize_axes,
    sizes,
    to_tuple,
)
from .dtypes import (
    Array,
    ArrayLike,
    DotGeneral,
    Dtype,
    Initializer,
    PrecisionLike,
    PromoteDtypeFn,
    promote_dtype,
)
from .sharded import Asked, OutSharding, asked, entries, on_mesh_of, out_sharding_field, split_of

default_kernel_init: Initializer = initializers.lecun_normal()
default_embed_init: Initializer = initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def canonicalize_padding(padding: Any, rank: int) -> str | list[tuple[int, int]]:
    """Padding as ``jax.lax`` takes it: a name as it is, else a ``(low, high)`` pair per dimension.

    Args:
      padding: a name; an int, for both sides of all dimensions; or one entry per
        dimension, each an int for both sides or a pair.
      rank: number of dimensions.

    Raises:
      LayerError: it is none of these.

    Example:
      >>> from liftax.layers.linear import canonicalize_padding
      >>> canonicalize_padding('SAME', 2), canonicalize_padding([1, (0, 2)], 2)
      ('SAME', [(1, 1), (0, 2)])
    """
    if isinstance(padding, str):
        return padding
    entries = [padding] * rank if isinstance(padding, int) else padding
    if isinstance(entries, Sequence) and len(entries) == rank:
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in entries]
        if all(len(pair) == 2 for pair in pairs):
            return pairs
    raise fail(
        "padding",
        f"padding={padding!r} is not a name, an int, or {rank} entries that are each an int or a "
        "(low, high) pair.",
        "Change padding=.",
    )


def _dot_of(module: Dense | DenseGeneral, place: Asked) -> DotGeneral:
    """The contraction that the module's options ask for."""
    if module.dot_general_cls is not None:
        return module.dot_general_cls()
    if module.dot_general is not None:
        return module.dot_general
    # One of the user's own is called as Linen calls it.
    return partial(lax.dot_general, **place.options) if place.options else dot_general


class Dense(Module):
    """A linear map of the last axis: ``y = x @ kernel + bias``.

    Shapes: ``(..., in) -> (..., features)``.

    Variables: ``params/kernel (in, features)``, ``params/bias (features,)``.

    Attributes:
      features: size of the last axis of the output.
      use_bias: whether to add a bias.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters.
      precision: see ``jax.lax.Precision``.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      promote_dtype: ``(inputs, kernel, bias, dtype=) -> the three, cast``.
      dot_general: used in place of ``jax.lax.dot_general``.
      dot_general_cls: a class or function that makes ``dot_general`` at each call.
      out_sharding: how the output lies on a mesh, see `sharded.OutSharding`; needed on explicit
        axes where the inputs leave it open.

    Raises:
      LayerError: the input is a scalar, ``features`` is no size, or both ways to set
        ``dot_general`` are used.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> y, variables = nn.Dense(4).init_with_output(jax.random.key(0), jnp.ones((2, 3)))
      >>> y.shape, variables['params']['kernel'].shape, variables['params']['bias'].shape
      ((2, 4), (3, 4), (4,))
    """

    features: int
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = initializers.zeros
    promote_dtype: PromoteDtypeFn = promote_dtype
    dot_general: DotGeneral | None = None
    dot_general_cls: Callable[[], DotGeneral] | None = None
    out_sharding: OutSharding = out_sharding_field()

    @compact
    def __call__(self, inputs: ArrayLike) -> Array:
        """Maps the last axis of ``inputs``."""
        shape = jnp.shape(inputs)
        if not shape:
            raise fail(self, "the input is a scalar.", "Pass an array with at least one axis.")
        check_size(self, "features", self.features)
        check_one(self, "dot_general")
        kernel = self.param(
            "kernel", self.kernel_init, (shape[-1], self.features), self.param_dtype
        )
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        # `lax.dot_general` itself, by a shorter way.
        if self.out_sharding is None and self.dot_general is None and self.dot_general_cls is None:
            y = matmul(x, kernel, self.precision)
            return y if bias is None else add_bias(y, bias)
        place = asked(self.out_sharding)
        contract = (((x.ndim - 1,), (0,)), ((), ()))
        y = _dot_of(self, place)(x, kernel, contract, precision=self.precision)
        return place(y if bias is None else add_bias(y, bias))


class _Flattened:
    """An initializer that sees a kernel as a matrix, so that its fan-in is that of the map."""

    def __init__(self, init: Initializer, shape: tuple[int, ...]):
        self.init, self.shape = init, shape

    def __call__(self, key: Array, shape: tuple[int, ...], dtype: Dtype) -> Any:
        # The result may be boxed with axis names; the array inside takes the shape.
        flat = self.init(key, self.shape, dtype)
        return jax.tree.map(lambda x: jnp.reshape(x, shape), flat)


class DenseGeneral(Module):
    """A linear map of any axes to any axes.

    With ``axis`` contracted and ``batch_dims`` kept apart, each batch entry having a
    kernel of its own, ``y[b, r, f] = sum_a x[b, r, a] kernel[b, a, f] + bias[b, f]``,
    where each letter stands for several axes and ``r`` for those left over.

    Shapes: ``(*batch, *rest, *axis) -> (*batch, *rest, *features)``.

    Variables: ``params/kernel (*batch, *axis, *features)``,
    ``params/bias (*batch, *features)``.

    Attributes:
      features: the axes of the output that replace ``axis``, an int or several.
      axis: the axes of the input to contract, an int or several.
      batch_dims: leading axes of the input over which the parameters differ.
      use_bias: whether to add a bias.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters.
      kernel_init: initializer of the kernel, called with the shape of the matrix
        ``(batch * axis, features)``.
      bias_init: initializer of the bias, called with a flat shape.
      precision: see ``jax.lax.Precision``.
      promote_dtype: ``(inputs, kernel, bias, dtype=) -> the three, cast``.
      dot_general: used in place of ``jax.lax.dot_general``.
      dot_general_cls: a class or function that makes ``dot_general`` at each call.
      out_sharding: how the output lies on a mesh, see `sharded.OutSharding`; needed on explicit
        axes where the inputs leave it open.

    Raises:
      LayerError: ``axis`` or ``batch_dims`` do not fit the input or each other.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.DenseGeneral((4, 5), axis=(1, -1))
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 6, 7)))
      >>> y.shape, variables['params']['kernel'].shape
      ((2, 6, 4, 5), (3, 7, 4, 5))
    """

    features: int | Sequence[int]
    axis: int | Sequence[int] = -1
    batch_dims: Sequence[int] = ()
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = initializers.zeros
    precision: PrecisionLike = None
    promote_dtype: PromoteDtypeFn = promote_dtype
    dot_general: DotGeneral | None = None
    dot_general_cls: Callable[[], DotGeneral] | None = None
    out_sharding: OutSharding = out_sharding_field()

    @compact
    def __call__(self, inputs: ArrayLike) -> Array:
        """Maps the axes ``axis`` of ``inputs``."""
        shape = jnp.shape(inputs)
        features = sizes(self, "features", self.features)
        batch = sizes(self, "batch_dims", self.batch_dims)
        check_one(self, "dot_general")
        axis = normalize_axes(self, "axis", self.axis, len(shape))
        if sorted(batch) != list(range(len(batch))):
            raise fail(
                self,
                f"batch_dims={batch} are not the leading axes of the input, counted from 0.",
                "Transpose the input, or use vmap.",
            )
        if set(batch) & set(axis):
            raise fail(
                self,
                f"batch_dims={batch} and axis={to_tuple(self.axis)} share an axis.",
                "Change axis=.",
            )

        batch_shape = tuple(shape[i] for i in batch)
        in_shape = tuple(shape[i] for i in axis)
        # In this order Linen stores them. The initializer is shown a matrix, whose fan-in is what
        # is contracted: of many axes it would take some for a window, as a convolution's are.
        kernel_shape = batch_shape + in_shape + features
        bias_shape = batch_shape + features
        rows = math.prod(batch_shape) * math.prod(in_shape)
        kernel = self.param(
            "kernel",
            _Flattened(self.kernel_init, (rows, math.prod(features))),
            kernel_shape,
            self.param_dtype,
        )
        bias = None
        if self.use_bias:
            flat = _Flattened(self.bias_init, (math.prod(bias_shape),))
            bias = self.param("bias", flat, bias_shape, self.param_dtype)
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)

        n = len(batch)
        # The kernel has its axes in the order batch, contracted, features.
        contract = ((axis, tuple(range(n, n + len(axis)))), (batch, batch))
        place = asked(self.out_sharding)
        y = _dot_of(self, place)(inputs, kernel, contract, precision=self.precision)
        if bias is None:
            return place(y)
        if batch:
            # The bias has not the axes that are left over, which lie between its own.
            rest = (1,) * (y.ndim - len(bias_shape))
            bias = jnp.reshape(bias, batch_shape + rest + features)
        return place(add_bias(y, bias))


class Einsum(Module):
    """An einsum with a learned kernel as its second operand, plus a bias.

    ``y = einsum(einsum_str, x, kernel) + bias``. The bias has those axes of the output
    that the kernel has, in the order of the output.

    Variables: ``params/kernel`` of shape ``shape``, ``params/bias``.

    Attributes:
      shape: shape of the kernel.
      einsum_str: the equation, ``'x axes,kernel axes->output axes'``; here or at the call.
      use_bias: whether to add a bias.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters.
      precision: see ``jax.lax.Precision``.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      promote_dtype: ``(inputs, kernel, bias, dtype=) -> the three, cast``.
      preferred_element_type: dtype in which the contraction accumulates and returns.
      out_sharding: how the output lies on a mesh, see `sharded.OutSharding`; needed on explicit
        axes where the inputs leave it open.

    Raises:
      LayerError: the equation is missing, given twice, not explicit, not of two
        operands, or does not fit the shapes.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.Einsum((5, 6, 7), 'abc,cde->abde')
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((3, 4, 5)))
      >>> y.shape, variables['params']['bias'].shape
      ((3, 4, 6, 7), (6, 7))
    """

    shape: Sequence[int]
    einsum_str: str | None = None
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = initializers.zeros
    promote_dtype: PromoteDtypeFn = promote_dtype
    preferred_element_type: Dtype | None = None
    out_sharding: OutSharding = out_sharding_field()

    @compact
    def __call__(self, inputs: ArrayLike, einsum_str: str | None = None) -> Array:
        """Applies the einsum; ``einsum_str`` is given here or to the constructor."""
        equation = merge_option(self, "einsum_str", self.einsum_str, einsum_str).replace(" ", "")
        shape = sizes(self, "shape", self.shape)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias_shape, broadcast_shape = self._get_bias_shape(equation, inputs, kernel)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, bias_shape, self.param_dtype)
        inputs, kernel, bias = self.promote_dtype(inputs, kernel, bias, dtype=self.dtype)
        place = asked(self.out_sharding)
        # `jnp.einsum` itself, which finds the contraction: an equation may be any.
        y = jnp.einsum(
            equation,
            inputs,
            kernel,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
            **place.options,
        )
        return place(y if bias is None else add_bias(y, jnp.reshape(bias, broadcast_shape)))

    def _get_bias_shape(
        self, einsum_str: str, lhs: Any, rhs: Any
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """As `_bias_shapes`, of arrays: wrappers that are written for Linen call it."""
        return self._bias_shapes(einsum_str, jnp.shape(lhs), jnp.shape(rhs))

    @nowrap
    def _bias_shapes(
        self, equation: str, lhs: tuple[int, ...], rhs: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The bias's shape, and the same with a 1 for each axis the kernel has not."""
        operands, arrow, out = equation.partition("->")
        if not arrow:
            raise fail(self, f'einsum_str={equation!r} has no "->".', "Name the output axes.")
        if operands.count(",") != 1:
            raise fail(
                self,
                f"einsum_str={equation!r} must have two operands, the input and the kernel.",
                "Write the equation with exactly one comma.",
            )

        found: list[dict[str, int]] = []
        for what, labels, shape in zip(
            ("the input", "the kernel"), operands.split(","), (lhs, rhs), strict=True
        ):
            axes = _labels(labels, len(shape))
            if axes is None:
                raise fail(
                    self,
                    f"{labels!r} in einsum_str does not fit {what} of shape {shape}.",
                    "Change einsum_str= or shape=.",
                )
            found.append(dict(zip(axes, shape, strict=True)))
        for label, size in found[0].items():
            # An axis of one element broadcasts, as in `jnp.einsum`.
            if found[1].get(label, size) != size and 1 not in (size, found[1][label]):
                raise fail(
                    self,
                    f"axis {label!r} of einsum_str={equation!r} has size {size} in the input, "
                    f"{found[1][label]} in the kernel.",
                    "Change shape= or the input.",
                )

        known = {**found[0], **found[1]}
        # An ellipsis of the output stands for what those of the operands stand for.
        hidden = sum(1 for label in known if label.isdigit())
        axes = _labels(out, len(out.replace("...", "")) + hidden * ("..." in out)) or []
        if unknown := [label for label in axes if label not in known]:
            raise fail(
                self,
                f"output axis {unknown[0]!r} of einsum_str={equation!r} is in neither operand.",
                "Change einsum_str=.",
            )

        kernel = found[1]
        return (
            tuple(kernel[a] for a in axes if a in kernel),
            tuple(kernel.get(a, 1) for a in axes),
        )


def _labels(labels: str, ndim: int) -> list[str] | None:
    """One label per axis; those of an ellipsis are numbered from the right."""
    before, dots, after = labels.partition("...")
    hidden = ndim - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        return None
    return [*before, *map(str, range(hidden - 1, -1, -1)), *after]


class Embed(Module):
    """A table of learned vectors: ``y = embedding[x]``.

    An index counts from the end where it is negative, and gives NaN where it is out of
    range. With one embedding, every index gives it.

    Shapes: ``(...) -> (..., features)``, integers in.

    Variables: ``params/embedding (num_embeddings, features)``.

    Attributes:
      num_embeddings: number of vectors.
      features: size of a vector.
      dtype: dtype of the output; None takes that of the table.
      param_dtype: dtype of the table.
      embedding_init: initializer of the table.
      promote_dtype: casts the table, or the query and the table.
      out_sharding: how the vectors lie on a mesh, see `sharded.OutSharding`. On explicit axes
        they lie as the indices do, then as the table's features, where nothing is said.

    Raises:
      LayerError: the input is not of an integer dtype.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.Embed(num_embeddings=5, features=3)
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.array([[0, 4]]))
      >>> y.shape, variables['params']['embedding'].shape
      ((1, 2, 3), (5, 3))
      >>> layer.apply(variables, y, method='attend').shape
      (1, 2, 5)
    """

    num_embeddings: int
    features: int
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    embedding_init: Initializer = default_embed_init
    promote_dtype: PromoteDtypeFn = promote_dtype
    out_sharding: OutSharding = out_sharding_field()

    # Not compact, so that `attend` can be called alone.
    def setup(self) -> None:
        check_size(self, "num_embeddings", self.num_embeddings, 1)
        check_size(self, "features", self.features)
        self.embedding = self.param(
            "embedding",
            self.embedding_init,
            (self.num_embeddings, self.features),
            self.param_dtype,
        )

    def __call__(self, inputs: Array) -> Array:
        """The vectors at the indices ``inputs``."""
        if not jnp.issubdtype(inputs.dtype, jnp.integer):
            raise fail(
                self,
                f"the input is of dtype {inputs.dtype}, not of an integer dtype.",
                "Pass indices.",
            )
        # The table alone: indices are to stay integers.
        (table,) = self.promote_dtype(self.embedding, dtype=self.dtype, inexact=False)
        place = asked(self.out_sharding)
        lies = place.explicit
        if lies is None and not (split_of(inputs) is split_of(table) is None):
            lies = on_mesh_of(table, (*entries(inputs), entries(table)[1]))
        if self.num_embeddings == 1:
            shape = (*jnp.shape(inputs), self.features)
            return place(jnp.broadcast_to(table, shape, out_sharding=lies))
        if lies is None:
            return place(jnp.take(table, inputs, axis=0))
        # As `jnp.take`, which cannot be told how its result lies.
        return place(table.at[inputs].get(mode="fill", out_sharding=lies))

    def attend(self, query: ArrayLike) -> Array:
        """The inner product of each query with every vector, ``query @ embedding.T``.

        Shapes: ``(..., features) -> (..., num_embeddings)``. Used to share the table
        with the logits of a language model.

        Raises:
          LayerError: the query's last axis is not ``features``.
        """
        if jnp.shape(query)[-1:] != (self.features,):
            raise fail(
                self,
                f"the query has shape {jnp.shape(query)}; its last axis must be "
                f"features={self.features}.",
                "Change the query.",
            )
        query, table = self.promote_dtype(query, self.embedding, dtype=self.dtype)
        return jnp.dot(query, table.T)
