"""Loops and maps over axes: carry, what the body returns, lengths, axes, trees of axes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import liftax as nn
from liftax import errors

from .misuse import ENDS, assert_passes, assert_refused, cases_of, misuse

STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, *_):
        return nn.relu(nn.Dense(4)(x)), None


class Cell(nn.Module):
    @nn.compact
    def __call__(self, carry, *xs):
        return carry + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(xs)), None


def scanned(mdl, body, x, *xs, length=None, **options):
    """Scans a function of the module, and says where: ``module ..., scan of body``."""
    return nn.scan(body, length=length, **options)(mdl, x, *xs)


# --- the carry -----------------------------------------------------------------------


@misuse(
    errors.CarryError,
    "scan of Layer",
    "found: float32[2,8]",
    "expected: float32[2,4]",
    "residual width is 4 and the body makes 8",
    "set its features to 4",
    at="stack",
)
def carry_gets_wider(mdl, x, wrong):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(8 if wrong else 4)(x), None

    return nn.scan(Layer, **STACKED, length=3)(name="stack")(x, None)[0]


@misuse(errors.CarryError, "scan of body", "found: float32[1,4]", "expected: float32[2,4]")
def carry_loses_rows(mdl, x, wrong):
    def body(mdl, x, _):
        return x[:1] if wrong else x, None

    return scanned(mdl, body, x, None, length=3)[0]


@misuse(errors.CarryError, "carry['h'][1]", "found: int32[2]", "expected: float32[2]")
def carry_changes_dtype_of_a_leaf(mdl, x, wrong):
    def body(mdl, carry, _):
        a, b = carry["h"]
        return {"h": (a, b.astype(int) if wrong else b)}, None

    return scanned(mdl, body, {"h": (x, x[:, 0])}, None, length=3)[0]["h"][0]


@misuse(errors.CarryError, "found: bfloat16[2,4]", "expected: float32[2,4]", "cast it")
def carry_gets_less_precise(mdl, x, wrong):
    def body(mdl, x, _):
        return x.astype(jnp.bfloat16) if wrong else x, None

    return scanned(mdl, body, x, None, length=3)[0]


@misuse(
    errors.CarryError,
    "scan of body",
    "carry['h'] changes its structure",
    "found: dict with keys 'x', 'n'",
    "expected: tuple of 2 values",
    "same containers",
)
def carry_changes_structure(mdl, x, wrong):
    def body(mdl, carry, _):
        x, n = carry["h"]
        return {"h": {"x": x, "n": n} if wrong else (x, n + 1)}, None

    return scanned(mdl, body, {"h": (x, 0)}, None, length=3)[0]["h"][0]


@misuse(errors.CarryError, "carry changes its structure", "found: None", "float32[2,4]")
def carry_becomes_none(mdl, x, wrong):
    def body(mdl, x, _):
        return None if wrong else x, x

    return scanned(mdl, body, x, None, length=3)[1][0]


@misuse(errors.CarryError, "variable state/h", "found: float32[2]", "expected: float32[2,4]")
def carried_variable_changes_shape(mdl, x, wrong):
    def body(mdl, x, _):
        h = mdl.variable("state", "h", jnp.zeros, (2, 4))
        h.value = x.sum(1) if wrong else h.value + x
        return x, None

    return scanned(mdl, body, x, None, length=3, variable_carry="state")[0]


@misuse(
    errors.CarryError,
    "variable state/h",
    "found: float32[2]",
    "expected: float32[2,4]",
    apply={"mutable": ["state"]},
)
def carried_variable_changes_shape_in_apply(mdl, x, wrong):
    def body(mdl, x, _):
        h = mdl.variable("state", "h", jnp.zeros, (2, 4))
        h.value = x.sum(1) if wrong else h.value + x
        return x, None

    return scanned(mdl, body, x, None, length=3, variable_carry="state")[0]


@misuse(
    errors.CarryError,
    "variable state/h changes its structure",
    apply={"mutable": ["state"]},
)
def carried_variable_changes_structure(mdl, x, wrong):
    def body(mdl, x, _):
        h = mdl.variable("state", "h", jnp.zeros, (2, 4))
        h.value = (h.value, x) if wrong else h.value + x
        return x, None

    return scanned(mdl, body, x, None, length=3, variable_carry="state")[0]


# --- what the body returns ---------------------------------------------------------------


def returning(bad, good):
    def body_of(mdl, x, wrong):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return (bad if wrong else good)(nn.Dense(4)(x))

        return nn.scan(Body, **STACKED, length=3)(name="stack")(x, None)[0]

    return body_of


def pair(name, bad, *says):
    body = returning(bad, lambda x: (x, None))
    body.__name__ = name
    file = misuse(errors.BodyReturnError, "scan of Body", "a pair (carry, ys)", *says, at="stack")
    return file(body)


body_returns_an_array = pair("body_returns_an_array", lambda x: x[0], "found: float32[4]")
body_returns_an_array_of_two = pair(
    "body_returns_an_array_of_two", lambda x: x, "found: float32[2,4]"
)
body_returns_three_values = pair(
    "body_returns_three_values", lambda x: (x, None, None), "found: tuple of 3 values"
)
body_returns_one_value = pair("body_returns_one_value", lambda x: (x,), "found: tuple of 1 value")
body_returns_none = pair("body_returns_none", lambda x: None, "found: None")
body_returns_a_dict = pair(
    "body_returns_a_dict", lambda x: {"x": x, "y": x}, "found: dict with keys 'x', 'y'"
)


# --- lengths ---------------------------------------------------------------------------------


@misuse(errors.LengthError, "scan of Layer", "length is unknown", "pass length=", at="stack")
def length_missing(mdl, x, wrong):
    length = None if wrong else 3
    return nn.scan(Layer, **STACKED, length=length)(name="stack")(x, None)[0]


@misuse(
    errors.LengthError,
    "scan of Cell",
    "found: 5 from argument xs[0]['a'] (float32[5,4], axis 0)",
    "found: 3 from argument xs[0]['b'] (float32[3,4], axis 0)",
    at="stack",
)
def lengths_of_two_leaves(mdl, x, wrong):
    xs = {"a": jnp.zeros((5, 4)), "b": jnp.zeros((3 if wrong else 5, 4))}
    return nn.scan(Cell)(name="stack")(x, xs)[0]


@misuse(
    errors.LengthError,
    "found: 3 from length=3",
    "found: 5 from argument xs[1] (float32[5,4], axis 0)",
    at="stack",
)
def length_against_an_argument(mdl, x, wrong):
    length = 3 if wrong else 5
    return nn.scan(Cell, length=length)(name="stack")(x, None, jnp.zeros((5, 4)))[0]


@misuse(
    errors.LengthError,
    "scan of Layer",
    "found: 3 from length=3",
    "found: 2 from variable params/Dense_0/bias (float32[2,4], axis 0)",
    at="stack",
    apply=True,
)
def length_against_a_checkpoint(mdl, x, wrong):
    length = 3 if wrong else 2
    return nn.scan(Layer, **STACKED, length=length)(name="stack")(x, None)[0]


@misuse(
    errors.LengthError,
    "found: 5 from argument _[0]",
    "found: 2 from variable params/Dense_0/bias",
    at="stack",
    apply=True,
)
def arguments_against_a_checkpoint(mdl, x, wrong):
    xs = jnp.zeros((5 if wrong else 2, 4))
    return nn.scan(Layer, **STACKED)(name="stack")(x, xs)[0]


def of_length(name, length, *says):
    def body(mdl, x, wrong):
        given = length if wrong else 3
        return nn.scan(Layer, **STACKED, length=given)(name="stack")(x, None)[0]

    body.__name__ = name
    return misuse(errors.LengthError, "scan of Layer", *says, at="stack")(body)


length_negative = of_length("length_negative", -1, "length=-1 is negative")
length_is_a_bool = of_length("length_is_a_bool", True, "length expected an int, found bool")
length_is_a_float = of_length("length_is_a_float", 3.0, "length expected an int, found float")
length_is_a_tuple = of_length("length_is_a_tuple", (3,), "length expected an int, found tuple")


class Remembers(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        last = self.variable("cache", "last", lambda: x)
        last.value = x
        return x, None


@misuse(errors.LengthError, "no iteration makes", "variable cache/last", "init over", at="stack")
def nothing_to_make_a_carried_variable_of(mdl, x, wrong):
    lifted = nn.scan(Remembers, variable_carry="cache")
    return lifted(name="stack")(x, jnp.zeros((0 if wrong else 1, 4)))[0]


@misuse(errors.LengthError, "vmap of Layer", "axis_size is unknown", "pass axis_size=", at="each")
def axis_size_missing(mdl, x, wrong):
    size = None if wrong else 3
    return nn.vmap(Layer, **STACKED, in_axes=None, axis_size=size)(name="each")(x)[0][0]


@misuse(
    errors.LengthError,
    "vmap of Layer",
    "found: 2 from argument 'x' (float32[2,4], axis 0)",
    "found: 3 from argument _[0] (float32[3,4], axis 0)",
    "axis_size",
    at="each",
)
def sizes_of_two_arguments(mdl, x, wrong):
    other = jnp.zeros((3 if wrong else 2, 4))
    return nn.vmap(Layer, **STACKED)(name="each")(x, other)[0]


@misuse(errors.LengthError, "found: 3 from axis_size=3", "found: 2 from argument 'x'", at="each")
def axis_size_against_an_argument(mdl, x, wrong):
    return nn.vmap(Layer, **STACKED, axis_size=3 if wrong else 2)(name="each")(x)[0]


@misuse(
    errors.LengthError,
    "vmap of Layer",
    "found: 3 from variable params/Dense_0/bias",
    at="each",
    apply=True,
)
def members_of_an_ensemble(mdl, x, wrong):
    size = 2 if wrong else 3
    return nn.vmap(Layer, **STACKED, in_axes=None, axis_size=size)(name="each")(x)[0][0]


@misuse(errors.LengthError, "vmap of Layer", "axis_size=-1 is negative", at="each")
def axis_size_negative(mdl, x, wrong):
    size = -1 if wrong else 3
    return nn.vmap(Layer, **STACKED, in_axes=None, axis_size=size)(name="each")(x)[0][0]


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(4)(x)


@misuse(errors.LengthError, "remat_scan", "lengths is empty", at=None)
def lengths_empty(mdl, x, wrong):
    return nn.remat_scan(Block, lengths=() if wrong else (2, 2))(name="deep")(x)


@misuse(errors.LengthError, "remat_scan", "lengths", "found int", at=None)
def lengths_is_an_int(mdl, x, wrong):
    return nn.remat_scan(Block, lengths=4 if wrong else (4,))(name="deep")(x)


@misuse(errors.LengthError, "remat_scan", "lengths", "-2", "negative", at=None)
def lengths_with_a_negative(mdl, x, wrong):
    return nn.remat_scan(Block, lengths=(-2, 2) if wrong else (2, 2))(name="deep")(x)


@misuse(errors.LengthError, "remat_scan", "lengths", "found str", at=None)
def lengths_with_a_word(mdl, x, wrong):
    return nn.remat_scan(Block, lengths=("2", 2) if wrong else (2, 2))(name="deep")(x)


@misuse(
    errors.LengthError,
    "found: 2 from variable params/Dense_0/bias (float32[2,2,4], axis 0)",
    at="deep",
    apply=True,
)
def lengths_against_a_checkpoint(mdl, x, wrong):
    return nn.remat_scan(Block, lengths=(3, 2) if wrong else (2, 2))(name="deep")(x)


@misuse(errors.CarryError, "residual width is 4 and the body makes 8", at="deep")
def layer_of_remat_scan_gets_wider(mdl, x, wrong):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(8 if wrong else 4)(x)

    return nn.remat_scan(Block, lengths=(2, 2))(name="deep")(x)


@misuse(errors.CarryError, "carry changes its structure", "tuple of 2 values", at="deep")
def layer_of_remat_scan_returns_a_pair(mdl, x, wrong):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x):
            return (nn.Dense(4)(x), None) if wrong else nn.Dense(4)(x)

    return nn.remat_scan(Block, lengths=(2, 2))(name="deep")(x)


# --- axes --------------------------------------------------------------------------------------


@misuse(
    errors.AxisError,
    "scan of Cell",
    "axis 2 is out of range for argument xs[0]",
    "float32[5,4]",
    "found: in_axes=2",
    "from -2 to 1",
    at="stack",
)
def in_axis_out_of_range(mdl, x, wrong):
    return nn.scan(Cell, in_axes=2 if wrong else 1)(name="stack")(x, jnp.zeros((5, 4)))[0]


@misuse(errors.AxisError, "out of range for argument xs[0]['a']", "in_axes[0]", at="stack")
def negative_in_axis_out_of_range(mdl, x, wrong):
    axes = ({"a": -3 if wrong else -2, "b": 0},)
    xs = {"a": jnp.zeros((5, 4)), "b": jnp.zeros(5)}
    return nn.scan(Cell, in_axes=axes)(name="stack")(x, xs)[0]


@misuse(errors.AxisError, "scan of Cell", "argument xs[1] is a scalar", "nn.broadcast", at="stack")
def scalar_scanned_over(mdl, x, wrong):
    axes = 0 if wrong else (0, nn.broadcast)
    return nn.scan(Cell, in_axes=axes)(name="stack")(x, jnp.zeros((5, 4)), 3.0)[0]


@misuse(errors.AxisError, "vmap of Layer", "axis 3 is out of range for argument 'x'", at="each")
def mapped_axis_out_of_range(mdl, x, wrong):
    return nn.vmap(Layer, **SHARED, in_axes=3 if wrong else 0)(name="each")(x)[0]


@misuse(errors.AxisError, "vmap of Layer", "argument _[0] is a scalar", "None", at="each")
def scalar_mapped_over(mdl, x, wrong):
    axes = 0 if wrong else (0, None)
    return nn.vmap(Layer, **SHARED, in_axes=axes)(name="each")(x, 3.0)[0]


# Classes that stand for a dtype have the attributes of an array.
@misuse(errors.AxisError, "scan of body", "argument 'dtype' is a scalar (type)", "nn.broadcast")
def dtype_scanned_over(mdl, x, wrong):
    def body(mdl, x, row, dtype):
        return x + row.astype(dtype), None

    axes = 0 if wrong else (0, nn.broadcast)
    return scanned(mdl, body, x, jnp.zeros((5, 4)), np.float32, in_axes=axes)[0]


@misuse(errors.AxisError, "vmap of Layer", "argument _[0] is a scalar (type)", "None", at="each")
def dtype_mapped_over(mdl, x, wrong):
    axes = 0 if wrong else (0, None)
    return nn.vmap(Layer, **SHARED, in_axes=axes)(name="each")(x, np.float32)[0]


@misuse(errors.AxisError, "scan of body", "out_axes", "axis 3 is out of range", "float32[2,4]")
def out_axis_out_of_range(mdl, x, wrong):
    def body(mdl, x, _):
        return x, x

    axis = 3 if wrong else 2
    return scanned(mdl, body, x, None, length=3, out_axes=axis)[1][..., 0]


@misuse(errors.AxisError, "vmap of body", "out_axes", "axis 2 is out of range", "float32[4]")
def mapped_out_axis_out_of_range(mdl, x, wrong):
    def body(mdl, x):
        return x

    y = nn.vmap(body, out_axes=2 if wrong else 1)(mdl, x)
    return y.T


@misuse(
    errors.AxisError,
    "scan of Layer",
    "axis 2 is out of range",
    "variable params/Dense_0/bias",
    "float32[4]",
    "variable_axes",
    at="stack",
)
def variable_axis_out_of_range(mdl, x, wrong):
    axes = {"params": 2 if wrong else 1}
    stack = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.AxisError,
    "vmap of Layer",
    "axis -3 is out of range",
    "variable params/Dense_0/bias",
    "variable_axes",
    at="each",
)
def mapped_variable_axis_out_of_range(mdl, x, wrong):
    axes = {"params": -3 if wrong else -1}
    return nn.vmap(Layer, variable_axes=axes, split_rngs={"params": True})(name="each")(x)[0]


@misuse(
    errors.AxisError,
    "scan of Counter",
    "axis 1 is out of range",
    "variable state/steps",
    at="stack",
    apply={"mutable": ["state"]},
)
def axis_of_a_scalar_variable(mdl, x, wrong):
    class Counter(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            steps = self.variable("state", "steps", lambda: jnp.zeros(()))
            steps.value += 1
            return x, None

    axes = {"state": 1 if wrong else 0}
    return nn.scan(Counter, variable_axes=axes, length=3)(name="stack")(x, None)[0]


@misuse(errors.AxesTreeError, "scan of Cell", "in_axes has None", "nn.broadcast", at="stack")
def none_in_a_scan(mdl, x, wrong):
    axes = (0, None if wrong else nn.broadcast)
    return nn.scan(Cell, in_axes=axes)(name="stack")(x, jnp.zeros((5, 4)), x)[0]


@misuse(errors.AxesTreeError, "vmap of Layer", "in_axes has broadcast", "None", at="each")
def broadcast_in_a_vmap(mdl, x, wrong):
    axes = (0, nn.broadcast if wrong else None)
    return nn.vmap(Layer, **SHARED, in_axes=axes)(name="each")(x, x)[0]


@misuse(errors.AxesTreeError, "vmap: out_axes expected ints", "None", "found broadcast", at=None)
def broadcast_out_of_a_vmap(mdl, x, wrong):
    def body(mdl, x):
        return x, 1.0

    return nn.vmap(body, out_axes=(0, nn.broadcast if wrong else None))(mdl, x)[0]


@misuse(errors.AxesTreeError, "scan of body", "out_axes has None", "nn.broadcast")
def none_out_of_a_scan(mdl, x, wrong):
    def body(mdl, carry, _):
        return carry, jnp.ones(3)

    axes = None if wrong else nn.broadcast
    return scanned(mdl, body, x, None, length=3, out_axes=axes)[0]


@misuse(
    errors.AxesTreeError,
    "scan of Cell",
    "in_axes is not a prefix",
    "found: in_axes=(0,) for 2 arguments after the carry: xs[0], xs[1]",
    "in_axes=(0, 0)",
    at="stack",
)
def in_axes_too_short(mdl, x, wrong):
    axes = (0,) if wrong else (0, 0)
    return nn.scan(Cell, in_axes=axes)(name="stack")(x, jnp.zeros((5, 4)), jnp.zeros(5))[0]


@misuse(
    errors.AxesTreeError,
    "scan of Cell",
    "found: in_axes[0]={'a': 0, 'b': 0}",
    "argument xs[0]",
    at="stack",
)
def in_axes_of_another_key(mdl, x, wrong):
    axes = ({"a": 0, "b" if wrong else "c": 0},)
    xs = {"a": jnp.zeros(5), "c": jnp.zeros(5)}
    return nn.scan(Cell, in_axes=axes)(name="stack")(x, xs)[0]


@misuse(errors.AxesTreeError, "scan of Cell", "in_axes", "True", at="stack")
def in_axes_is_a_bool(mdl, x, wrong):
    return nn.scan(Cell, in_axes=True if wrong else 1)(name="stack")(x, jnp.zeros((5, 4)))[0]


@misuse(errors.AxesTreeError, "scan of Cell", "found: in_axes='time' for", "an int", at="stack")
def in_axes_is_a_word(mdl, x, wrong):
    axes = "time" if wrong else 0
    return nn.scan(Cell, in_axes=axes)(name="stack")(x, jnp.zeros((5, 4)))[0]


@misuse(
    errors.AxesTreeError,
    "scan of body",
    "out_axes is not a prefix",
    "out_axes=(0, 0, 0) for output, (float32[2,4], float32[2,4])",
)
def out_axes_too_long(mdl, x, wrong):
    def body(mdl, x, _):
        return x, (x, x)

    axes = (0, 0, 0) if wrong else (0, 0)
    return scanned(mdl, body, x, None, length=3, out_axes=axes)[0]


@misuse(errors.AxesTreeError, "vmap of Layer", "in_axes is not a prefix", at="each")
def mapped_in_axes_too_long(mdl, x, wrong):
    axes = (0, 0) if wrong else (0,)
    return nn.vmap(Layer, **SHARED, in_axes=axes)(name="each")(x)[0]


@misuse(
    errors.AxesTreeError,
    "vmap of body",
    "out_axes is not a prefix",
    "out_axes=(0, 0, 0) for output, (float32[4], float32[4])",
)
def mapped_out_axes_too_long(mdl, x, wrong):
    def body(mdl, x):
        return x, x

    return nn.vmap(body, out_axes=(0, 0, 0) if wrong else (0, 0))(mdl, x)[0]


# --- what is shared and differs --------------------------------------------------------------


@misuse(
    errors.LoopDependentError,
    "scan of body",
    "variable stats/first",
    "depends on the loop",
    "variable_carry",
)
def broadcast_variable_of_a_scanned_value(mdl, x, wrong):
    def body(mdl, carry, x):
        first = mdl.variable("stats", "first", lambda: x)
        return carry + x - first.value, None

    roles = {"variable_broadcast" if wrong else "variable_carry": "stats"}
    return scanned(mdl, body, x, jnp.zeros((3, 4)), **roles)[0]


@misuse(errors.LoopDependentError, "scan of body", "output ys['b']", "depends on the loop")
def broadcast_output_of_the_carry(mdl, x, wrong):
    def body(mdl, x, _):
        return x + 1, {"a": x, "b": x if wrong else jnp.ones(3)}

    axes = {"a": 0, "b": nn.broadcast}
    return scanned(mdl, body, x, None, length=3, out_axes=axes)[0]


@misuse(errors.LoopDependentError, "vmap of body", "out_axes", "differs", cause=ValueError)
def shared_output_of_a_vmap_differs(mdl, x, wrong):
    def body(mdl, x):
        return x, x.sum() if wrong else 1.0

    return nn.vmap(body, out_axes=(0, None))(mdl, x)[0]


@misuse(
    errors.LoopDependentError,
    "vmap of body",
    "stats/mean",
    "variable_axes",
    cause=ValueError,
)
def shared_variable_of_a_vmap_differs(mdl, x, wrong):
    def body(mdl, x):
        mean = mdl.variable("stats", "mean", jnp.zeros, ())
        mean.value = x.mean()
        return x

    axes = {"stats": None if wrong else 0}
    return nn.vmap(body, variable_axes=axes)(mdl, x)


@misuse(
    errors.AxisNameError,
    "vmap of body",
    "axis name 'batches'",
    "found: axis_name='batch'",
    cause=NameError,
)
def name_of_the_axis_mistyped(mdl, x, wrong):
    def body(mdl, x):
        return x - jax.lax.pmean(x, "batches" if wrong else "batch")

    return nn.vmap(body, axis_name="batch")(mdl, x)


@misuse(
    errors.AxisNameError,
    "vmap of Normed",
    "axis name 'batch'",
    "found: axis_name=None",
    at="each",
    apply={"mutable": ["batch_stats"]},
    cause=NameError,
)
def axis_without_a_name(mdl, x, wrong):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=False, axis_name="batch")(x[None])[0]

    axes = {"params": None, "batch_stats": None}
    name = None if wrong else "batch"
    each = nn.vmap(Normed, variable_axes=axes, split_rngs={"params": False}, axis_name=name)
    return each(name="each")(x)


@misuse(
    errors.PartitioningUnspecifiedError,
    "scan of Layer: variable params/Dense_0/kernel: ",
    "metadata_params={'partition_name'",
    at="stack",
)
def boxed_axis_without_a_name(mdl, x, wrong):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            init = nn.with_partitioning(nn.initializers.ones, ("in", "out"))
            return nn.Dense(4, kernel_init=init)(x), None

    names = {} if wrong else {nn.PARTITION_NAME: "layers"}
    return nn.scan(Layer, **STACKED, length=3, metadata_params=names)(name="stack")(x, None)[0]


@misuse(
    errors.LoopDependentError,
    "vmap of Normed: variable batch_stats/BatchNorm_0/mean is shared along the axis",
    "BatchNorm(axis_name=...)",
    at="each",
    apply={"mutable": ["batch_stats"]},
    cause=ValueError,
)
def statistics_that_are_not_averaged(mdl, x, wrong):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x):
            name = None if wrong else "batch"
            return nn.BatchNorm(use_running_average=False, axis_name=name)(x[None])[0]

    axes = {"params": None, "batch_stats": None}
    each = nn.vmap(Normed, axes, {"params": False}, axis_name="batch")
    return each(name="each")(x)


@misuse(
    errors.LoopDependentError,
    "vmap of body: output['last'] has no axis in out_axes",
    cause=ValueError,
)
def output_without_an_axis_under_a_name(mdl, x, wrong):
    def body(mdl, x):
        last = x if wrong else jax.lax.pmean(x, "batch")
        return {"all": x, "last": last}

    return nn.vmap(body, out_axes={"all": 0, "last": None}, axis_name="batch")(mdl, x)["all"]


# --- options that mean nothing --------------------------------------------------------


def optioned(name, wrong_value, right_value, found):
    """A scan with one option that it can do nothing with."""

    @misuse(errors.LiftOptionError, f"scan: {name}", f"found: {found}", "expected:", at=None)
    def case(mdl, x, wrong):
        options = {name: wrong_value if wrong else right_value}
        return nn.scan(Layer, **STACKED, length=2, **options)(name="stack")(x, None)[0]

    case.body.__name__ = f"option_{name}_{found.partition('=')[2]}".replace("'", "")
    globals()[case.name] = case


optioned("unroll", -1, 0, "unroll=-1")
optioned("unroll", "all", True, "unroll='all'")
optioned("unroll", 1.5, 1, "unroll=1.5")
optioned("reverse", "yes", True, "reverse='yes'")
optioned("data_transform", 3, None, "data_transform=3")
optioned("metadata_params", "layers", {nn.PARTITION_NAME: "layers"}, "metadata_params='layers'")


optioned("unroll", jnp.full((2, 4), 7.03125), 1, "unroll=float32[2,4]")


@misuse(errors.LiftOptionError, "remat: policy", "found: policy='dots'", at=None)
def option_policy_by_name(mdl, x, wrong):
    policy = "dots" if wrong else jax.checkpoint_policies.dots_saveable
    return nn.remat(nn.Dense, policy=policy)(4, name="dense")(x)


@misuse(errors.LiftOptionError, "remat: prevent_cse", "found: prevent_cse='no'", at=None)
def option_prevent_cse(mdl, x, wrong):
    return nn.remat(nn.Dense, prevent_cse="no" if wrong else False)(4, name="dense")(x)


@misuse(errors.LengthError, "length expected an int, found float32[2,4]", at="stack")
def length_is_an_array(mdl, x, wrong):
    return nn.scan(Layer, **STACKED, length=x if wrong else 2)(name="stack")(x, None)[0]


@misuse(errors.CarryError, "scan of Layer: called without a carry", at="stack")
def carry_forgotten(mdl, x, wrong):
    stack = nn.scan(Layer, **STACKED, length=2)(name="stack")
    return stack()[0] if wrong else stack(x, None)[0]


@misuse(errors.LiftOptionError, "vmap: metadata_params", "found: metadata_params=None", at=None)
def option_of_vmap(mdl, x, wrong):
    options = {"metadata_params": None} if wrong else {}
    return nn.vmap(nn.Dense, **SHARED, **options)(4, name="each")(x)


@cases_of(globals())
def test_refused(case, nest):
    assert_refused(case, nest)


@cases_of(globals(), ENDS)
def test_twin_passes(case, nest):
    assert_passes(case, nest)
