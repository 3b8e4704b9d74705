"""Recurrent layers: the long short-term memories, and the names of the rest of the family."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from jax.nn import sigmoid
from jax.numpy import tanh

from ..module import Module, compact, nowrap
from . import initializers
from ._util import add_bias, fail, is_differentiated, matmul, to_tuple
from .cells import GatedCell, first_pair, pair_of, width_of
from .cells import GRUCell as GRUCell
from .cells import MGUCell as MGUCell
from .cells import RNNCellBase as RNNCellBase
from .cells import SimpleCell as SimpleCell
from .conv import CONV_PADDING, Conv, canonicalize_padding
from .dtypes import Array, Dtype, Initializer, promote_dtype
from .rnn import RNN as RNN
from .rnn import Bidirectional as Bidirectional
from .rnn import flip_sequences as flip_sequences


class _LSTM(GatedCell):
    """The state of a long short-term memory, and its gates."""

    @nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """The first ``(c, h)``, for inputs of shape ``input_shape = (*batch, in)``."""
        return first_pair(self, rng, input_shape)

    @nowrap
    def _step(self, c: Array, gates: Sequence[Array]) -> tuple[tuple[Array, Array], Array]:
        """The next carry and output, from the sums that go into the gates i, f, g, o."""
        i, f, g, o = gates
        i, f, g, o = self.gate_fn(i), self.gate_fn(f), self.activation_fn(g), self.gate_fn(o)
        c = f * c + i * g
        h = o * self.activation_fn(c)
        return (c, h), h


class LSTMCell(_LSTM):
    r"""A long short-term memory.

    .. math::
        i &= \sigma(W_{ii} x + W_{hi} h + b_{hi}) \\
        f &= \sigma(W_{if} x + W_{hf} h + b_{hf}) \\
        g &= \tanh(W_{ig} x + W_{hg} h + b_{hg}) \\
        o &= \sigma(W_{io} x + W_{ho} h + b_{ho}) \\
        c' &= f c + i g \\
        h' &= o \tanh(c')

    Hochreiter and Schmidhuber 1997, https://doi.org/10.1162/neco.1997.9.8.1735.

    Shapes: ``((c, h), x) -> ((c', h'), h')``, with ``x (*batch, in)`` and the others
    ``(*batch, features)``.

    Variables: ``params/{ii,if,ig,io}/kernel (in, features)``,
    ``params/{hi,hf,hg,ho}/kernel (features, features)`` and ``.../bias (features,)``.

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
      LayerError: the carry is no pair.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> cell, x = nn.LSTMCell(4), jnp.ones((2, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> ((c, h), y), variables = cell.init_with_output(jax.random.key(1), carry, x)
      >>> c.shape, h.shape, y.shape
      ((2, 4), (2, 4), (2, 4))
    """

    @compact
    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """One step."""
        c, h = pair_of(self, carry)
        width = width_of(self, h)

        # Eight maps, each by itself: slower than one, and the reference for it.
        def gate(name: str) -> Array:
            from_input = self._dense(
                width, use_bias=False, kernel_init=self.kernel_init, name="i" + name
            )(inputs)
            from_state = self._dense(
                width,
                kernel_init=self.recurrent_kernel_init,
                bias_init=self.bias_init,
                name="h" + name,
            )(h)
            return from_input + from_state

        return self._step(c, [gate(name) for name in "ifgo"])


class DenseParams(Module):
    """The kernel and bias of a map that is applied elsewhere."""

    features: int
    use_bias: bool
    param_dtype: Dtype
    kernel_init: Initializer
    bias_init: Initializer

    @compact
    def __call__(self, x: Array) -> tuple[Array, Array | None]:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if not self.use_bias:
            return kernel, None
        return kernel, self.param("bias", self.bias_init, (self.features,), self.param_dtype)


class OptimizedLSTMCell(_LSTM):
    r"""A long short-term memory whose four gates are one product.

    As :class:`LSTMCell`, with the same variables. The kernels of the gates are joined
    before they are applied, which is faster up to about 2,048 features.

    Attributes: as :class:`LSTMCell`.

    Raises:
      LayerError: the carry is no pair.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> cell, x = nn.OptimizedLSTMCell(4), jnp.ones((2, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> ((c, h), y), variables = cell.init_with_output(jax.random.key(1), carry, x)
      >>> (c2, h2), y2 = nn.LSTMCell(4).apply(variables, carry, x)
      >>> bool(jnp.allclose(y, y2))
      True
    """

    @compact
    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """One step."""
        c, h = pair_of(self, carry)
        width = width_of(self, h)

        def weights(
            name: str, x: Array, use_bias: bool, init: Initializer
        ) -> tuple[Array, Array | None]:
            made = DenseParams(width, use_bias, self.param_dtype, init, self.bias_init, name=name)
            return made(x)

        # In the order in which the variables stand in what init returns.
        gates = [
            (
                weights("i" + name, inputs, False, self.kernel_init),
                weights("h" + name, h, True, self.recurrent_kernel_init),
            )
            for name in "ifgo"
        ]

        def joined(x: Array, side: int, use_bias: bool) -> list[Array]:
            """The sums of ``x`` that go into the gates."""
            kernels, biases = zip(*(gate[side] for gate in gates), strict=True)
            bias = jnp.concatenate(biases, axis=-1) if use_bias else None
            x, kernel, bias = promote_dtype(
                x, jnp.concatenate(kernels, axis=-1), bias, dtype=self.dtype
            )
            # As Linen multiplies; see `_util` for why that counts where it is differentiated.
            dot = jnp.dot if is_differentiated(x, kernel) else matmul
            y = dot(x, kernel)
            return jnp.split(y if bias is None else add_bias(y, bias), 4, axis=-1)

        from_state, from_input = joined(h, 1, True), joined(inputs, 0, False)
        return self._step(c, [a + b for a, b in zip(from_state, from_input, strict=True)])


class ConvLSTMCell(RNNCellBase):
    r"""A long short-term memory with convolutions, over images or signals.

    .. math::
        i &= \sigma(W_{ii} * x + W_{hi} * h + b_i) \\
        f &= \sigma(W_{if} * x + W_{hf} * h + b_f + 1) \\
        g &= \tanh(W_{ig} * x + W_{hg} * h + b_g) \\
        o &= \sigma(W_{io} * x + W_{ho} * h + b_o) \\
        c' &= f c + i g \\
        h' &= o \tanh(c')

    Shi et al. 2015, https://arxiv.org/abs/1506.04214. The 1 keeps the state at first.

    Shapes: ``((c, h), x) -> ((c', h'), h')``, with ``x (*batch, *space, channels)`` and the
    others ``(*batch, *space, features)``.

    Variables: ``params/ih/kernel (*kernel_size, channels, 4 features)``,
    ``params/hh/kernel (*kernel_size, features, 4 features)``, and the biases.

    Attributes:
      features: channels of the state and of the output.
      kernel_size: size of the kernel in each dimension of space.
      strides: step of the window; the state must keep its shape.
      padding: see :class:`Conv`; the state must keep its shape.
      use_bias: whether the convolutions have biases.
      dtype: dtype to compute in; None promotes inputs and parameters.
      param_dtype: dtype of the parameters and of the first carry.
      carry_init: initializer of the first carry.

    Raises:
      LayerError: the state would change its shape, or the carry does not fit the input.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> cell, x = nn.ConvLSTMCell(4, kernel_size=(3, 3)), jnp.ones((2, 8, 8, 3))
      >>> carry = cell.initialize_carry(jax.random.key(0), x.shape)
      >>> (carry, y), variables = cell.init_with_output(jax.random.key(1), carry, x)
      >>> y.shape
      (2, 8, 8, 4)
    """

    features: int
    kernel_size: Sequence[int]
    strides: Sequence[int] | None = None
    padding: str | Sequence[tuple[int, int]] = "SAME"
    use_bias: bool = True
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    carry_init: Initializer = initializers.zeros

    @compact
    def __call__(
        self, carry: tuple[Array, Array], inputs: Array
    ) -> tuple[tuple[Array, Array], Array]:
        """One step."""
        c, h = pair_of(self, carry)
        expected = (*inputs.shape[:-1], self.features)
        if h.shape != expected or c.shape != expected:
            raise fail(
                self,
                f"the carry has shapes {c.shape} and {h.shape}, the input asks for {expected}.",
                "Pass the carry made by initialize_carry.",
            )
        self._check_same_space(inputs)
        convolve = functools.partial(
            Conv,
            features=4 * self.features,
            kernel_size=self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            use_bias=self.use_bias,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        gates = convolve(name="ih")(inputs) + convolve(name="hh")(h)
        # In this order, which is not that of the other cells, the gates lie in Linen's kernel.
        i, g, f, o = jnp.split(gates, 4, axis=-1)
        # Here and not in the bias, which begins with zeros and is stored without the 1.
        c = sigmoid(f + 1) * c + sigmoid(i) * tanh(g)
        h = sigmoid(o) * tanh(c)
        return (c, h), h

    @nowrap
    def _check_same_space(self, inputs: Array) -> None:
        size = to_tuple(self.kernel_size)
        strides = to_tuple(1 if self.strides is None else self.strides)
        pads = canonicalize_padding(self.padding, len(size), CONV_PADDING, self)
        # By its numbers: with a window of one element it keeps the shape.
        if pads == "VALID":
            pads = ((0, 0),) * len(size)
        kept = isinstance(pads, str) or all(
            low + high == k - 1 for (low, high), k in zip(pads, size, strict=True)
        )
        if max(strides) > 1 or not kept:
            raise fail(
                self,
                f"with strides={self.strides} and padding={self.padding!r}, the state of "
                f"shape {inputs.shape[:-1]} would change its shape at each step.",
                'Use strides=None and padding="SAME".',
            )

    @nowrap
    def initialize_carry(self, rng: Array, input_shape: tuple[int, ...]) -> tuple[Array, Array]:
        """The first ``(c, h)``, for inputs of shape ``input_shape``."""
        return first_pair(self, rng, input_shape)

    @property
    def num_feature_axes(self) -> int:
        return len(self.kernel_size) + 1
