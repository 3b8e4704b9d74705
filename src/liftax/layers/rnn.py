"""Cells run over time: :class:`RNN` and :class:`Bidirectional`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ..module import Module, compact, nowrap
from ..transforms import scan
from ..words import class_or_type, shown
from ._util import fail
from .cells import RNNCellBase
from .dtypes import Array
from .sharded import (
    Asked,
    Entry,
    OutSharding,
    asked,
    auto,
    entries,
    lay_as,
    lay_out,
    on_mesh_of,
    out_sharding_field,
    split_of,
)


def flip_sequences(
    inputs: Array, seq_lengths: Array | None, num_batch_dims: int, time_major: bool
) -> Array:
    """Reverses each sequence in time, and leaves its padding at the end.

    Args:
      inputs: ``(*batch, time, ...)``, or ``(time, *batch, ...)`` with ``time_major``.
      seq_lengths: ``(*batch)``, or None where nothing is padding.
      num_batch_dims: number of batch axes.
      time_major: whether time comes first.

    Example:
      >>> import jax.numpy as jnp
      >>> from liftax.layers.rnn import flip_sequences
      >>> x = jnp.array([[1, 0, 0], [2, 3, 0], [4, 5, 6]])
      >>> print(flip_sequences(x, jnp.array([1, 2, 3]), num_batch_dims=1, time_major=False))
      [[1 0 0]
       [3 2 0]
       [6 5 4]]
    """
    axis = 0 if time_major else num_batch_dims
    if seq_lengths is None:
        return jnp.flip(inputs, axis=axis)
    length = inputs.shape[axis]
    # Position t comes from position n - 1 - t, n being the sequence's length. In the padding
    # that is negative, and counts from the end.
    index = jnp.arange(length - 1, -1, -1)
    index = jnp.reshape(index, (1,) * seq_lengths.ndim + (length,))
    index = (index + jnp.expand_dims(seq_lengths, -1)) % length
    if time_major:
        index = jnp.moveaxis(index, -1, 0)
    index = jnp.reshape(index, index.shape + (1,) * (inputs.ndim - index.ndim))
    return jnp.take_along_axis(inputs, index, axis=axis)


def _last(history: Any, seq_lengths: Array) -> Any:
    """The carry after the last valid step, from all carries ``(time, *batch, ...)``."""
    # Carries are stacked along the first axis, whatever the inputs' time axis is.
    index = seq_lengths - 1

    def pick(x: Array, index: Array) -> Array:
        batch = jnp.meshgrid(*map(jnp.arange, index.shape), indexing="ij", sparse=True)
        return x[(index, *batch)]

    def picked(x: Array) -> Array:
        if split_of(x) is None:
            return pick(x, index)
        return auto(pick, on_mesh_of(x, entries(x)[1:]))(x, index)

    return jax.tree.map(picked, history)


class RNN(Module):
    """Runs a cell over time.

    Equals, with ``inputs`` of shape ``(time, *batch, *features)``::

        outputs = []
        for x in inputs:
            carry, y = cell(carry, x)
            outputs.append(y)

    Shapes: ``(*batch, time, *features)`` to the same with the cell's output features; the
    time axis comes first with ``time_major``.

    Variables: those of the cell, the same at each step unless said otherwise.

    Attributes:
      cell: the cell.
      time_major: whether the time axis comes first, rather than after the batch.
      return_carry: whether to return ``(carry, outputs)``.
      reverse: go through time backwards; the outputs come in the order of processing.
      keep_order: with ``reverse``, give the outputs in the order of the inputs.
      unroll: see `scan`; so are the next four.
      variable_axes: collections with a time axis.
      variable_broadcast: collections that are the same at each step.
      variable_carry: collections that are carried from step to step.
      split_rngs: streams with a key of its own for each step, or not.
      out_sharding: how the outputs lie on a mesh, see `sharded.OutSharding`. On explicit axes the
        batch of the first carry lies as that of the inputs, and its features as the outputs' are
        asked to; each carry lies as the first.

    Raises:
      LayerError: the input has too few axes, or ``seq_lengths`` does not have the shape
        of the batch.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> x = jnp.ones((10, 50, 32))
      >>> rnn = nn.RNN(nn.LSTMCell(64), return_carry=True)
      >>> ((c, h), y), variables = rnn.init_with_output(jax.random.key(0), x)
      >>> y.shape, h.shape
      ((10, 50, 64), (10, 64))
      >>> lengths = jnp.full(10, 7)
      >>> (c, h), y = rnn.apply(variables, x, seq_lengths=lengths)
      >>> bool((h == y[:, 6]).all())
      True
    """

    cell: RNNCellBase
    time_major: bool = False
    return_carry: bool = False
    reverse: bool = False
    keep_order: bool = False
    unroll: int = 1
    variable_axes: Mapping[Any, Any] = dataclasses.field(default_factory=dict)
    variable_broadcast: Any = "params"
    variable_carry: Any = False
    split_rngs: Mapping[Any, bool] = dataclasses.field(default_factory=lambda: {"params": False})
    out_sharding: OutSharding = out_sharding_field()

    @compact
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Runs the cell over ``inputs``. Options given here come before the fields.

        Args:
          inputs: ``(*batch, time, *features)``, or time first with ``time_major``.
          initial_carry: the first carry; None asks the cell for it.
          init_key: key for that; None is ``jax.random.key(0)``.
          seq_lengths: ``(*batch)``; steps from there on are padding. The outputs at padding
            are not zeroed; the carry is that of the last valid step.
          return_carry: as the field.
          time_major: as the field.
          reverse: as the field; padding stays at the end.
          keep_order: as the field.

        Returns:
          The outputs, or ``(carry, outputs)``.
        """
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        reverse = self.reverse if reverse is None else reverse
        keep_order = self.keep_order if keep_order is None else keep_order

        batch_dims = self._batch_dims(inputs)
        axis = 0 if time_major else batch_dims
        step_shape = inputs.shape[:axis] + inputs.shape[axis + 1 :]
        if seq_lengths is not None and jnp.shape(seq_lengths) != step_shape[:batch_dims]:
            raise fail(
                self,
                f"seq_lengths has shape {jnp.shape(seq_lengths)}, the batch "
                f"{step_shape[:batch_dims]}.",
                "Pass one length for each sequence.",
            )

        def flip(x: Array) -> Array:
            return flip_sequences(x, seq_lengths, batch_dims, time_major)

        if reverse:
            inputs = jax.tree.map(flip, inputs)
        place = asked(self.out_sharding)
        lies = self._lies(inputs, place, batch_dims, axis)
        carry = initial_carry
        if carry is None:
            # The first carry is zeros for nearly every cell, whatever the key.
            key = jax.random.key(0) if init_key is None else init_key
            carry = self.cell.initialize_carry(key, step_shape)
            if lies is not None:
                carry = jax.tree.map(lambda x: lay_out(x, lies[: x.ndim], inputs), carry)
        # With padding each sequence ends at a step of its own: all carries are kept, to pick from.
        keep_history = seq_lengths is not None and return_carry and inputs.shape[axis] != 0

        def scan_fn(cell: RNNCellBase, carry: Any, x: Array) -> Any:
            before = carry
            carry, y = cell(carry, x)
            if lies is not None:
                # JAX holds a loop to the split with which its carry begins, and products may lie
                # otherwise.
                carry = jax.tree.map(lay_as, carry, before)
            return carry, ((carry, y) if keep_history else y)

        # The same cell at each step; what else its collections do in time, the fields say.
        run = scan(
            scan_fn,
            in_axes=axis,
            out_axes=(0, axis) if keep_history else axis,
            unroll=self.unroll,
            variable_axes=self.variable_axes,
            variable_broadcast=self.variable_broadcast,
            variable_carry=self.variable_carry,
            split_rngs=self.split_rngs,
        )
        carry, outputs = run(self.cell, carry, inputs)
        if keep_history:
            history, outputs = outputs
            # The outputs at padding are left as they come, as in Linen.
            carry = _last(history, jnp.asarray(seq_lengths))
        if reverse and keep_order:
            outputs = jax.tree.map(flip, outputs)
        outputs = place(outputs)
        return (carry, outputs) if return_carry else outputs

    @nowrap
    def _batch_dims(self, inputs: Array) -> int:
        """The number of batch axes."""
        # What does not fit is told here: from inside the scan it would be an error of its axes.
        if not isinstance(self.cell, Module):
            raise fail(
                self,
                f"cell is {shown(self.cell)}, not a cell.",
                "Pass an instance, e.g. nn.RNN(nn.LSTMCell(64)).",
            )
        found = inputs.ndim - self.cell.num_feature_axes - 1
        if found < 0:
            raise fail(
                self,
                f"the input of shape {inputs.shape} has too few axes; the cell takes "
                f"{self.cell.num_feature_axes}, and time is one more.",
                "Pass (*batch, time, *features).",
            )
        return found

    @nowrap
    def _lies(
        self, inputs: Array, place: Asked, batch_dims: int, axis: int
    ) -> tuple[Entry, ...] | None:
        """How a first carry is split, axis by axis; None where nothing is split."""
        asked_for = () if place.explicit is None else tuple(place.explicit.spec)
        if split_of(inputs) is None and not asked_for:
            return None
        asked_for += (None,) * (inputs.ndim - len(asked_for))
        of_inputs = entries(inputs)
        rest = self.cell.num_feature_axes
        # The batch lies as that of the inputs, features as is asked of outputs, which carries are
        # like.
        batch = [of_inputs[i] for i in range(inputs.ndim) if i != axis][:batch_dims]
        return (*batch, *asked_for[inputs.ndim - rest :])


def _concatenate(a: Array, b: Array) -> Array:
    return jnp.concatenate([a, b], axis=-1)


class Bidirectional(Module):
    """Runs one :class:`RNN` forward and one backward, and joins their outputs.

    Both outputs are in the order of the inputs. Schuster and Paliwal 1997,
    https://doi.org/10.1109/78.650093.

    Attributes:
      forward_rnn: goes from the first step to the last.
      backward_rnn: goes from the last step to the first.
      merge_fn: joins the two outputs; concatenates their last axes by default.
      time_major: whether the time axis comes first.
      return_carry: whether to return ``((forward carry, backward carry), outputs)``.

    Raises:
      LayerError: ``reverse`` or ``keep_order`` is asked for.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> layer = nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4)))
      >>> y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 5, 3)))
      >>> y.shape
      (2, 5, 8)
    """

    forward_rnn: RNN
    backward_rnn: RNN
    merge_fn: Callable[[Array, Array], Array] = _concatenate
    time_major: bool = False
    return_carry: bool = False

    @compact
    def __call__(
        self,
        inputs: Array,
        *,
        initial_carry: Any = None,
        init_key: Array | None = None,
        seq_lengths: Array | None = None,
        return_carry: bool | None = None,
        time_major: bool | None = None,
        reverse: bool | None = None,
        keep_order: bool | None = None,
    ) -> Any:
        """Runs both over ``inputs``; see :class:`RNN` for the arguments.

        Args:
          initial_carry: a pair, of the forward and the backward first carry.
          reverse: must be left out, as must ``keep_order``: the order is fixed.
        """
        for name, rnn in (("forward_rnn", self.forward_rnn), ("backward_rnn", self.backward_rnn)):
            if isinstance(rnn, type) or isinstance(rnn, RNNCellBase):
                raise fail(
                    self,
                    f"{name} is {class_or_type(rnn)}, which takes one step, not a sequence.",
                    f"Pass {name}=nn.RNN(cell).",
                )
        for name, value in (("reverse", reverse), ("keep_order", keep_order)):
            if value is not None:
                raise fail(
                    self,
                    f"{name}={value}, but one network goes each way, and the order is kept.",
                    f"Leave {name}= out.",
                )
        return_carry = self.return_carry if return_carry is None else return_carry
        time_major = self.time_major if time_major is None else time_major
        # Of one key both directions would begin with the same random carry.
        keys = (None, None) if init_key is None else jax.random.split(init_key)
        carries = (None, None) if initial_carry is None else initial_carry
        results = [
            rnn(
                inputs,
                initial_carry=carry,
                init_key=key,
                seq_lengths=seq_lengths,
                return_carry=True,
                time_major=time_major,
                reverse=backward,
                keep_order=backward,
            )
            for backward, rnn, carry, key in zip(
                (False, True), (self.forward_rnn, self.backward_rnn), carries, keys, strict=True
            )
        ]
        (carry_f, out_f), (carry_b, out_b) = results
        outputs = jax.tree.map(self.merge_fn, out_f, out_b)
        return ((carry_f, carry_b), outputs) if return_carry else outputs
