"""The mistakes that Linen names: the same class name is raised, and says where."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, Library, linen, ours
from helpers.models import WIDTH, block, cheap, scanned
from helpers.run import keys, ramp

X = ramp(WIDTH)
MISTAKES: list[Any] = []


def mistake(error: str, match: str, *, linen_too: bool = True) -> Any:
    """`linen_too`: whether the installed reference notices the mistake, or says so by that name."""

    def add(provoke: Callable[[Library], Any]) -> Any:
        MISTAKES.append(pytest.param(provoke, error, match, linen_too, id=provoke.__name__))
        return provoke

    return add


def model_of(lib: Library, call: Callable[..., Any]) -> Any:
    class Model(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, x):
            return call(self, x)

    return Model()


@mistake("NameInUseError", "w")
def one_name_twice(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        mdl.param("w", cheap, ())
        return lib.nn.Dense(2, name="w")(x)

    return model_of(lib, call).init(keys(), X)


@mistake("NameInUseError", "same")
def two_submodules_of_one_name(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        return lib.nn.Dense(2, name="same")(lib.nn.Dense(2, name="same")(x))

    return model_of(lib, call).init(keys(), X)


@mistake("ScopeParamNotFoundError", "kernel")
def parameter_missing(lib: Library) -> Any:
    return lib.nn.Dense(2).apply({"params": {"bias": jnp.ones(2)}}, X)


@mistake("ScopeCollectionNotFound", "params")
def collection_missing(lib: Library) -> Any:
    return lib.nn.Dense(2).apply({}, X)


@mistake("ScopeParamShapeError", "kernel")
def parameter_of_another_shape(lib: Library) -> Any:
    variables = lib.nn.Dense(2).init(keys(), X)
    return lib.nn.Dense(2).apply(variables, ramp(WIDTH + 1))


@mistake("ScopeVariableNotFoundError", "count")
def variable_missing(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        return mdl.variable("state", "count").value

    return model_of(lib, call).apply({"state": {"other": X}}, X)


@mistake("ModifyScopeVariableError", "batch_stats")
def write_to_an_immutable_collection(lib: Library) -> Any:
    model = lib.nn.BatchNorm(use_running_average=False)
    variables = model.init(keys(), X[None])
    return model.apply(variables, X[None])


@mistake("InvalidRngError", "dropout")
def stream_missing(lib: Library) -> Any:
    return lib.nn.Dropout(0.5, deterministic=False).apply({}, X)


@mistake("InvalidRngError", "params")
def init_without_a_key(lib: Library) -> Any:
    return lib.nn.Dense(2).init({"dropout": jax.random.key(0)}, X)


@mistake("InvalidRngError", "params|PRNGKey|key")
def a_seed_for_a_key(lib: Library) -> Any:
    return lib.nn.Dense(2).init(3, X)


@mistake("ApplyScopeInvalidVariablesStructureError", "params")
def params_within_params(lib: Library) -> Any:
    variables = lib.nn.Dense(2).init(keys(), X)
    return lib.nn.Dense(2).apply({"params": variables}, X)


@mistake("ApplyScopeInvalidVariablesTypeError", "dict|mapping|collection", linen_too=False)
def variables_that_are_no_mapping(lib: Library) -> Any:
    return lib.nn.Dense(2).apply([1, 2], X)


@mistake("InvalidFilterError", "mutable|filter")
def a_filter_that_is_none(lib: Library) -> Any:
    variables = lib.nn.Dense(2).init(keys(), X)
    return lib.nn.Dense(2).apply(variables, X, mutable=3)


@mistake("JaxTransformError", "jax|trace", linen_too=False)
def jax_transformation_around_a_bound_module(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        inner = lib.nn.Dense(WIDTH)
        return jax.jit(lambda x: inner(x))(x)

    return model_of(lib, call).init(keys(), X)


@mistake("JaxTransformError", "jax|trace", linen_too=False)
def jax_scan_around_a_bound_module(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        inner = lib.nn.Dense(WIDTH)
        return jax.lax.scan(lambda c, _: (inner(c), None), x, None, length=2)[0]

    return model_of(lib, call).init(keys(), X)


@mistake("SetAttributeFrozenModuleError", "late")
def attribute_set_in_a_call(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        mdl.late = 3
        return x

    return model_of(lib, call).init(keys(), X)


@mistake("SetAttributeFrozenModuleError", "features")
def field_changed_from_outside(lib: Library) -> Any:
    lib.nn.Dense(2).bind({}).features = 3


@mistake("SetAttributeInModuleSetupError", "width")
def field_changed_in_setup(lib: Library) -> Any:
    class Model(lib.nn.Module):
        width: int = 2

        def setup(self):
            self.width = 3

        def __call__(self, x):
            return x

    return Model().init(keys(), X)


@mistake("ReservedModuleAttributeError", "parent|name")
def reserved_field(lib: Library) -> Any:
    class Model(lib.nn.Module):
        name: int = 3

    return Model


@mistake("ApplyModuleInvalidMethodError", "method")
def a_method_that_is_none(lib: Library) -> Any:
    return lib.nn.Dense(2).init(keys(), X, method=3)


@mistake("CallCompactUnboundModuleError", "init|apply|bind")
def call_without_apply(lib: Library) -> Any:
    return lib.nn.Dense(2)(X)


@mistake("CallSetupUnboundModuleError", "setup")
def setup_by_hand(lib: Library) -> Any:
    return block("setup", lib)().setup()


@mistake("CallUnbindOnUnboundModuleError", "unbind")
def unbind_unbound(lib: Library) -> Any:
    return lib.nn.Dense(2).unbind()


@mistake("CallShareScopeOnUnboundModuleError", "share_scope")
def share_scope_unbound(lib: Library) -> Any:
    return lib.nn.share_scope(lib.nn.Dense(2), lib.nn.Dense(2))


@mistake("InvalidInstanceModuleError", "instance")
def apply_of_a_class(lib: Library) -> Any:
    return lib.nn.Dense.init(keys(), X)


@mistake("IncorrectPostInitOverrideError", "super|__post_init__")
def post_init_without_super(lib: Library) -> Any:
    class Model(lib.nn.Module):
        def __post_init__(self):
            pass

        @lib.nn.compact
        def __call__(self, x):
            return x

    return Model().init(keys(), X)


@mistake("DescriptorAttributeError", "half")
def property_that_fails(lib: Library) -> Any:
    class Model(lib.nn.Module):
        @property
        def half(self):
            raise AttributeError("nothing here")

        @lib.nn.compact
        def __call__(self, x):
            return self.half

    return Model().init(keys(), X)


@mistake("AssignSubModuleError", "Dense|setup|compact")
def submodule_outside_setup_and_compact(lib: Library) -> Any:
    class Model(lib.nn.Module):
        def setup(self):
            pass

        def __call__(self, x):
            return lib.nn.Dense(2)(x)

    return Model().init(keys(), X)


# From JAX 0.11 on Linen takes the unknown input for zeros.
@mistake("LazyInitError", "w", linen_too=jax.__version_info__ < (0, 11))
def lazy_init_that_needs_values(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        return mdl.param("w", lambda key: jnp.sum(x))

    return model_of(lib, call).lazy_init(keys(), jax.ShapeDtypeStruct((3,), jnp.float32))


@mistake("TransformTargetError", "Module|module")
def a_lift_of_no_module(lib: Library) -> Any:
    return lib.nn.jit(block("dense", lib)())


@mistake("PartitioningUnspecifiedError", "partition_name")
def boxes_without_a_name_for_the_axis(lib: Library) -> Any:
    model = scanned(lib, block("boxed", lib), metadata_params={})()
    return model.init(keys(), X, ramp(2, WIDTH))


@mistake("InvalidScopeError", "scope|call|valid", linen_too=False)
def module_used_after_its_call(lib: Library) -> Any:
    kept: list[Any] = []
    model_of(lib, lambda mdl, x: kept.append(mdl) or x).init(keys(), X)
    return kept[0].get_variable("params", "w")


@pytest.mark.parametrize(("provoke", "error", "match", "linen_too"), MISTAKES)
def test_same_class_and_a_short_message(
    provoke: Any, error: str, match: str, linen_too: bool
) -> None:
    if linen_too:
        with pytest.raises(getattr(linen().errors, error)):
            provoke(linen())
    if ON_FLAX:
        return
    with pytest.raises(getattr(ours().errors, error), match=match) as caught:
        provoke(ours())
    assert isinstance(caught.value, ours().errors.LiftaxError)
    message = str(caught.value)
    assert 0 < len(message.splitlines()) <= 12
    assert "Array(" not in message


def test_every_error_of_ours_has_one_base() -> None:
    errors = ours().errors
    classes = [
        value
        for value in vars(errors).values()
        if isinstance(value, type)
        and issubclass(value, Exception)
        and not issubclass(value, Warning)
        and value.__module__ == errors.__name__
    ]
    base = errors.FlaxError if ON_FLAX else errors.LiftaxError
    assert all(issubclass(value, base) for value in classes)
    assert dataclasses.is_dataclass(ours().nn.Dense)
