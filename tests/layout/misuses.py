"""Misuses from a user's side, each with its correct twin.

A misuse is a function `(module, x, wrong)`: the call of a compact method in which something is
wrong, or, with `wrong=False`, right. `x` is float32[2,4].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors

STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}}
MAPPED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}


class Misuse(NamedTuple):
    name: str
    error: type[BaseException]
    match: str
    call: Callable[[nn.Module, jax.Array, bool], Any]


MISUSES: list[Misuse] = []


def misuse(error: type[BaseException], match: str) -> Callable[[Any], Any]:
    def add(call: Any) -> Any:
        MISUSES.append(Misuse(call.__name__, error, match, call))
        return call

    return add


class Layer(nn.Module):
    """A body of a scan over layers, as wide as it is told."""

    width: int = 4
    dtype: Any = None

    @nn.compact
    def __call__(self, x, *_):
        return nn.Dense(self.width, dtype=self.dtype)(x), None


class Out(nn.Module):
    """A body that returns whatever a function makes of its carry."""

    returns: Any

    @nn.compact
    def __call__(self, x, *_):
        return self.returns(nn.Dense(4)(x))


class Remembers(nn.Module):
    """A body with a collection of its own."""

    @nn.compact
    def __call__(self, x, *_):
        self.variable("state", "seen", jnp.zeros, (4,)).value = x.sum(0)
        return x, None


def row(x):
    """A scanned argument of five rows."""
    return jnp.zeros((5, 4)) + x[0]


# -- the carry and what the body returns -------------------------------------------------------


@misuse(errors.CarryError, r"residual width is 4 and the body makes 8")
def carry_of_another_width(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=3)(8 if wrong else 4)(x, None)


@misuse(errors.CarryError, r"bfloat16\[2,4\]")
def carry_of_another_dtype(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=3)(4, jnp.bfloat16 if wrong else None)(x, None)


@misuse(errors.CarryError, r"structure")
def carry_of_another_structure(mdl, x, wrong):
    body = Out(lambda y: ((y, y), None) if wrong else (y, None), parent=None)
    return nn.scan(Out, **STACKED, length=3)(body.returns)(x, None)


@misuse(errors.BodyReturnError, r"must return a pair \(carry, ys\)")
def body_returns_an_array_of_two(mdl, x, wrong):
    return nn.scan(Out, **STACKED, length=3)(lambda y: y if wrong else (y, None))(x, None)


@misuse(errors.BodyReturnError, r"must return a pair")
def body_returns_nothing(mdl, x, wrong):
    return nn.scan(Out, **STACKED, length=3)(lambda y: None if wrong else (y, None))(x, None)


@misuse(errors.BodyReturnError, r"must return a pair")
def body_returns_three_things(mdl, x, wrong):
    returns = (lambda y: (y, None, None)) if wrong else (lambda y: (y, (None, None)))
    return nn.scan(Out, **STACKED, length=3)(returns)(x, None)


@misuse(errors.BodyReturnError, r"must return a pair")
def body_returns_a_dict(mdl, x, wrong):
    returns = (lambda y: {"carry": y, "ys": None}) if wrong else (lambda y: (y, {"ys": y}))
    return nn.scan(Out, **STACKED, length=3)(returns)(x, None)


# -- the length --------------------------------------------------------------------------------


@misuse(errors.LengthError, r"length")
def length_unknown(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=None if wrong else 3)()(x, None)


@misuse(errors.LengthError, r"found: 3 from length=3")
def length_against_an_argument(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=3 if wrong else 5)()(x, row(x))


@misuse(errors.LengthError, r"found: 4 from argument 3")
def lengths_of_two_arguments(mdl, x, wrong):
    return nn.scan(Layer, **STACKED)()(x, row(x), row(x)[: 4 if wrong else 5])


@misuse(errors.LengthError, r"-1")
def length_negative(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=-1 if wrong else 1)()(x, None)


@misuse(errors.LengthError, r"0")
def length_zero(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=0 if wrong else 1)()(x, None)


@misuse(errors.LengthError, r"axis_size")
def size_of_a_map_unknown(mdl, x, wrong):
    size = {} if wrong else {"axis_size": 3}
    return nn.vmap(nn.Dense, **STACKED, in_axes=None, **size)(4)(x)


@misuse(errors.LengthError, r"found: 3 from axis_size=3")
def size_of_a_map_against_an_argument(mdl, x, wrong):
    return nn.vmap(nn.Dense, **MAPPED, axis_size=3 if wrong else 2)(4)(x)


@misuse(errors.LengthError, r"lengths")
def remat_scan_without_lengths(mdl, x, wrong):
    return nn.remat_scan(nn.Dense, lengths=() if wrong else (2, 2))(4)(x)


# -- axes and prefix trees ---------------------------------------------------------------------


@misuse(errors.AxisError, r"axis 2 is out of range for argument 2")
def scanned_axis_out_of_range(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, in_axes=2 if wrong else 0)()(x, row(x))


@misuse(errors.AxisError, r"axis 2 is out of range for argument 1")
def mapped_axis_out_of_range(mdl, x, wrong):
    return nn.vmap(nn.Dense, **MAPPED, in_axes=2 if wrong else 1)(4)(x)


@misuse(errors.AxisError, r"expected an int")
def variable_axis_that_is_no_number(mdl, x, wrong):
    axes = {"params": "0" if wrong else 0}
    return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)


@misuse(errors.AxisError, r"variable_broadcast='params'")
def variable_axis_none_in_a_scan(mdl, x, wrong):
    if wrong:
        return nn.scan(Layer, variable_axes={"params": None}, length=3)()(x, None)
    return nn.scan(Layer, **SHARED, length=3)()(x, None)


@misuse(errors.AxesTreeError, r"in_axes is not a prefix")
def too_few_scanned_axes(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, in_axes=(0,) if wrong else (0, 0))()(x, row(x), row(x))


@misuse(errors.AxesTreeError, r"in_axes is not a prefix")
def too_many_mapped_axes(mdl, x, wrong):
    return nn.vmap(nn.Dense, **MAPPED, in_axes=(0, 0) if wrong else (0,))(4)(x)


@misuse(errors.AxesTreeError, r"out_axes")
def outputs_of_another_structure(mdl, x, wrong):
    axes = {"a": 0} if wrong else {"y": 0}
    return nn.scan(Out, **STACKED, out_axes=axes, length=3)(lambda y: (y, {"y": y}))(x, None)


@misuse(errors.AxesTreeError, r"broadcast")
def broadcast_in_a_map(mdl, x, wrong):
    axes = nn.broadcast if wrong else None
    return nn.vmap(nn.Dense, **MAPPED, in_axes=axes, axis_size=3)(4)(x)


# -- collections and streams -------------------------------------------------------------------


@misuse(errors.UnnamedCollectionError, r"collection 'state' would be lost")
def collection_that_a_scan_does_not_name(mdl, x, wrong):
    carry = {} if wrong else {"variable_carry": "state"}
    return nn.scan(Remembers, length=3, **carry)()(x, None)


@misuse(errors.UnnamedCollectionError, r"collection 'state' would be lost")
def collection_that_a_map_does_not_name(mdl, x, wrong):
    axes = {} if wrong else {"state": 0}
    return nn.vmap(Remembers, variable_axes=axes, in_axes=None, axis_size=3)()(x)


@misuse(errors.UnnamedCollectionError, r"collection 'batch_stats' would be lost")
def statistics_in_a_scan(mdl, x, wrong):
    norm = Out(lambda y: (nn.BatchNorm(use_running_average=False)(y), None), parent=None)
    axes = {"params": 0} if wrong else {"params": 0, "batch_stats": 0}
    lifted = nn.scan(Out, variable_axes=axes, split_rngs={"params": True}, length=3)
    return lifted(norm.returns)(x, None)


@misuse(errors.UnusedFilterError, r"did you mean 'params'")
def stream_misspelt(mdl, x, wrong):
    streams = {"parms" if wrong else "params": True}
    return nn.scan(Layer, variable_axes={"params": 0}, split_rngs=streams, length=3)()(x, None)


@misuse(errors.UnusedFilterError, r"did you mean 'params'")
def collection_misspelt(mdl, x, wrong):
    axes = {"param" if wrong else "params": 0}
    return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)


@misuse(errors.UnusedFilterError, r"did you mean 'params'")
def collection_of_a_map_misspelt(mdl, x, wrong):
    axes = {"prams" if wrong else "params": None}
    return nn.vmap(nn.Dense, variable_axes=axes, split_rngs={"params": False})(4)(x)


@misuse(errors.RoleError, r"two roles")
def two_roles(mdl, x, wrong):
    more = {"variable_broadcast": "params"} if wrong else {}
    return nn.scan(Layer, **STACKED, **more, length=3)()(x, None)


@misuse(errors.RoleError, r"split_rngs")
def split_that_is_no_bool(mdl, x, wrong):
    split = {"params": 1 if wrong else True}
    return nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)()(x, None)


@misuse(errors.InvalidFilterError, r"variable_broadcast")
def filter_that_is_a_number(mdl, x, wrong):
    shared = 3 if wrong else "params"
    lifted = nn.scan(Layer, variable_broadcast=shared, split_rngs={"params": False}, length=3)
    return lifted()(x, None)


@misuse(errors.SplitSharedError, r"stream 'params' is split")
def split_stream_of_shared_parameters(mdl, x, wrong):
    lifted = nn.scan(Layer, variable_broadcast="params", split_rngs={"params": wrong}, length=3)
    return lifted()(x, None)


@misuse(errors.SplitSharedError, r"stream 'params' is split")
def split_stream_of_a_shared_map(mdl, x, wrong):
    return nn.vmap(nn.Dense, variable_axes={"params": None}, split_rngs={"params": wrong})(4)(x)


@misuse(nn.LiftWarning, r"^LX202: .* start out identical")
def stacked_parameters_of_one_key(mdl, x, wrong):
    split = {"params": not wrong}
    return nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)()(x, None)


@misuse(nn.LiftWarning, r"^LX202: .* start out identical")
def mapped_parameters_of_one_key(mdl, x, wrong):
    split = {"params": not wrong}
    return nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs=split)(4)(x)


@misuse(errors.InvalidRngError, r"needs a key of stream 'params'")
def stream_left_outside(mdl, x, wrong):
    split = {} if wrong else {"params": True}
    return nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)()(x, None)


@misuse(errors.LoopDependentError, r"state/first")
def shared_variable_of_the_loop(mdl, x, wrong):
    def body(mdl, carry, x):
        first = mdl.variable("state", "first", lambda: x)
        return carry + first.value, None

    role = {"variable_broadcast" if wrong else "variable_carry": "state"}
    return nn.scan(body, **role)(mdl, x, row(x))


@misuse(errors.LoopDependentError, r"ys|output")
def shared_output_of_the_loop(mdl, x, wrong):
    axes = nn.broadcast if wrong else 0
    return nn.scan(Out, **STACKED, out_axes=axes, length=3)(lambda y: (y, y))(x, None)


@misuse(errors.LoopDependentError, r"differs from example to example")
def shared_output_of_a_map(mdl, x, wrong):
    return nn.vmap(nn.Dense, **MAPPED, out_axes=None if wrong else 0)(4)(x)


@misuse(errors.PartitioningUnspecifiedError, r"partition_name")
def axis_without_a_name(mdl, x, wrong):
    init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
    name = {} if wrong else {nn.PARTITION_NAME: "layers"}
    body = Out(lambda y: (nn.Dense(4, kernel_init=init)(y), None), parent=None)
    return nn.scan(Out, **STACKED, length=3, metadata_params=name)(body.returns)(x, None)
