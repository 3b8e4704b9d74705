"""Convolutions over inputs with channels last: ``(batch, *space, channels)``."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from ..errors import LayerError
from ..module import Module, compact, nowrap
from . import initializers, linear
from ._util import add_bias, check_one, check_size, fail, sizes, to_tuple
from .dtypes import (
    Array,
    ArrayLike,
    Dtype,
    Initializer,
    PrecisionLike,
    PromoteDtypeFn,
    as_array,
    promote_dtype,
)
from .linear import default_kernel_init
from .sharded import OutSharding, asked, following, out_sharding_field

PaddingLike = str | int | Sequence[int | tuple[int, int]]
Pads = tuple[tuple[int, int], ...]
Convolution = Callable[..., Array]

_LAX_PADDING = ("SAME", "SAME_LOWER", "VALID")
CONV_PADDING = (*_LAX_PADDING, "CIRCULAR", "REFLECT", "CAUSAL")


def dimension_numbers(ndim: int) -> lax.ConvDimensionNumbers:
    """Channels last for input and output; kernels are ``(*space, in, out)``."""
    front = (0, ndim - 1, *range(1, ndim - 1))
    return lax.ConvDimensionNumbers(front, (ndim - 1, ndim - 2, *range(ndim - 2)), front)


def canonicalize_padding(
    padding: PaddingLike, rank: int, names: Sequence[str] = _LAX_PADDING, module: object = "padding"
) -> str | Pads:
    """Padding as a name in capitals or as one ``(low, high)`` pair per dimension.

    Args:
      padding: a name; an int, for both sides of all dimensions; or one entry per
        dimension, each an int for both sides or a pair.
      rank: number of dimensions.
      names: the names that may be given.
      module: names the place in the message.

    Raises:
      LayerError: it is none of these.

    Example:
      >>> from liftax.layers.conv import canonicalize_padding
      >>> canonicalize_padding(2, 2), canonicalize_padding([1, (0, 2)], 2)
      (((2, 2), (2, 2)), ((1, 1), (0, 2)))
    """
    # In capitals, since `lax` takes either.
    if isinstance(padding, str):
        if padding.upper() in names:
            return padding.upper()
    else:
        with contextlib.suppress(LayerError):
            return tuple(linear.canonicalize_padding(padding, rank))  # type: ignore[arg-type]
    raise fail(
        module,
        f"padding={padding!r} is not one of {', '.join(names)}, an int, or {rank} entries "
        "that are each an int or a (low, high) pair.",
        "Change padding=.",
    )


def _per_dimension(
    module: ConvBase | ConvTranspose, option: str, value: int | Sequence[int] | None, rank: int
) -> tuple[int, ...]:
    """An option of one value per dimension; an int counts for all, None is 1."""
    try:
        found = to_tuple(1 if value is None else value)
    except TypeError:
        # No number at all, which is told as a wrong one is.
        found = (0,)
    if isinstance(value, int) or value is None:
        found = found * rank
    if len(found) != rank or min(found, default=1) < 1:
        raise fail(
            module,
            f"{option}={value} is not a positive int, nor {rank} of them, one for each "
            f"dimension of kernel_size={module.kernel_size}.",
            f"Change {option}=.",
        )
    return found


def _kernel_size(module: ConvBase | ConvTranspose) -> tuple[int, ...]:
    """The size of the kernel; an int is that of a one-dimensional one."""
    size = sizes(module, "kernel_size", module.kernel_size, 1)
    if not size:
        raise fail(
            module,
            f"kernel_size={module.kernel_size} is not one or more positive ints.",
            "Change kernel_size=.",
        )
    return size


def _one_batch(
    module: ConvBase | ConvTranspose, x: Array, rank: int
) -> tuple[Array, tuple[int, ...]]:
    """``x`` with its batch axes merged into one, and those axes."""
    if x.ndim <= rank:
        raise fail(
            module,
            f"the input of shape {x.shape} has too few axes for kernel_size="
            f"{module.kernel_size}; it needs {rank} of space and one of channels.",
            "Change the input or kernel_size=.",
        )
    # `lax` knows one batch axis.
    batch = x.shape[: x.ndim - rank - 1]
    if len(batch) != 1:
        x = jnp.reshape(x, (math.prod(batch), *x.shape[len(batch) :]))
    return x, batch


def _masked(module: ConvBase | ConvTranspose, kernel: Array) -> Array:
    return kernel if module.mask is None else kernel * module.mask


def _check_mask(module: ConvBase | ConvTranspose, shape: tuple[int, ...]) -> None:
    # JAX would broadcast it, to a kernel that is not the one that was meant.
    if module.mask is not None and jnp.shape(module.mask) != shape:
        raise fail(
            module,
            f"mask has shape {jnp.shape(module.mask)}, the kernel {shape}.",
            "Pass a mask of the shape of the kernel.",
        )


class ConvBase(Module):
    """What the convolution with one kernel and that with a kernel per place share."""

    features: int
    kernel_size: int | Sequence[int]
    strides: None | int | Sequence[int] = 1
    padding: PaddingLike = "SAME"
    input_dilation: None | int | Sequence[int] = 1
    kernel_dilation: None | int | Sequence[int] = 1
    feature_group_count: int = 1
    use_bias: bool = True
    mask: Array | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = initializers.zeros
    promote_dtype: PromoteDtypeFn = promote_dtype
    conv_general_dilated: Convolution | None = None
    conv_general_dilated_cls: Callable[[], Convolution] | None = None
    out_sharding: OutSharding = out_sharding_field()

    shared_weights = True

    @compact
    def __call__(self, inputs: ArrayLike) -> Array:
        """Convolves ``(*batch, *space, channels)``, with any number of batch axes."""
        size = _kernel_size(self)
        rank = len(size)
        strides = _per_dimension(self, "strides", self.strides, rank)
        input_dilation = _per_dimension(self, "input_dilation", self.input_dilation, rank)
        dilation = _per_dimension(self, "kernel_dilation", self.kernel_dilation, rank)
        x, batch = _one_batch(self, as_array(inputs), rank)
        channels, groups = x.shape[-1], self.feature_group_count
        check_size(self, "features", self.features)
        if groups < 1 or channels % groups or self.features % groups:
            raise fail(
                self,
                f"feature_group_count={groups} does not divide both the {channels} channels "
                f"of the input and features={self.features}.",
                "Change feature_group_count=.",
            )
        # JAX's convolution with a kernel for each place knows no groups.
        if groups != 1 and not self.shared_weights:
            raise fail(
                self,
                f"feature_group_count={groups} is not supported.",
                "Use feature_group_count=1, or Conv.",
            )

        padding, pad = self._padding(size, dilation, input_dilation)
        # What `lax.conv_general_dilated` takes; a convolution of the user's is called alike.
        options: dict[str, Any] = {
            "lhs_dilation": input_dilation,
            "rhs_dilation": dilation,
            "dimension_numbers": dimension_numbers(x.ndim),
        }

        patch = (*size, channels // groups, self.features)
        if self.shared_weights:
            options["feature_group_count"] = groups
            kernel_shape: tuple[int, ...] = patch
            bias_shape: tuple[int, ...] = (self.features,)
        else:
            # A kernel for each place of the output: where these are, `lax` knows, and is asked by
            # shapes alone.
            out = jax.eval_shape(
                lambda lhs, rhs: lax.conv_general_dilated(lhs, rhs, strides, padding, **options),
                jax.eval_shape(pad, x),
                jax.ShapeDtypeStruct(patch, x.dtype),
            )
            options["filter_shape"] = size
            space = out.shape[1:-1]
            kernel_shape = (*space, math.prod(size) * channels, self.features)
            bias_shape = (*space, self.features)
        options["precision"] = self.precision
        _check_mask(self, kernel_shape)

        convolve = self._convolution()
        kernel = _masked(self, self._kernel(kernel_shape, x.shape))
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, bias_shape, self.param_dtype)

        x, kernel, bias = self.promote_dtype(pad(x), kernel, bias, dtype=self.dtype)

        def convolved(x: Array, kernel: Array) -> Array:
            return convolve(x, kernel, strides, padding, **options)

        place = asked(self.out_sharding)
        y = following(convolved, place, x, kernel, len(batch))
        if bias is not None:
            y = add_bias(y, bias)
        return place(y if len(batch) == 1 else jnp.reshape(y, (*batch, *y.shape[1:])))

    @nowrap
    def _kernel(self, shape: tuple[int, ...], inputs: tuple[int, ...]) -> Array:
        try:
            return self.param("kernel", self.kernel_init, shape, self.param_dtype)
        except ZeroDivisionError as cause:  # of the variance of no elements, before jax 0.11
            if 0 not in shape:
                raise
            raise fail(
                self,
                f"kernel_init cannot make the empty kernel of shape {shape}: the window fits "
                f"nowhere into the input of shape {inputs}, or that has no channels.",
                "Change kernel_size=, kernel_dilation=, padding= or kernel_init=.",
            ) from cause

    @nowrap
    def _convolution(self) -> Convolution:
        """The convolution that the options ask for."""
        check_one(self, "conv_general_dilated")
        if self.conv_general_dilated_cls is not None:
            return self.conv_general_dilated_cls()
        if self.conv_general_dilated is not None:
            return self.conv_general_dilated
        return lax.conv_general_dilated if self.shared_weights else lax.conv_general_dilated_local

    @nowrap
    def _padding(
        self, size: tuple[int, ...], dilation: tuple[int, ...], input_dilation: tuple[int, ...]
    ) -> tuple[str | Pads, Callable[[Array], Array]]:
        """What lax pads, and a function that does beforehand what lax cannot."""
        padding = canonicalize_padding(self.padding, len(size), CONV_PADDING, self)
        if isinstance(padding, str) and padding != "VALID" and max(input_dilation) > 1:
            raise fail(
                self,
                f"padding={self.padding!r} does not go with input_dilation={self.input_dilation}.",
                "Pass the padding as numbers, or use ConvTranspose.",
            )
        if padding == "CAUSAL":
            if len(size) != 1:
                raise fail(
                    self,
                    f'padding="CAUSAL" needs one dimension, kernel_size={self.kernel_size} '
                    f"has {len(size)}.",
                    "Pass the padding as numbers.",
                )
            # All of it in front, so that the window ends at the place itself.
            before = ((dilation[0] * (size[0] - 1), 0),)
            return "VALID", partial(jnp.pad, pad_width=((0, 0), *before, (0, 0)))
        if padding in ("CIRCULAR", "REFLECT"):
            reach = tuple((k - 1) * d for k, d in zip(size, dilation, strict=True))
            # Of an odd reach the larger part goes behind, as with SAME.
            sides = tuple((r // 2, (r + 1) // 2) for r in reach)
            mode = "wrap" if padding == "CIRCULAR" else "reflect"
            return "VALID", partial(jnp.pad, pad_width=((0, 0), *sides, (0, 0)), mode=mode)
        return padding, _as_is


def _as_is(x: Array) -> Array:
    return x


class Conv(ConvBase):
    """A convolution, by ``jax.lax.conv_general_dilated``.

    ``y[b, p, o] = bias[o] + sum over k, i of x[b, p * stride + k * dilation, i]
    kernel[k, i, o]``, ``p`` and ``k`` standing for all dimensions of space.

    Shapes: ``(*batch, *space, channels) -> (*batch, *space', features)``, any number of
    batch axes.

    Variables: ``params/kernel (*kernel_size, channels / groups, features)``,
    ``params/bias (features,)``.

    Attributes:
      features: channels of the output.
      kernel_size: size in each dimension of space; an int is one dimension.
      strides: step of the window, one int or one per dimension.
      padding: ``'SAME'``, ``'SAME_LOWER'``, ``'VALID'``, ``'CIRCULAR'`` (periodic),
        ``'REFLECT'``, ``'CAUSAL'`` (one dimension, padded before the first element); an
        int; or one int or (low, high) pair per dimension.
      input_dilation: spacing of the input's elements; needs padding given as numbers.
      kernel_dilation: spacing of the kernel's elements.
      feature_group_count: groups of channels that do not see each other.
      use_bias: whether to add a bias.
      mask: multiplied with the kernel, of its shape.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters.
      precision: see ``jax.lax.Precision``.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      promote_dtype: ``(inputs, kernel, bias, dtype=) -> the three, cast``.
      conv_general_dilated: used in place of ``jax.lax.conv_general_dilated``.
      conv_general_dilated_cls: a class or function that makes it at each call.
      out_sharding: how the output lies on a mesh, see `sharded.OutSharding`. On explicit axes
        it lies as the input does, with the kernel's features, where nothing is said.

    Raises:
      LayerError: options do not fit each other or the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.Conv(4, kernel_size=(3, 3), strides=2, padding='CIRCULAR')
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> y.shape, variables['params']['kernel'].shape
      ((1, 4, 4, 4), (3, 3, 3, 4))
    """


class ConvLocal(ConvBase):
    """A convolution with a kernel of its own for each place of the output.

    As :class:`Conv`, by ``jax.lax.conv_general_dilated_local``; ``kernel`` and ``bias``
    depend on the place ``p``. Gregor and LeCun 2010, https://arxiv.org/abs/1006.0448.

    Variables: ``params/kernel (*space', channels * prod(kernel_size), features)``,
    ``params/bias (*space', features)``.

    Attributes: as :class:`Conv`; ``feature_group_count`` can only be 1.

    Raises:
      LayerError: options do not fit each other or the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.ConvLocal(4, kernel_size=(3,), padding='VALID')
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 3)))
      >>> y.shape, variables['params']['kernel'].shape
      ((1, 6, 4), (6, 9, 4))
    """

    shared_weights = False


class ConvTranspose(Module):
    """The transpose of a strided convolution, by ``jax.lax.conv_transpose``.

    The input's elements are set ``strides`` apart, with zeros between, and convolved with
    the kernel. Dumoulin and Visin 2016, https://arxiv.org/abs/1603.07285.

    Shapes: ``(*batch, *space, channels) -> (*batch, *space', features)``; with
    ``padding='SAME'`` or ``'CIRCULAR'``, ``space' = space * strides``.

    Variables: ``params/kernel (*kernel_size, channels, features)``, the last two swapped
    with ``transpose_kernel``; ``params/bias (features,)``.

    Attributes:
      features: channels of the output.
      kernel_size: size in each dimension of space; an int is one dimension.
      strides: one int or one per dimension; None is 1.
      padding: ``'SAME'``, ``'VALID'``, ``'CIRCULAR'`` (periodic); an int; or one int or
        (low, high) pair per dimension, which pads the spread-out input.
      kernel_dilation: spacing of the kernel's elements; None is 1.
      use_bias: whether to add a bias.
      mask: multiplied with the kernel, of its shape.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters.
      precision: see ``jax.lax.Precision``.
      kernel_init: initializer of the kernel.
      bias_init: initializer of the bias.
      transpose_kernel: flip the kernel in space and swap its channel axes; the layer is
        then the gradient of :class:`Conv` with the same kernel.
      promote_dtype: ``(inputs, kernel, bias, dtype=) -> the three, cast``.
      preferred_element_type: dtype in which to accumulate and return.
      out_sharding: as of :class:`Conv`.

    Raises:
      LayerError: options do not fit each other or the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.ConvTranspose(4, kernel_size=(3, 3), strides=(2, 2))
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((1, 8, 8, 3)))
      >>> y.shape, variables['params']['kernel'].shape
      ((1, 16, 16, 4), (3, 3, 3, 4))
    """

    features: int
    kernel_size: int | Sequence[int]
    strides: Sequence[int] | None = None
    padding: PaddingLike = "SAME"
    kernel_dilation: Sequence[int] | None = None
    use_bias: bool = True
    mask: Array | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    precision: PrecisionLike = None
    kernel_init: Initializer = default_kernel_init
    bias_init: Initializer = initializers.zeros
    transpose_kernel: bool = False
    promote_dtype: PromoteDtypeFn = promote_dtype
    preferred_element_type: Dtype | None = None
    out_sharding: OutSharding = out_sharding_field()

    @compact
    def __call__(self, inputs: ArrayLike) -> Array:
        """Convolves ``(*batch, *space, channels)``, with any number of batch axes."""
        size = _kernel_size(self)
        rank = len(size)
        strides = _per_dimension(self, "strides", self.strides, rank)
        dilation = _per_dimension(self, "kernel_dilation", self.kernel_dilation, rank)
        padding = canonicalize_padding(self.padding, rank, ("SAME", "VALID", "CIRCULAR"), self)
        x, batch = _one_batch(self, as_array(inputs), rank)
        check_size(self, "features", self.features)
        ends = (x.shape[-1], self.features)
        # Transposed it is the kernel of the Conv that this one is the gradient of.
        kernel_shape = (*size, *(ends[::-1] if self.transpose_kernel else ends))
        _check_mask(self, kernel_shape)
        kernel = self.param("kernel", self.kernel_init, kernel_shape, self.param_dtype)
        kernel = _masked(self, kernel)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        x, kernel, bias = self.promote_dtype(x, kernel, bias, dtype=self.dtype)

        def convolved(x: Array, kernel: Array) -> Array:
            y = lax.conv_transpose(
                x,
                kernel,
                strides,
                # All that the kernel reaches; what lies outside is then added where it belongs.
                "VALID" if padding == "CIRCULAR" else padding,
                rhs_dilation=dilation,
                transpose_kernel=self.transpose_kernel,
                precision=self.precision,
                preferred_element_type=self.preferred_element_type,
            )
            if padding != "CIRCULAR":
                return y
            return self._wrap(y, tuple(n * s for n, s in zip(x.shape[1:-1], strides, strict=True)))

        place = asked(self.out_sharding)
        y = following(convolved, place, x, kernel, len(batch))
        if bias is not None:
            y = add_bias(y, bias)
        return place(y if len(batch) == 1 else jnp.reshape(y, (*batch, *y.shape[1:])))

    @nowrap
    def _wrap(self, y: Array, periods: tuple[int, ...]) -> Array:
        """Adds up what lies a multiple of the period apart, in each dimension.

        Zeros fill ``y`` up to an odd number of periods, so that its middle stays where it
        is; the odd one goes before, or after where the kernel is flipped.
        """
        sides = [(0, 0)]
        for found, period in zip(y.shape[1:-1], periods, strict=True):
            missing = (period - found) % (2 * period)
            half = (missing // 2, missing - missing // 2)
            sides.append(half if self.transpose_kernel else half[::-1])
        y = jnp.pad(y, [*sides, (0, 0)])
        for axis, period in enumerate(periods, 1):
            shape = (*y.shape[:axis], -1, period, *y.shape[axis + 1 :])
            y = jnp.reshape(y, shape).sum(axis=axis)
        return y
