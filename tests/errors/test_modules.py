"""Modules by themselves: fields, setup, names, unbound calls, variables, keys."""

from __future__ import annotations

import jax
import jax.numpy as jnp

import liftax as nn
from liftax import errors

from .misuse import ENDS, X, assert_passes, assert_refused, cases_of, misuse

KEY = jax.random.key(0)


# --- frozen modules and setup ---------------------------------------------------------


@misuse(errors.SetAttributeFrozenModuleError, "'last'", "outside setup", "self.variable")
def attribute_set_in_a_call(mdl, x, wrong):
    if wrong:
        mdl.last = x
    else:
        mdl.variable("cache", "last", lambda: x)
    return x


@misuse(errors.SetAttributeFrozenModuleError, "'features'", "layer", at="layer")
def field_changed_in_a_call(mdl, x, wrong):
    layer = nn.Dense(4 if not wrong else 8, name="layer")
    if wrong:
        layer.features = 4
    return layer(x)


@misuse(errors.SetAttributeFrozenModuleError, "'scale'", at="net")
def counter_in_a_method(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.scale = 1

        def __call__(self, x):
            if wrong:
                self.scale += 1
            return x * self.scale

    return Net(name="net")(x)


@misuse(
    errors.SetAttributeInModuleSetupError,
    "setup assigns the field 'width'",
    "another name",
    at="net",
)
def field_changed_in_setup(mdl, x, wrong):
    class Net(nn.Module):
        width: int = 4

        def setup(self):
            if wrong:
                self.width = 2 * self.width
            self.dense = nn.Dense(4)

        def __call__(self, x):
            return self.dense(x)

    return Net(name="net")(x)


@misuse(errors.CallSetupUnboundModuleError, "Net: setup was called on an unbound module", at=None)
def setup_by_hand(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def __call__(self, x):
            return self.dense(x)

    net = Net(parent=None) if wrong else Net(name="net")
    if wrong:
        net.setup()
    return net(x)


@misuse(
    errors.AssignSubModuleError,
    "submodule Dense was made outside setup and outside a compact method",
    "@nn.compact",
    at="net",
)
def layer_in_a_plain_method(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.first = nn.Dense(4)

        def __call__(self, x):
            return nn.Dense(4)(x) if wrong else self.first(x)

    return Net(name="net")(x)


@misuse(errors.UndeclaredError, "parameter 'w' was declared outside setup", "@nn.compact", at="net")
def parameter_in_a_plain_method(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.v = self.param("v", nn.initializers.ones, (4,))

        def __call__(self, x):
            return x * (self.param("w", nn.initializers.ones, (4,)) if wrong else self.v)

    return Net(name="net")(x)


@misuse(errors.UndeclaredError, "variable 'h' was declared outside setup", at="net")
def variable_in_a_plain_method(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.h = self.variable("state", "g", jnp.zeros, (4,))

        def __call__(self, x):
            h = self.variable("state", "h", jnp.zeros, (4,)) if wrong else self.h
            return x + h.value

    return Net(name="net")(x)


@misuse(AttributeError, "'Net' object has no attribute 'dense'", "inside init and apply", at=None)
def attribute_of_setup_before_the_call(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def __call__(self, x):
            return self.dense(x)

    net = Net(parent=None) if wrong else Net(name="net")
    return x + 0 * net.dense.features + net(x)


@misuse(errors.DescriptorAttributeError, "property 'half'", at="net")
def property_of_nothing(mdl, x, wrong):
    class Net(nn.Module):
        width: int = 4

        @property
        def half(self):
            return self.breadth // 2 if wrong else self.width // 2

        @nn.compact
        def __call__(self, x):
            return x * self.half

    return Net(name="net")(x)


@misuse(errors.IncorrectPostInitOverrideError, "Net overrides __post_init__", "super()", at=None)
def post_init_without_super(mdl, x, wrong):
    class Net(nn.Module):
        def __post_init__(self):
            if not wrong:
                super().__post_init__()

        @nn.compact
        def __call__(self, x):
            return x

    return (Net() if wrong else Net(name="net"))(x)


@misuse(errors.ReservedModuleAttributeError, "Net", "'name'", "rename the field", at=None)
def field_called_name(mdl, x, wrong):
    class Net(nn.Module):
        __annotations__ = {"name" if wrong else "label": int}

        @nn.compact
        def __call__(self, x):
            return x

    return Net(3)(x)


@misuse(errors.ReservedModuleAttributeError, "Net", "'parent'", "rename the field", at=None)
def field_called_parent(mdl, x, wrong):
    class Net(nn.Module):
        __annotations__ = {"parent" if wrong else "above": int}

        @nn.compact
        def __call__(self, x):
            return x

    return Net(3)(x)


# --- names -----------------------------------------------------------------------------------


@misuse(errors.NameInUseError, "'same'", "submodule Dense")
def one_name_for_two_layers(mdl, x, wrong):
    return nn.Dense(4, name="same")(nn.Dense(4, name="same" if wrong else "other")(x))


@misuse(errors.NameInUseError, "'w'", "parameter 'w'")
def one_parameter_twice(mdl, x, wrong):
    x = x * mdl.param("w", nn.initializers.ones, (4,))
    return x * mdl.param("w" if wrong else "v", nn.initializers.ones, (4,))


@misuse(errors.NameInUseError, "'w'", "submodule Dense")
def parameter_and_layer_of_one_name(mdl, x, wrong):
    x = x * mdl.param("w", nn.initializers.ones, (4,))
    return nn.Dense(4, name="w" if wrong else "layer")(x)


@misuse(errors.NameInUseError, "'layer'", "variable 'layer'")
def layer_and_variable_of_one_name(mdl, x, wrong):
    x = nn.Dense(4, name="layer")(x)
    return x + mdl.variable("state", "layer" if wrong else "h", jnp.zeros, (4,)).value


@misuse(errors.NameInUseError, "'Dense_0'", "submodule Dense")
def automatic_name_taken(mdl, x, wrong):
    x = nn.Dense(4, name="Dense_0" if wrong else "first")(x)
    return nn.Dense(4)(x)


@misuse(errors.NameInUseError, "'dense'", at="net")
def one_name_twice_in_setup(mdl, x, wrong):
    class Net(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)
            self.other = nn.Dense(4, name="dense" if wrong else "more")

        def __call__(self, x):
            return self.other(self.dense(x))

    return Net(name="net")(x)


@misuse(errors.NameInUseError, "'g'", "'state'", apply={"mutable": ["state"]})
def sown_under_a_name_in_use(mdl, x, wrong):
    nn.Dense(4, name="g")(x)
    mdl.sow("state", "g" if wrong else "h", x)
    return x


# --- unbound modules -----------------------------------------------------------------------------


@misuse(errors.CallCompactUnboundModuleError, "Dense", "'__call__'", "module.init", at=None)
def unbound_call(mdl, x, wrong):
    return (nn.Dense(4, parent=None) if wrong else nn.Dense(4))(x)


def unbound(name, use, text):
    """Something that needs a bound module, asked of one that isn't."""

    def body(mdl, x, wrong):
        layer = nn.Dense(4, parent=None) if wrong else nn.Dense(4, name="layer")
        if not wrong:
            layer(x)
        use(layer)
        return x

    body.__name__ = name
    return misuse(errors.UnboundModuleError, "Dense", text, "bound module", at=None)(body)


variables_of_an_unbound_module = unbound(
    "variables_of_an_unbound_module", lambda m: m.variables, "variables"
)
path_of_an_unbound_module = unbound("path_of_an_unbound_module", lambda m: m.path, "path")
key_of_an_unbound_module = unbound("key_of_an_unbound_module", lambda m: m.make_rng(), "make_rng")
sown_in_an_unbound_module = unbound(
    "sown_in_an_unbound_module", lambda m: m.sow("a", "b", 1.0), "sow"
)
put_in_an_unbound_module = unbound(
    "put_in_an_unbound_module", lambda m: m.put_variable("state", "h", 1.0), "put_variable"
)


@misuse(errors.CallUnbindOnUnboundModuleError, "Dense: unbind", "bind", at=None)
def unbind_of_an_unbound_module(mdl, x, wrong):
    layer = nn.Dense(4, parent=None) if wrong else nn.Dense(4, name="layer")
    if not wrong:
        layer(x)
    layer.unbind()
    return x


@misuse(errors.CallShareScopeOnUnboundModuleError, "share_scope: Dense", "setup", at=None)
def scope_shared_with_an_unbound_module(mdl, x, wrong):
    class Net(nn.Module):
        inner: nn.Module

        def setup(self):
            self.dense = nn.Dense(4)
            nn.share_scope(self, nn.Dense(4, parent=None) if wrong else self.dense)

        def __call__(self, x):
            return self.dense(x)

    return Net(None, name="net")(x)


@misuse(errors.InvalidInstanceModuleError, "instance", "Model(...).init(...)", at=None)
def init_of_a_class(mdl, x, wrong):
    (nn.Dense if wrong else nn.Dense(4, parent=None)).init(KEY, x)
    return x


@misuse(errors.InvalidInstanceModuleError, "instance", at=None)
def apply_of_a_class(mdl, x, wrong):
    layer = nn.Dense(4, parent=None)
    variables = layer.init(KEY, x)
    return (nn.Dense if wrong else layer).apply(variables, x)


@misuse(errors.NotCallableMethodError, "Dense", "method", "found int", at=None)
def method_by_number(mdl, x, wrong):
    layer = nn.Dense(4, parent=None)
    variables = layer.init(KEY, x)
    return layer.apply(variables, x, method=1 if wrong else "__call__")


@misuse(
    errors.ApplyModuleInvalidMethodError,
    "Embed: method='attent'",
    "no method",
    "did you mean 'attend'?",
    at=None,
)
def method_that_does_not_exist(mdl, x, wrong):
    layer = nn.Embed(4, 4, parent=None)
    variables = layer.init(KEY, jnp.zeros(2, int))
    return layer.apply(variables, x, method="attent" if wrong else "attend")


@misuse(errors.InvalidScopeError, "module /layer", "after the call", "values", at=None)
def module_kept_from_another_call(mdl, x, wrong):
    kept = []

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            kept.append(nn.Dense(4, name="layer"))
            return kept[0](x)

    Net(parent=None).init(KEY, x)
    return kept[0](x) if wrong else nn.Dense(4, name="layer")(x)


# --- variables ---


def applied(name, error, change, *says, **options):
    """A layer applied to variables that were changed by ``change``."""

    def body(mdl, x, wrong):
        layer = nn.Dense(4, parent=None)
        variables = layer.init(KEY, x)
        return layer.apply(change(variables) if wrong else variables, x)

    body.__name__ = name
    return misuse(error, *says, at=None, **options)(body)


variables_are_params = applied(
    "variables_are_params",
    errors.ApplyScopeInvalidVariablesTypeError,
    lambda v: v["params"],
    "variables: expected a mapping of collections",
    "'kernel': float32[4,4]",
    "{'params': variables}",
)
variables_are_an_array = applied(
    "variables_are_an_array",
    errors.ApplyScopeInvalidVariablesTypeError,
    lambda v: v["params"]["kernel"],
    "variables: expected a mapping of collections",
    "float32[4,4]",
)
variables_are_a_list = applied(
    "variables_are_a_list",
    errors.ApplyScopeInvalidVariablesTypeError,
    lambda v: [v],
    "variables: expected a mapping of collections",
    "list",
)
variables_are_init_with_output = applied(
    "variables_are_init_with_output",
    errors.ApplyScopeInvalidVariablesTypeError,
    lambda v: (jnp.ones(3), v),
    "variables: expected a mapping of collections",
    "tuple",
    "init_with_output",
)
params_in_params = applied(
    "params_in_params",
    errors.ApplyScopeInvalidVariablesStructureError,
    lambda v: {"params": v},
    "{'params': {'params': ...}}",
    "variables['params']",
)
collection_missing = applied(
    "collection_missing",
    errors.ScopeCollectionNotFound,
    lambda v: {"weights": v["params"]},
    "module /",
    "'kernel'",
    "{'params': ...}",
    "Collections given: 'weights'",
)
parameter_missing = applied(
    "parameter_missing",
    errors.ScopeParamNotFoundError,
    lambda v: {"params": {"kernel": v["params"]["kernel"]}},
    "module /",
    "'bias'",
    "found there: 'kernel'",
)
parameter_of_another_shape = applied(
    "parameter_of_another_shape",
    errors.ScopeParamShapeError,
    lambda v: {"params": {**v["params"], "kernel": jnp.ones((8, 4))}},
    "module /",
    "'kernel'",
    "(8, 4)",
    "(4, 4)",
)
parameter_is_a_dict = applied(
    "parameter_is_a_dict",
    errors.ScopeParamShapeError,
    lambda v: {"params": {**v["params"], "kernel": {"w": jnp.ones((4, 4))}}},
    "module /",
    "'kernel'",
    "a dict of 'w'",
    "float32[4,4]",
)


@misuse(
    errors.ApplyScopeInvalidVariablesTypeError,
    "module /Dense_0",
    "collection 'params'",
    "float32[4]",
    at=None,
)
def array_for_a_submodule(mdl, x, wrong):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    net = Net(parent=None)
    variables = {"params": {"Dense_0": jnp.ones(4)}} if wrong else net.init(KEY, x)
    return net.apply(variables, x)


@misuse(errors.ModifyScopeVariableError, "'mean'", "mutable=['batch_stats']", at="norm", apply=True)
def statistics_without_mutable(mdl, x, wrong):
    train = wrong or mdl.is_initializing()
    return nn.BatchNorm(use_running_average=not train, name="norm")(x)


@misuse(errors.ScopeVariableNotFoundError, "'h'", "'state'", apply=True)
def variable_that_init_did_not_make(mdl, x, wrong):
    if wrong or mdl.is_initializing():
        mdl.variable("state", "h" if wrong else "g", jnp.zeros, (4,))
    return x


@misuse(errors.InvalidFilterError, "mutable", "found int", at=None)
def mutable_by_number(mdl, x, wrong):
    layer = nn.Dense(4, parent=None)
    variables = layer.init(KEY, x)
    layer.apply(variables, x, mutable=0 if wrong else "state")
    return x


@misuse(errors.LazyInitError, "['state']['mean']", "pass that input as an array", at=None)
def value_of_a_shape(mdl, x, wrong):
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x - self.variable("state", "mean", lambda: x.mean()).value

    given = jax.ShapeDtypeStruct(x.shape, x.dtype) if wrong else x
    Net(parent=None).lazy_init(KEY, given)
    return x


# --- keys ---


def keyed(name, rngs, *says, error=errors.InvalidKeyError):
    """``init`` with something else than keys."""

    def body(mdl, x, wrong):
        nn.Dense(4, parent=None).init(rngs if wrong else KEY, x)
        return x

    body.__name__ = name
    return misuse(error, *says, at=None)(body)


seed_for_a_key = keyed("seed_for_a_key", 0, "stream 'params'", "jax.random.key(0)", "found int")
floats_for_a_key = keyed("floats_for_a_key", jnp.ones(2), "found float32[2]")
keys_for_a_key = keyed("keys_for_a_key", jax.random.split(KEY, 3), "one key", "key<fry>[3]")
numbers_for_names = keyed("numbers_for_names", {0: KEY}, "names of streams", "the name 0 (int)")
no_key_for_params = keyed(
    "no_key_for_params",
    {"dropout": KEY},
    "stream 'params'",
    "streams here: 'dropout'",
    error=errors.InvalidRngError,
)
no_keys_at_all = keyed(
    "no_keys_at_all", None, "stream 'params'", "streams here: none", error=errors.InvalidRngError
)


@misuse(errors.LayerError, "Dropout: deterministic is set by the constructor", at="Dropout_0")
def setting_given_twice(mdl, x, wrong):
    drop = nn.Dropout(0.5, deterministic=True if wrong else None)
    return drop(x, deterministic=True)


@misuse(errors.LayerError, "Dropout: deterministic is not set", at="Dropout_0")
def setting_not_given(mdl, x, wrong):
    return nn.Dropout(0.5)(x) if wrong else nn.Dropout(0.5)(x, deterministic=True)


@cases_of(globals())
def test_refused(case, nest):
    assert_refused(case, nest)


@cases_of(globals(), ENDS)
def test_twin_passes(case, nest):
    assert_passes(case, nest)


def test_the_input_is_marked():
    """Messages are searched for the contents of this array."""
    assert str(float(X[0, 0])) == "7.03125"
