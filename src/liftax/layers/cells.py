"""Cells of recurrent networks: one step, ``(carry, inputs) -> (carry, output)``.

Scan a cell over time with :class:`RNN` or `scan`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from ..errors import LiftWarning
from ..module import Module, compact, nowrap
from ..words import kind_of
from . import initializers
from ._util import fail
from .dtypes import Array, Dtype, Initializer
from .linear import Dense, default_kernel_init

default_recurrent_init: Initializer = initializers.orthogonal()


class RNNCellBase(Module):
    """The base of all cells: what :class:`RNN` asks of one.

    A cell has, besides ``__call__(carry, inputs) -> (carry, output)``, the method
    ``initialize_carry`` and the property ``num_feature_axes``.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> class Sum(nn.RNNCellBase):
      ...     def __call__(self, carry, x):
      ...         carry = carry + x
      ...         return carry, carry
      ...     @nn.nowrap
      ...     def initialize_carry(self, rng, input_shape):
      ...         return jnp.zeros(input_shape)
      ...     @property
      ...     def num_feature_axes(self):
      ...         return 1
      >>> y, variables = nn.RNN(Sum()).init_with_output(jax.random.key(0), jnp.ones((3, 2)))
      >>> print(y)
      [[1. 1.]
       [2. 2.]
       [3. 3.]]
    """

    def __call__(self, carry: Any, inputs: Any) -> Any:
        """One step: the next carry, and the output."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__.")

    @nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Any:
        """The first carry, for one input of shape ``input_shape``, without the time axis."""
        raise NotImplementedError(f"{type(self).__name__} must define initialize_carry.")

    @property
    def num_feature_axes(self) -> int:
        """How many of the last axes of an input are not batch axes."""
        raise NotImplementedError(f"{type(self).__name__} must define num_feature_axes.")


def check_cell(cell: object) -> None:
    """Raises LayerError where ``initialize_carry`` is called on a class, as it once was."""
    # It was a static method in flax once, and old code calls it so.
    if not isinstance(cell, RNNCellBase):
        raise fail(
            "initialize_carry",
            f"it is called on a class: the cell is {type(cell).__name__}.",
            "Call it on a cell: nn.LSTMCell(features=5).initialize_carry(key, (*batch, width)).",
        )


def pair_of(cell: RNNCellBase, carry: Any) -> tuple[Array, Array]:
    """The two states of a carry; an array with two rows is no pair."""
    if not isinstance(carry, (tuple, list)) or len(carry) != 2:
        found = f"of shape {jnp.shape(carry)}" if hasattr(carry, "shape") else type(carry).__name__
        raise fail(
            cell, f"the carry {found} is not a pair (c, h).", "Pass the carry of initialize_carry."
        )
    return carry[0], carry[1]


def width_of(cell: Any, state: Array) -> int:
    """The width of a carry, which a cell takes as its own, as Linen's do.

    Warns:
      LiftWarning: ``LX207``, the cell's ``features`` say another.
    """
    if isinstance(state, (tuple, list)):
        fix = "Pass the carry of initialize_carry."
        raise fail(cell, f"the carry is a {kind_of(state)}, not one array.", fix)
    shape = jnp.shape(state)
    if not shape:
        raise fail(cell, "the carry is a scalar.", "Pass the carry of initialize_carry.")
    # Linen goes by the carry and says nothing; the warning is ours.
    if shape[-1] != cell.features:
        text = (
            f"the carry of shape {shape} does not end in features={cell.features}: the cell has "
            f"the carry's width.\nPass features={shape[-1]}, or the carry of initialize_carry"
        )
        warnings.warn(LiftWarning("LX207", str(fail(cell, *text.split("\n")))), stacklevel=3)
    return int(shape[-1])


def first_state(cell: Any, rng: Array, input_shape: tuple[int, ...]) -> Array:
    """One state of a first carry: as wide as the cell, for inputs ``(..., in)``."""
    check_cell(cell)
    return cell.carry_init(rng, (*input_shape[:-1], cell.features), cell.param_dtype)


def first_pair(cell: Any, rng: Array, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The two states of a first carry ``(c, h)``, each from a key of its own."""
    check_cell(cell)
    # Both are zeros nearly always; a random initializer must not make them equal.
    key_c, key_h = jax.random.split(rng)
    return first_state(cell, key_c, input_shape), first_state(cell, key_h, input_shape)


class VectorCell(RNNCellBase):
    """What the cells over vectors share."""

    @nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> Any:
        """The first hidden state, for inputs of shape ``input_shape = (*batch, in)``."""
        return first_state(self, rng, input_shape)

    @nowrap
    def _dense(self, width: int, **options: Any) -> Dense:
        # The fields are those of the classes below, each with its own.
        cell: Any = self
        return Dense(width, dtype=cell.dtype, param_dtype=cell.param_dtype, **options)

    @property
    def num_feature_axes(self) -> int:
        return 1


class SimpleCell(VectorCell):
    r"""A plain recurrent cell.

    .. math:: h' = \tanh(W_i x + b_i + W_h h)

    With ``residual``, :math:`h` is added before the activation. Elman 1990,
    https://doi.org/10.1207/s15516709cog1402_1; residual: Yue et al. 2018,
    https://arxiv.org/abs/1801.06105.

    Shapes: ``(h, x) -> (h', h')``, with ``x (*batch, in)`` and ``h (*batch, features)``.

    Variables: ``params/i/kernel (in, features)``, ``params/i/bias (features,)``,
    ``params/h/kernel (features, features)``.

    Attributes:
      features: size of the state and of the output.
      activation_fn: :math:`\tanh`.
      kernel_init: initializer of the kernel of the input.
      recurrent_kernel_init: initializer of the kernel of the state.
      bias_init: initializer of the bias.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters and of the first carry.
      carry_init: initializer of the first carry.
      residual: add the state before the activation.

    Raises:
      LayerError: the carry is none.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> cell, x = nn.SimpleCell(4), jnp.ones((2, 3))
      >>> h = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> (h, y), variables = cell.init_with_output(jax.random.key(1), h, x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))
    """

    features: int
    activation_fn: Callable[..., Array] = tanh
    kernel_init: Initializer = default_kernel_init
    recurrent_kernel_init: Initializer = default_recurrent_init
    bias_init: Initializer = initializers.zeros
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    carry_init: Initializer = initializers.zeros
    residual: bool = False

    @compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step."""
        width = width_of(self, carry)
        from_input = self._dense(
            width, kernel_init=self.kernel_init, bias_init=self.bias_init, name="i"
        )(inputs)
        # Of two sums that are added one has the bias.
        from_state = self._dense(
            width, use_bias=False, kernel_init=self.recurrent_kernel_init, name="h"
        )(carry)
        total = from_input + from_state
        # Before the activation, which keeps the state bounded.
        if self.residual:
            total = total + carry
        h = self.activation_fn(total)
        return h, h


class GatedCell(VectorCell):
    """The fields that the gated recurrent unit and the long short-term memories share."""

    features: int
    gate_fn: Callable[..., Array] = sigmoid
    activation_fn: Callable[..., Array] = tanh
    kernel_init: Initializer = default_kernel_init
    recurrent_kernel_init: Initializer = default_recurrent_init
    bias_init: Initializer = initializers.zeros
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    carry_init: Initializer = initializers.zeros


class GRUCell(GatedCell):
    r"""A gated recurrent unit.

    .. math::
        r &= \sigma(W_{ir} x + b_{ir} + W_{hr} h) \\
        z &= \sigma(W_{iz} x + b_{iz} + W_{hz} h) \\
        n &= \tanh(W_{in} x + b_{in} + r (W_{hn} h + b_{hn})) \\
        h' &= (1 - z) n + z h

    Cho et al. 2014, https://arxiv.org/abs/1406.1078, with the reset gate after the
    product, as in https://arxiv.org/abs/1412.3555.

    Shapes: ``(h, x) -> (h', h')``, with ``x (*batch, in)`` and ``h (*batch, features)``.

    Variables: ``params/{ir,iz,in}/kernel (in, features)`` and ``.../bias (features,)``,
    ``params/{hr,hz,hn}/kernel (features, features)``, ``params/hn/bias (features,)``.

    Attributes:
      features: size of the state and of the output.
      gate_fn: :math:`\sigma`.
      activation_fn: :math:`\tanh`.
      kernel_init: initializer of the kernels of the input.
      recurrent_kernel_init: initializer of the kernels of the state.
      bias_init: initializer of the biases.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters and of the first carry.
      carry_init: initializer of the first carry.

    Raises:
      LayerError: the carry is none.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> cell, x = nn.GRUCell(4), jnp.ones((2, 3))
      >>> h = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> (h, y), variables = cell.init_with_output(jax.random.key(1), h, x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))
    """

    @compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step."""
        h = carry
        dense = functools.partial(self._dense, width_of(self, h), bias_init=self.bias_init)
        from_input = functools.partial(dense, kernel_init=self.kernel_init)
        from_state = functools.partial(dense, kernel_init=self.recurrent_kernel_init)
        # Of two sums that are added one has the bias; those of `n` are apart, so both do.
        r = self.gate_fn(from_input(name="ir")(inputs) + from_state(name="hr", use_bias=False)(h))
        z = self.gate_fn(from_input(name="iz")(inputs) + from_state(name="hz", use_bias=False)(h))
        n = self.activation_fn(from_input(name="in")(inputs) + r * from_state(name="hn")(h))
        h = (1.0 - z) * n + z * h
        return h, h


class MGUCell(VectorCell):
    r"""A minimal gated unit.

    .. math::
        f &= \sigma(W_{if} x + b_{if} + W_{hf} h) \\
        n &= \tanh(W_{in} x + b_{in} + f (W_{hn} h + b_{hn})) \\
        h' &= (1 - f) n + f h

    Without ``reset_gate``, :math:`n = \tanh(W_{in} x + b_{in} + W_{hn} h)`. Zhou et al.
    2016, https://arxiv.org/abs/1603.09420.

    Shapes: ``(h, x) -> (h', h')``, with ``x (*batch, in)`` and ``h (*batch, features)``.

    Variables: ``params/{if,in}/kernel (in, features)`` and ``.../bias (features,)``,
    ``params/{hf,hn}/kernel (features, features)``, and with ``reset_gate``
    ``params/hn/bias (features,)``.

    Attributes:
      features: size of the state and of the output.
      gate_fn: :math:`\sigma`.
      activation_fn: :math:`\tanh`.
      kernel_init: initializer of the kernels of the input.
      recurrent_kernel_init: initializer of the kernels of the state.
      forget_bias_init: initializer of the forget gate's bias; ones, so that the state is
        kept at first (Jozefowicz et al. 2015, section 2.2).
      activation_bias_init: initializer of the other biases.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters and of the first carry.
      carry_init: initializer of the first carry.
      reset_gate: multiply by the forget gate within :math:`n`.

    Raises:
      LayerError: the carry is none.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> cell, x = nn.MGUCell(4), jnp.ones((2, 3))
      >>> h = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> (h, y), variables = cell.init_with_output(jax.random.key(1), h, x)
      >>> h.shape, y.shape
      ((2, 4), (2, 4))
    """

    features: int
    gate_fn: Callable[..., Array] = sigmoid
    activation_fn: Callable[..., Array] = tanh
    kernel_init: Initializer = default_kernel_init
    recurrent_kernel_init: Initializer = default_recurrent_init
    forget_bias_init: Initializer = initializers.ones
    activation_bias_init: Initializer = initializers.zeros
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    carry_init: Initializer = initializers.zeros
    reset_gate: bool = True

    @compact
    def __call__(self, carry: Array, inputs: Array) -> tuple[Array, Array]:
        """One step."""
        h = carry
        dense = functools.partial(self._dense, width_of(self, h))
        from_input = functools.partial(dense, kernel_init=self.kernel_init)
        from_state = functools.partial(dense, kernel_init=self.recurrent_kernel_init)
        f = self.gate_fn(
            from_input(name="if", bias_init=self.forget_bias_init)(inputs)
            + from_state(name="hf", use_bias=False)(h)
        )
        # Before `in`, as in Linen: init returns variables in the order in which they are made.
        state = from_state(
            name="hn", use_bias=self.reset_gate, bias_init=self.activation_bias_init
        )(h)
        if self.reset_gate:
            state = f * state
        n = self.activation_fn(
            from_input(name="in", bias_init=self.activation_bias_init)(inputs) + state
        )
        # The one gate says both how much is kept and, above, how much is looked at.
        h = (1.0 - f) * n + f * h
        return h, h
