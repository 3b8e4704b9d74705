"""Normalization of weights: wrappers that reparametrize the layer they hold."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import KeyPath

from ..module import Module, compact
from ..transforms import map_variables
from . import initializers
from ._util import fail, normalize_axes
from .dtypes import Array, ArrayLike, Dtype, Initializer, as_array, canonicalize_dtype, cast
from .sharded import lay_as, whole


def _unit(x: Array, axes: tuple[int, ...] | None, epsilon: float) -> Array:
    """``x / sqrt(sum(x**2) + epsilon)``."""
    return x * lax.rsqrt((x * x).sum(axes, keepdims=True) + epsilon)


def _path_in(layer: Module, path: KeyPath) -> str:
    """The path of a parameter, from the name of the layer that holds it.

    The value in a box has a name of its own on it: ``Dense_0/kernel/value``.
    """
    return f"{layer.name}/{jax.tree_util.keystr(path[1:], simple=True, separator='/')}"


def _on_changed(
    module: SpectralNorm | WeightNorm,
    change: Callable[[KeyPath, Any], Array],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    mutable: bool = False,
) -> Any:
    """Calls the layer that a module holds, on changed parameters."""

    def layer_forward(layer: Any) -> Any:
        return layer(*args, **kwargs)

    run = map_variables(
        layer_forward,
        "params",
        trans_in_fn=functools.partial(jax.tree_util.tree_map_with_path, change),
        init=module.is_initializing(),
        mutable=mutable,
    )
    return run(module.layer_instance)


class SpectralNorm(Module):
    """Divides each kernel of the layer it holds by its largest singular value.

    A kernel of more than two axes counts as a matrix, its first axes merged. The singular
    value is found by power iteration: ``v = unit(u W^T)``, ``u = unit(v W)``,
    ``sigma = v W u^T``; ``u`` is kept from call to call. Miyato et al. 2018,
    https://arxiv.org/abs/1802.05957.

    Variables: those of the layer, the parameters as normalized at initialization; and for
    each kernel, under its path in ``batch_stats``, ``u (1, last axis)`` and ``sigma ()``.

    Attributes:
      layer_instance: the layer to hold.
      n_steps: power iterations in each call.
      epsilon: added to squared norms.
      dtype: dtype of the normalized kernels; None promotes.
      param_dtype: dtype of ``u`` and ``sigma`` at initialization.
      error_on_non_matrix: refuse kernels of more than two axes.
      collection_name: where ``u`` and ``sigma`` lie.

    Raises:
      LayerError: ``n_steps`` is not positive, or a kernel is not a matrix although
        ``error_on_non_matrix`` asks for it.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         return nn.SpectralNorm(nn.Dense(4))(x, update_stats=train)
      >>> variables = Net().init(jax.random.key(0), jnp.ones((1, 3)), train=False)
      >>> y, new = Net().apply(
      ...     variables, jnp.ones((1, 3)), train=True, mutable=['batch_stats'])
      >>> for name, x in sorted(new['batch_stats']['SpectralNorm_0'].items()):
      ...     print(name, x.shape)
      Dense_0/kernel/sigma ()
      Dense_0/kernel/u (1, 4)
    """

    layer_instance: Module
    n_steps: int = 1
    epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    error_on_non_matrix: bool = False
    collection_name: str = "batch_stats"

    @compact
    def __call__(self, *args: Any, update_stats: bool, **kwargs: Any) -> Any:
        """Calls the layer with ``args`` and ``kwargs`` on normalized kernels.

        Args:
          update_stats: keep the new ``u`` and ``sigma``; the collection must be mutable.
        """
        if self.n_steps < 1:
            raise fail(self, f"n_steps={self.n_steps} is not positive.", "Change n_steps=.")

        def normalize(path: KeyPath, x: ArrayLike) -> Array:
            return self._spectral_normalize(path, x, update_stats)

        # Mutable: the layer's own variables are stored as they are normalized, as in Linen.
        return _on_changed(self, normalize, args, kwargs, mutable=True)

    def _spectral_normalize(self, path: KeyPath, x: ArrayLike, update_stats: bool) -> Array:
        x = as_array(x)
        if x.ndim <= 1:
            return x
        if x.ndim > 2 and self.error_on_non_matrix:
            raise fail(
                self,
                f"{_path_in(self.layer_instance, path)} has {x.ndim} axes.",
                "Pass error_on_non_matrix=False to merge all but the last.",
            )
        # A convolution's kernel is the matrix from its window to its features.
        matrix = whole(x.reshape(-1, x.shape[-1]))
        # One name with slashes in it: so Linen stores it.
        prefix = _path_in(self.layer_instance, path) + "/"

        def first_u() -> Array:
            key = self.make_rng("params")
            return jax.random.normal(key, (1, matrix.shape[1]), self.param_dtype)

        kept_u = self.variable(self.collection_name, prefix + "u", first_u)
        kept_sigma = self.variable(
            self.collection_name, prefix + "sigma", jnp.ones, (), self.param_dtype
        )
        u = whole(kept_u.value)
        for _ in range(self.n_steps):
            v = _unit(jnp.matmul(u, matrix.T), None, self.epsilon)
            u = _unit(jnp.matmul(v, matrix), None, self.epsilon)
        # Constants, as in the paper: the gradient is that of ``sigma = v W u^T`` in ``W`` alone.
        u, v = lax.stop_gradient(u), lax.stop_gradient(v)
        sigma = jnp.matmul(jnp.matmul(v, matrix), u.T)[0, 0]
        # A kernel of zeros stays one.
        matrix = matrix / jnp.where(sigma != 0, sigma, 1)
        if update_stats:
            # One step a call is enough, since the next call goes on from here.
            kept_u.value, kept_sigma.value = u, sigma
        dtype = canonicalize_dtype(x, u, v, sigma, dtype=self.dtype)
        return lay_as(cast(matrix.reshape(x.shape), dtype), x)


class WeightNorm(Module):
    """Splits each kernel of the layer it holds into a direction and a learned length.

    ``w = scale * w / norm(w)``, with one norm and one scale for each index of
    ``feature_axes``. Salimans and Kingma 2016, https://arxiv.org/abs/1602.07868.

    Variables: those of the layer, as normalized at initialization; and for each kernel,
    under its path in ``params``, ``scale``.

    Attributes:
      layer_instance: the layer to hold.
      epsilon: added to squared norms.
      dtype: dtype of the normalized kernels; None promotes.
      param_dtype: dtype of the scales.
      use_scale: whether there are scales; without, norms are 1.
      scale_init: initializer of the scales.
      feature_axes: axes with a norm for each index; None takes one norm in all.
      variable_filter: parts of names; a parameter is normalized where one of them occurs in
        its path. None normalizes all.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> class Net(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.WeightNorm(nn.Dense(4))(x)
      >>> variables = Net().init(jax.random.key(0), jnp.ones((1, 3)))
      >>> for name, x in variables['params']['WeightNorm_0'].items():
      ...     print(name, x.shape)
      Dense_0/kernel/scale (4,)
    """

    layer_instance: Module
    epsilon: float = 1e-12
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    use_scale: bool = True
    scale_init: Initializer = initializers.ones
    feature_axes: int | Iterable[int] | None = -1
    variable_filter: Iterable[str] | None = dataclasses.field(default_factory=lambda: {"kernel"})

    @compact
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the layer with ``args`` and ``kwargs`` on normalized kernels."""

        if isinstance(self.variable_filter, str):
            raise fail(
                self,
                f"variable_filter={self.variable_filter!r} is a string, not a collection of them.",
                f"Pass variable_filter={{{self.variable_filter!r}}}.",
            )

        return _on_changed(self, self._l2_normalize, args, kwargs)

    def _l2_normalize(self, path: KeyPath, x: ArrayLike) -> Array:
        x = as_array(x)
        name = _path_in(self.layer_instance, path)
        # By parts of the path: Linen's filter, and its default means every kernel below.
        if self.variable_filter and not any(part in name for part in self.variable_filter):
            return x
        features: tuple[int, ...] = ()
        if self.feature_axes is not None:
            features = normalize_axes(self, "feature_axes", self.feature_axes, x.ndim)
        axes = tuple(i for i in range(x.ndim) if i not in features)
        # The length that the kernel has is thrown away: only the scale says one.
        y, args = _unit(x, axes, self.epsilon), [x]
        if self.use_scale:
            shape = tuple(x.shape[i] for i in features)
            scale = self.param(name + "/scale", self.scale_init, shape, self.param_dtype)
            y = y * scale.reshape([n if i in features else 1 for i, n in enumerate(x.shape)])
            args.append(scale)
        return cast(y, canonicalize_dtype(*args, dtype=self.dtype))
