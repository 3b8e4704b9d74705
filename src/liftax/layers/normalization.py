"""Normalization of activations: layer, RMS, group, instance and batch.

All five compute ``y = (x - mean) / sqrt(var + epsilon) * scale + bias``; they differ in
the axes over which mean and variance are taken, and in the shape of scale and bias. The
statistics of half-precision inputs are taken in float32 unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from ..module import Module, compact, nowrap
from . import initializers
from ._util import (
    add,
    check_broadcast,
    fail,
    maximum,
    merge_option,
    mul,
    normalize_axes,
    reshape,
    square,
    sub,
)
from .dtypes import Array, ArrayLike, Dtype, Initializer, as_array, canonicalize_dtype, cast

Axes = int | Sequence[int]
AxisName = Hashable | None


def _squared(x: Array) -> Array:
    """``|x|**2``, real also where ``x`` is complex."""
    # The variance of complex numbers is real.
    if jnp.iscomplexobj(x):
        return square(lax.real(x)) + square(lax.imag(x))
    return square(x)


def _statistics(
    module: Any, x: Array, axes: tuple[int, ...], mask: Array | None, axis_name: AxisName,
    centered: bool = True,
) -> tuple[Any, Array]:  # fmt: skip
    """Mean and variance of ``x`` over ``axes``, without these axes, as XLA rounds Linen's.

    Args:
      mask: where ``x`` counts; None counts everywhere.
      axis_name: the mapped axis over which to average as well.
      centered: False takes the mean to be 0, and returns None for it.
    """
    if module.axis_index_groups is not None and module.axis_name is None:
        raise fail(
            module,
            "axis_index_groups are groups along a mapped axis, and axis_name is not set.",
            "Pass axis_name=, or leave axis_index_groups= out.",
        )
    dtype = canonicalize_dtype(x, dtype=module.dtype)
    # A mean of many values in half precision would keep few of its digits.
    if module.force_float32_reductions:
        dtype = jnp.promote_types(dtype, jnp.float32)
    x = cast(x, dtype)

    def mean_of(*values: Array) -> Any:
        means = [jnp.mean(v, axes, where=mask) for v in values]
        if axis_name is not None:
            groups = module.axis_index_groups
            # Both in one message between devices, as Linen sends them.
            together = means[0] if len(means) == 1 else jnp.stack(means)
            together = lax.pmean(together, axis_name, axis_index_groups=groups)
            means = [together] if len(means) == 1 else [together[i] for i in range(len(means))]
        return means if len(means) > 1 else means[0]

    if not centered:
        return None, mean_of(_squared(x))
    if module.use_fast_variance:
        # One pass over the data in place of two.
        mean, mean_squared = mean_of(x, _squared(x))
        # Rounding can push the difference below zero.
        return mean, maximum(0.0, sub(mean_squared, _squared(mean)))
    mean = mean_of(x)
    return mean, mean_of(_squared(sub(x, lax.expand_dims(mean, axes))))


def _rescale(
    module: Any,
    x: Array,
    mean: Array | None,
    var: Array,
    axes: tuple[int, ...],
    features: tuple[int, ...],
    use_bias: bool,
) -> Array:
    """Normalizes ``x`` by ``mean`` and ``var``, then applies the learned scale and bias.

    Args:
      axes: the axes of ``x`` over which mean and variance were taken.
      features: the axes of ``x`` that scale and bias have.
    """
    shape = tuple(x.shape[i] for i in features)
    spread = tuple(n if i in features else 1 for i, n in enumerate(x.shape))
    args = [x]
    y = x if mean is None else sub(x, lax.expand_dims(mean, axes))
    # Scale goes into the factor, and that into the input: in this order Linen multiplies, and the
    # last bit depends on it.
    factor = lax.rsqrt(add(lax.expand_dims(var, axes), module.epsilon))
    if module.use_scale:
        scale = module.param("scale", module.scale_init, shape, module.param_dtype)
        factor = mul(factor, reshape(scale, spread))
        args.append(scale)
    y = mul(y, factor)
    if use_bias:
        bias = module.param("bias", module.bias_init, shape, module.param_dtype)
        y = add(y, reshape(bias, spread))
        args.append(bias)
    dtype = canonicalize_dtype(*args, dtype=module.dtype)
    return cast(y, dtype)


def _check_mask(module: Module, mask: Array | None, shape: tuple[int, ...]) -> None:
    if mask is not None:
        check_broadcast(module, "mask", jnp.shape(mask), shape)


class LayerNorm(Module):
    """Layer normalization: each example is normalized over its features.

    ``y = (x - mean) / sqrt(var + epsilon) * scale + bias``, mean and variance over
    ``reduction_axes``. Ba et al. 2016, https://arxiv.org/abs/1607.06450.

    Shapes: as the input. Variables: ``params/scale`` and ``params/bias``, of the shape of
    the input's ``feature_axes``.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of the output; None promotes input and parameters.
      param_dtype: dtype of the parameters.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      reduction_axes: axes over which mean and variance are taken.
      feature_axes: axes that scale and bias have.
      axis_name: mapped axis over which the statistics are averaged as well.
      axis_index_groups: groups within that axis, see ``jax.lax.pmean``.
      use_fast_variance: ``E[x**2] - E[x]**2``, faster and less exact than
        ``E[(x - E[x])**2]``.
      force_float32_reductions: take statistics in float32 at least.

    Raises:
      LayerError: axes are out of range, or the mask does not broadcast to the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.array([[1.0, 2.0, 3.0]])
      >>> y, variables = nn.LayerNorm().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[-1.225  0.     1.225]]
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @compact
    def __call__(self, x: ArrayLike, *, mask: Array | None = None) -> Array:
        """Normalizes ``x``; where ``mask`` is False, ``x`` does not count as data."""
        x = as_array(x)
        axes = normalize_axes(self, "reduction_axes", self.reduction_axes, x.ndim)
        features = normalize_axes(self, "feature_axes", self.feature_axes, x.ndim)
        _check_mask(self, mask, x.shape)
        mean, var = _statistics(self, x, axes, mask, self.axis_name)
        return _rescale(self, x, mean, var, axes, features, self.use_bias)


class RMSNorm(Module):
    """Root mean square normalization: ``y = x / sqrt(mean(x**2) + epsilon) * scale``.

    Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467.

    Shapes: as the input. Variables: ``params/scale``, of the shape of the input's
    ``feature_axes``.

    Attributes:
      epsilon: added to the mean square.
      dtype: dtype of the output; None promotes input and parameters.
      param_dtype: dtype of the scale.
      use_scale: whether to multiply by a scale.
      scale_init: initializer of the scale.
      reduction_axes: axes over which the mean square is taken.
      feature_axes: axes that the scale has.
      axis_name: mapped axis over which the mean square is averaged as well.
      axis_index_groups: groups within that axis, see ``jax.lax.pmean``.
      use_fast_variance: makes no difference here, where no mean is taken off.
      force_float32_reductions: take the mean square in float32 at least.

    Raises:
      LayerError: axes are out of range, or the mask does not broadcast to the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.array([[5.0, -5.0]])
      >>> y, variables = nn.RMSNorm().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[ 1. -1.]]
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes = -1
    feature_axes: Axes = -1
    axis_name: AxisName = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @compact
    def __call__(self, x: ArrayLike, *, mask: Array | None = None) -> Array:
        """Normalizes ``x``; where ``mask`` is False, ``x`` does not count as data."""
        x = as_array(x)
        axes = normalize_axes(self, "reduction_axes", self.reduction_axes, x.ndim)
        features = normalize_axes(self, "feature_axes", self.feature_axes, x.ndim)
        _check_mask(self, mask, x.shape)
        mean, var = _statistics(self, x, axes, mask, self.axis_name, centered=False)
        return _rescale(self, x, mean, var, axes, features, use_bias=False)


class GroupNorm(Module):
    """Group normalization: groups of channels are normalized together, per example.

    Wu and He 2018, https://arxiv.org/abs/1803.08494. One group is layer normalization
    over all but the batch; groups of one channel are instance normalization.

    Shapes: ``(batch, ..., channels)``, as the input. Variables: ``params/scale (channels,)``
    and ``params/bias (channels,)``.

    Attributes:
      num_groups: number of groups; None where ``group_size`` is given.
      group_size: channels in a group.
      epsilon: added to the variance.
      dtype: dtype of the output; None promotes input and parameters.
      param_dtype: dtype of the parameters.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      reduction_axes: axes over which mean and variance are taken, the last among them;
        None takes all but the first.
      axis_name: mapped axis over which the statistics are averaged as well.
      axis_index_groups: groups within that axis, see ``jax.lax.pmean``.
      use_fast_variance: see :class:`LayerNorm`.
      force_float32_reductions: take statistics in float32 at least.

    Raises:
      LayerError: not just one of ``num_groups`` and ``group_size`` is given, it does not
        divide the channels, or axes are out of range.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.array([[1.0, 2.0, 10.0, 30.0]])
      >>> y, variables = nn.GroupNorm(num_groups=2).init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[-1.  1. -1.  1.]]
    """

    num_groups: int | None = 32
    group_size: int | None = None
    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    reduction_axes: Axes | None = None
    axis_name: AxisName = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @compact
    def __call__(self, x: ArrayLike, *, mask: Array | None = None) -> Array:
        """Normalizes ``x``; where ``mask`` is False, ``x`` does not count as data."""
        x = as_array(x)
        if not x.ndim:
            raise fail(self, "the input is a scalar.", "Pass an array with a channel axis.")
        last = x.ndim - 1
        if self.reduction_axes is None:
            axes = (*range(1, last), last)
        else:
            axes = normalize_axes(self, "reduction_axes", self.reduction_axes, x.ndim)
            if last not in axes:
                raise fail(
                    self,
                    f"reduction_axes={self.reduction_axes} leave out the last axis, the channels.",
                    "Add -1 to reduction_axes=.",
                )
        # Channels of a group lie beside each other: a reshape finds them.
        grouped = (*x.shape[:-1], self._groups(x.shape[-1]), -1)
        _check_mask(self, mask, x.shape)
        if mask is not None:
            mask = jnp.broadcast_to(mask, x.shape).reshape(grouped)
        # Channels of a group lie along one axis more, the last.
        inner = (*(i for i in axes if i != last), last + 1)
        mean, var = _statistics(self, x.reshape(grouped), inner, mask, self.axis_name)
        # From one value for each group to one for each channel, as scale and bias have.
        size = x.shape[-1] // mean.shape[-1]
        mean, var = jnp.repeat(mean, size, axis=-1), jnp.repeat(var, size, axis=-1)
        over = tuple(i for i in axes if i != last)
        return _rescale(self, x, mean, var, over, (last,), self.use_bias)

    @nowrap
    def _groups(self, channels: int) -> int:
        groups, size = self.num_groups, self.group_size
        if (groups is None) == (size is None):
            raise fail(
                self,
                f"num_groups={groups} and group_size={size}; just one of them must be given.",
                "Pass num_groups=None with group_size=, or leave group_size= out.",
            )
        given = groups if size is None else size
        if given is None or given <= 0 or channels % given:
            name = "num_groups" if size is None else "group_size"
            raise fail(
                self,
                f"{name}={given} does not divide the {channels} channels of the input.",
                f"Change {name}=.",
            )
        return given if size is None else channels // given


class InstanceNorm(Module):
    """Instance normalization: each example's each channel is normalized over space.

    Ulyanov et al. 2016, https://arxiv.org/abs/1607.08022.

    Shapes: ``(batch, ..., channels)``, as the input. Variables: ``params/scale`` and
    ``params/bias``, of the shape of the input's ``feature_axes``.

    Attributes:
      epsilon: added to the variance.
      dtype: dtype of the output; None promotes input and parameters.
      param_dtype: dtype of the parameters.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      feature_axes: channel axes, which scale and bias have; mean and variance are taken
        over all others but the first.
      axis_name: mapped axis over which the statistics are averaged as well.
      axis_index_groups: groups within that axis, see ``jax.lax.pmean``.
      use_fast_variance: see :class:`LayerNorm`.
      force_float32_reductions: take statistics in float32 at least.

    Raises:
      LayerError: axes are out of range, or the first axis, the batch, is among them.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.array([[[1.0, 10.0], [3.0, 30.0]]])
      >>> y, variables = nn.InstanceNorm().init_with_output(jax.random.key(0), x)
      >>> print(y.round(3))
      [[[-1. -1.]
        [ 1.  1.]]]
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    feature_axes: Axes = -1
    axis_name: AxisName = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @compact
    def __call__(self, x: ArrayLike, *, mask: Array | None = None) -> Array:
        """Normalizes ``x``; where ``mask`` is False, ``x`` does not count as data."""
        x = as_array(x)
        features = normalize_axes(self, "feature_axes", self.feature_axes, x.ndim)
        # The first axis is the batch, which has no scale of its own for each example.
        if 0 in features:
            raise fail(
                self,
                f"feature_axes={self.feature_axes} contain the first axis, the batch.",
                "Change feature_axes=.",
            )
        _check_mask(self, mask, x.shape)
        axes = tuple(i for i in range(1, x.ndim) if i not in features)
        mean, var = _statistics(self, x, axes, mask, self.axis_name)
        return _rescale(self, x, mean, var, axes, features, self.use_bias)


class BatchNorm(Module):
    """Batch normalization: each channel is normalized over the batch.

    Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167. In training, mean and
    variance are those of the batch, and running averages follow them:
    ``average = momentum * average + (1 - momentum) * statistic``. In evaluation, the
    averages take their place.

    Shapes: as the input. Variables, of the shape of the input's ``axis``:
    ``params/scale``, ``params/bias``, ``batch_stats/mean``, ``batch_stats/var`` (the last
    two in float32, unless ``force_float32_reductions`` is off).

    Attributes:
      use_running_average: True in evaluation; here or at the call.
      axis: channel axes; all others are reduced.
      momentum: how slowly the averages follow.
      epsilon: added to the variance.
      dtype: dtype of the output; None promotes input and parameters.
      param_dtype: dtype of the parameters.
      use_bias: whether to add a bias.
      use_scale: whether to multiply by a scale.
      bias_init: initializer of the bias.
      scale_init: initializer of the scale.
      axis_name: mapped axis over which the statistics are averaged as well. Not used at
        initialization, where it need not exist.
      axis_index_groups: groups within that axis, see ``jax.lax.pmean``.
      use_fast_variance: see :class:`LayerNorm`.
      force_float32_reductions: take statistics in float32 at least.

    Raises:
      LayerError: ``use_running_average`` is not given just once, or axes are out of range.
      ModifyScopeVariableError: in training, ``batch_stats`` is not mutable.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.BatchNorm(momentum=0.9)
      >>> x = jnp.array([[1.0, 2.0], [3.0, 6.0]])
      >>> variables = layer.init(jax.random.key(0), x, use_running_average=False)
      >>> y, new = layer.apply(
      ...     variables, x, use_running_average=False, mutable=['batch_stats'])
      >>> print(y.round(3), new['batch_stats']['mean'].round(3))
      [[-1. -1.]
       [ 1.  1.]] [0.2 0.4]
    """

    use_running_average: bool | None = None
    axis: Axes = -1
    momentum: float = 0.99
    epsilon: float = 1e-5
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_bias: bool = True
    use_scale: bool = True
    bias_init: Initializer = initializers.zeros
    scale_init: Initializer = initializers.ones
    axis_name: AxisName = None
    axis_index_groups: Sequence[Sequence[int]] | None = None
    use_fast_variance: bool = True
    force_float32_reductions: bool = True

    @compact
    def __call__(
        self, x: Any, use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Array:
        """Normalizes ``x``; where ``mask`` is False, ``x`` does not count as data."""
        frozen = merge_option(
            self, "use_running_average", self.use_running_average, use_running_average
        )
        x = as_array(x)
        features = normalize_axes(self, "axis", self.axis, x.ndim)
        _check_mask(self, mask, x.shape)
        axes = tuple(i for i in range(x.ndim) if i not in features)
        shape = tuple(x.shape[i] for i in features)
        kept_in = jnp.float32 if self.force_float32_reductions else self.param_dtype
        # In evaluation too: init makes the same variables either way.
        average_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, kept_in)
        average_var = self.variable("batch_stats", "var", jnp.ones, shape, kept_in)
        if frozen:
            mean, var = average_mean.value, average_var.value
        else:
            initializing = self.is_initializing()
            # A model is mostly initialised outside of the map that gives the axis its name.
            axis_name = None if initializing else self.axis_name
            mean, var = _statistics(self, x, axes, mask, axis_name)
            # The averages begin with 0 and 1: what init happens to see is no data.
            if not initializing:
                for average, found in ((average_mean, mean), (average_var, var)):
                    kept = self.momentum * average.value
                    average.value = kept + (1 - self.momentum) * found
        return _rescale(self, x, mean, var, axes, features, self.use_bias)
