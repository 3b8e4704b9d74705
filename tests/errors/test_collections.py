"""Which collections and streams go into a lift, and how: LX101, LX107, LX108, LX111, LX2xx."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax import errors

from .misuse import ENDS, assert_passes, assert_refused, cases_of, misuse

STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}


class Sower(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        self.sow("intermediates", "mean", x.mean())
        return nn.Dense(4)(x), None


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.BatchNorm(use_running_average=False)(x), None


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.relu(nn.Dense(4)(x)), None


class Dropper(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        return nn.Dropout(0.5, deterministic=False)(x), None


class Counter(nn.Module):
    @nn.compact
    def __call__(self, x, _=None):
        steps = self.variable("state", "steps", lambda: jnp.zeros(()))
        steps.value += 1
        return x, None


# --- a collection that no argument names ---------------------------------------


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "scan of Sower",
    "variable_axes={'intermediates': 0}",
    at="stack",
    apply={"mutable": ["intermediates"]},
)
def sown_in_scan(mdl, x, wrong):
    axes = {"params": 0} if wrong else {"params": 0, "intermediates": 0}
    stack = nn.scan(Sower, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "vmap of Sower",
    "variable_axes={'intermediates': 0}",
    at="heads",
    apply={"mutable": ["intermediates"]},
)
def sown_in_vmap(mdl, x, wrong):
    axes = {"params": 0} if wrong else {"params": 0, "intermediates": 0}
    return nn.vmap(Sower, variable_axes=axes, split_rngs={"params": True})(name="heads")(x)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "remat of Sower",
    "variables='intermediates'",
    at="saved",
    apply={"mutable": ["intermediates"]},
)
def sown_in_remat(mdl, x, wrong):
    return nn.remat(Sower, variables="params" if wrong else True)(name="saved")(x)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "jit of Sower",
    "variables='intermediates'",
    at="fast",
    apply={"mutable": ["intermediates"]},
)
def sown_in_jit(mdl, x, wrong):
    variables = ["params"] if wrong else ["params", "intermediates"]
    return nn.jit(Sower, variables=variables)(name="fast")(x)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "cond of",
    "variables='intermediates'",
    apply={"mutable": ["intermediates"]},
)
def sown_in_cond(mdl, x, wrong):
    def yes(mdl, x):
        mdl.sow("intermediates", "mean", x.mean())
        return x

    def no(mdl, x):
        mdl.sow("intermediates", "mean", 0.0)
        return x

    return nn.cond(True, yes, no, mdl, x, variables="params" if wrong else True)


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "while_loop of",
    "carry_variables='intermediates'",
    apply={"mutable": ["intermediates"]},
)
def sown_in_while_loop(mdl, x, wrong):
    def body(mdl, i):
        if wrong:
            mdl.sow("intermediates", "i", i)
        return i + 1

    n = nn.while_loop(lambda mdl, i: i < 3, body, mdl, 0)
    if not wrong:
        mdl.sow("intermediates", "i", n)
    return x + n


@misuse(
    errors.UnnamedCollectionError,
    "collection 'intermediates'",
    "scan of Layer",
    at="stack/Dense_0",
    apply={"capture_intermediates": True},
)
def captured_in_scan(mdl, x, wrong):
    axes = {"params": 0} if wrong else {"params": 0, "intermediates": 0}
    stack = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'batch_stats'",
    "scan of Normed",
    "variable_axes={'batch_stats': 0}",
    at="stack/BatchNorm_0",
)
def batch_stats_in_scan(mdl, x, wrong):
    axes = {"params": 0} if wrong else {"params": 0, "batch_stats": 0}
    stack = nn.scan(Normed, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'batch_stats'",
    "vmap of Normed",
    "variable_axes={'batch_stats': 0}",
    at="each/BatchNorm_0",
)
def batch_stats_in_vmap(mdl, x, wrong):
    axes = {"params": 0} if wrong else {"params": 0, "batch_stats": 0}
    each = nn.vmap(
        Normed, variable_axes=axes, split_rngs={"params": True}, in_axes=None, axis_size=3
    )
    return each(name="each")(x)[0][0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'batch_stats'",
    "did you mean 'batch_stats'",
    "'batch_stat'",
    at="stack/BatchNorm_0",
)
def batch_stats_mistyped(mdl, x, wrong):
    axes = {"params": 0, "batch_stat" if wrong else "batch_stats": 0}
    stack = nn.scan(Normed, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'batch_stats'",
    "scan of Normed",
    at="stack/BatchNorm_0",
    apply={"mutable": ["batch_stats"]},
)
def batch_stats_enter_but_do_not_leave(mdl, x, wrong):
    axes = {"params": 0, "batch_stats": nn.In(0) if wrong else 0}
    stack = nn.scan(Normed, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "'batch_stats'",
    "read",
    "scan of Normed",
    "variable_axes={'batch_stats': 0}",
    at="stack/BatchNorm_0",
    apply=True,
)
def statistics_read_in_scan(mdl, x, wrong):
    class Normed(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.BatchNorm(use_running_average=True)(x), None

    axes = {"params": 0} if wrong else {"params": 0, "batch_stats": 0}
    stack = nn.scan(Normed, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "'cache'",
    "read",
    "vmap of Reader",
    "variable_axes={'cache': 0}",
    at="each",
    apply=True,
)
def variable_read_in_vmap(mdl, x, wrong):
    class Reader(nn.Module):
        @nn.compact
        def __call__(self, x):
            if self.is_initializing():
                self.variable("cache", "shift", jnp.ones, ())
            return x + self.get_variable("cache", "shift", 0.0)

    axes = {"params": 0} if wrong else {"params": 0, "cache": 0}
    return nn.vmap(Reader, variable_axes=axes)(name="each")(x)


@misuse(
    errors.UnnamedCollectionError,
    "'perturbations'",
    "scan of Perturbed",
    at="stack",
    apply=True,
)
def perturbations_in_scan(mdl, x, wrong):
    class Perturbed(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return self.perturb("h", x), None

    axes = {} if wrong else {"perturbations": 0}
    return nn.scan(Perturbed, variable_axes=axes, length=3)(name="stack")(x, None)[0]


@misuse(
    errors.UnnamedCollectionError,
    "'params'",
    "read",
    "remat of Layer",
    "variables='params'",
    at="saved/Dense_0",
    apply=True,
)
def parameters_left_out_of_remat(mdl, x, wrong):
    return nn.remat(Layer, variables="batch_stats" if wrong else True)(name="saved")(x)[0]


@misuse(
    errors.UnnamedCollectionError,
    "'params'",
    "did you mean 'params'",
    "jit of Layer",
    at="fast/Dense_0",
)
def parameters_mistyped_in_jit(mdl, x, wrong):
    return nn.jit(Layer, variables="parms" if wrong else "params")(name="fast")(x)[0]


@misuse(
    errors.UnnamedCollectionError,
    "collection 'state'",
    "scan of Counter",
    "variable_carry='state'",
    at="stack",
)
def state_in_scan(mdl, x, wrong):
    carry = False if wrong else "state"
    return nn.scan(Counter, variable_carry=carry, length=3)(name="stack")(x, None)[0]


# --- names that match nothing ---------------------------------------------------


@misuse(
    errors.UnusedFilterError,
    "split_rngs of scan names 'parms'",
    "did you mean 'params'?",
    at="stack",
)
def stream_mistyped(mdl, x, wrong):
    split = {"parms" if wrong else "params": True}
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnusedFilterError,
    "split_rngs of scan names 'drop_out'",
    "did you mean 'dropout'?",
    at="stack",
    keys=("params", "dropout"),
)
def dropout_mistyped(mdl, x, wrong):
    split = {"drop_out" if wrong else "dropout": True}
    return nn.scan(Dropper, split_rngs=split, length=3)(name="stack")(x, None)[0]


@misuse(
    errors.UnusedFilterError,
    "variable_axes of scan names 'param'",
    "did you mean 'params'?",
    at="stack",
)
def collection_mistyped_in_axes(mdl, x, wrong):
    axes = {"param" if wrong else "params": 0}
    stack = nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnusedFilterError,
    "variable_broadcast of scan names 'parmas'",
    "did you mean 'params'?",
    at="stack",
)
def collection_mistyped_in_broadcast(mdl, x, wrong):
    shared = "parmas" if wrong else "params"
    stack = nn.scan(Layer, variable_broadcast=shared, split_rngs={"params": False}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.UnusedFilterError,
    "variable_carry of scan names 'states'",
    "did you mean 'state'?",
    at="stack",
    apply={"mutable": ["state"]},
)
def collection_mistyped_in_carry(mdl, x, wrong):
    carry = "states" if wrong else "state"
    return nn.scan(Counter, variable_carry=carry, length=3)(name="stack")(x, None)[0]


@misuse(
    errors.UnusedFilterError,
    "variable_axes of vmap names 'Params'",
    "did you mean 'params'?",
    at="each",
)
def collection_mistyped_in_vmap(mdl, x, wrong):
    axes = {"Params" if wrong else "params": 0}
    return nn.vmap(Layer, variable_axes=axes, split_rngs={"params": True})(name="each")(x)[0]


# --- roles that contradict each other ----------------------------------------------


@misuse(
    errors.RoleError,
    "scan: collection 'params' has two roles",
    "variable_broadcast",
    "variable_axes",
    at=None,
)
def shared_and_stacked(mdl, x, wrong):
    shared = "params" if wrong else False
    return nn.scan(Layer, **STACKED, variable_broadcast=shared, length=3)()(x, None)[0]


@misuse(
    errors.RoleError,
    "scan: collection 'state' has two roles",
    "variable_carry",
    "variable_axes",
    at=None,
)
def carried_and_stacked(mdl, x, wrong):
    axes = {"state": 0} if wrong else {}
    return nn.scan(Counter, variable_axes=axes, variable_carry="state", length=3)()(x, None)[0]


@misuse(errors.RoleError, "collection 'params' has two roles", "variable_axes (0)", "(1)", at=None)
def stacked_along_two_axes(mdl, x, wrong):
    axes = {("params", "state"): 0, "params": 1} if wrong else {("params", "state"): 0}
    return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)[0]


@misuse(
    errors.RoleError,
    "scan: collection 'params' has two roles",
    "variable_broadcast (broadcast) takes it by True",
    "DenyList('params')",
    at=None,
)
def stacked_after_all_are_shared(mdl, x, wrong):
    shared = True if wrong else nn.DenyList("params")
    return nn.scan(Layer, **STACKED, variable_broadcast=shared, length=3)()(x, None)[0]


@misuse(
    errors.RoleError,
    "vmap: collection 'params' has two roles",
    "variable_axes (0) takes it by True",
    at=None,
)
def shared_after_all_are_stacked(mdl, x, wrong):
    axes = {True: 0, "params": None} if wrong else {"params": None, True: 0}
    return nn.vmap(Layer, variable_axes=axes, split_rngs={"params": False})()(x)[0]


@misuse(
    errors.RoleError,
    "split_rngs names stream 'dropout' (False) after a filter that takes it",
    "put 'dropout' first",
    at=None,
)
def stream_named_after_all(mdl, x, wrong):
    split = {True: True, "dropout": False} if wrong else {"dropout": False, True: True}
    return nn.vmap(Layer, variable_axes={"params": 0}, split_rngs=split)()(x)[0]


@misuse(errors.RoleError, "vmap: split_rngs names stream 'params' twice", "keep one", at=None)
def split_and_not_split(mdl, x, wrong):
    split = {("params", "dropout"): True, "params": False} if wrong else {"params": True}
    return nn.vmap(Layer, variable_axes={"params": 0}, split_rngs=split)()(x)[0]


@misuse(
    errors.RoleError,
    "scan: variable_axes expected a mapping",
    "{'params': 0}",
    "found str",
    at=None,
)
def axes_without_a_mapping(mdl, x, wrong):
    axes = "params" if wrong else {"params": 0}
    return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)[0]


@misuse(
    errors.RoleError,
    "scan: split_rngs expected a mapping",
    "{'params': True}",
    "found str",
    at=None,
)
def split_without_a_mapping(mdl, x, wrong):
    split = "params" if wrong else {"params": True}
    return nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)()(x, None)[0]


@misuse(errors.RoleError, "scan: split_rngs['params'] expected True or False", "found str", at=None)
def split_by_a_word(mdl, x, wrong):
    split = {"params": "yes" if wrong else True}
    return nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)()(x, None)[0]


@misuse(
    errors.InvalidFilterError, "variable_broadcast", "expected a bool, a name", "found int", at=None
)
def filter_of_a_number(mdl, x, wrong):
    shared = 0 if wrong else "params"
    stack = nn.scan(Layer, variable_broadcast=shared, split_rngs={"params": False}, length=3)
    return stack()(x, None)[0]


@misuse(errors.InvalidFilterError, "expected a bool, a name", "found NoneType", at=None)
def filter_of_none(mdl, x, wrong):
    return nn.remat(Layer, variables=None if wrong else True)()(x)[0]


@misuse(
    errors.AxisError,
    "scan: variable_axes['params'] expected an int",
    "variable_broadcast='params'",
    at=None,
)
def none_for_shared_in_scan(mdl, x, wrong):
    roles = {"variable_axes": {"params": None}} if wrong else {"variable_broadcast": "params"}
    return nn.scan(Layer, **roles, split_rngs={"params": False}, length=3)()(x, None)[0]


@misuse(errors.AxisError, "vmap: variable_axes['params'] expected an int", "found 'batch'", at=None)
def axis_by_name(mdl, x, wrong):
    axes = {"params": "batch" if wrong else 0}
    return nn.vmap(Layer, variable_axes=axes, split_rngs={"params": True})()(x)[0]


@misuse(errors.AxisError, "scan: variable_axes['params'] expected an int", "found True", at=None)
def axis_by_bool(mdl, x, wrong):
    axes = {"params": True if wrong else 0}
    return nn.scan(Layer, variable_axes=axes, split_rngs={"params": True}, length=3)()(x, None)[0]


# --- streams -----------------------------------------------------------------------


@misuse(
    errors.SplitSharedError,
    "scan of Layer",
    "params/Dense_0/kernel",
    "stream 'params' is split",
    "split_rngs={'params': False}",
    at="stack",
)
def split_while_shared_in_scan(mdl, x, wrong):
    stack = nn.scan(Layer, variable_broadcast="params", split_rngs={"params": wrong}, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.SplitSharedError,
    "vmap of Layer",
    "stream 'params' is split",
    "split_rngs={'params': False}",
    at="each",
    cause=ValueError,
)
def split_while_shared_in_vmap(mdl, x, wrong):
    each = nn.vmap(Layer, variable_axes={"params": None}, split_rngs={"params": wrong})
    return each(name="each")(x)[0]


@misuse(nn.LiftWarning, "LX202", "scan of Layer", "split_rngs={'params': True}", at="stack")
def identical_layers_in_scan(mdl, x, wrong):
    split = {"params": not wrong}
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(nn.LiftWarning, "LX202", "vmap of Layer", "split_rngs={'params': True}", at="each")
def identical_layers_in_vmap(mdl, x, wrong):
    split = {"params": not wrong}
    return nn.vmap(Layer, variable_axes={"params": 0}, split_rngs=split)(name="each")(x)[0]


@misuse(
    errors.InvalidRngError,
    "stream 'params'",
    "scan of Layer",
    "split_rngs",
    at="stack/Dense_0",
)
def stream_not_named_in_scan(mdl, x, wrong):
    split = {} if wrong else {"params": True}
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs=split, length=3)
    return stack(name="stack")(x, None)[0]


@misuse(
    errors.InvalidRngError,
    "stream 'dropout'",
    "scan of Dropper",
    "split_rngs={'dropout': True}",
    at="stack/Dropout_0",
    keys=("params", "dropout"),
    apply={"rngs": {"dropout": jax.random.key(2)}},
)
def dropout_left_outside_of_scan(mdl, x, wrong):
    split = {} if wrong else {"dropout": True}
    return nn.scan(Dropper, split_rngs=split, length=3)(name="stack")(x, None)[0]


@misuse(
    errors.InvalidRngError,
    "stream 'dropout'",
    "remat of Dropper",
    "rngs",
    at="saved/Dropout_0",
    keys=("params", "dropout"),
    apply={"rngs": {"dropout": jax.random.key(2)}},
)
def dropout_left_outside_of_remat(mdl, x, wrong):
    return nn.remat(Dropper, rngs=False if wrong else True)(name="saved")(x)[0]


@misuse(
    errors.InvalidRngError,
    "stream 'dropout'",
    "rngs={'dropout': jax.random.key(0)}",
    at="drop",
    keys=("params", "dropout"),
    apply=True,
)
def no_key_handed_in(mdl, x, wrong):
    return nn.Dropout(0.5, deterministic=not wrong, name="drop")(x)


@cases_of(globals())
def test_refused(case, nest):
    assert_refused(case, nest)


@cases_of(globals(), ENDS)
def test_twin_passes(case, nest):
    assert_passes(case, nest)


def test_a_warning_of_one_code_can_be_silenced():
    """Layers that start out identical may be meant."""
    stack = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": False}, length=3)
    with pytest.warns(nn.LiftWarning, match="^LX202: module /"):
        variables = stack().init(jax.random.key(0), jnp.ones(4), None)
    kernel = variables["params"]["Dense_0"]["kernel"]
    assert bool((kernel[0] == kernel[1]).all())
