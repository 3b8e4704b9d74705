"""Every module that flax.linen has is an address here; what is not here says what to use."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import types

import flax.core
import flax.linen
import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, Library, linen, ours

import liftax
from liftax import absent

pytestmark = pytest.mark.skipif(ON_FLAX, reason="about liftax's own names")
LINEN = [m.name for m in pkgutil.iter_modules(flax.linen.__path__) if m.name != "experimental"]
# What modules of flax define and liftax has not: parts of how flax does it, which no page of its
# documentation names.
LEFT_OUT = {
    "batch_apply": """arbitrary_mergeable_leaf merge_leading_dims ndim_at_least
        split_leading_dim""",
    "module": """Descriptor DescriptorWrapper ModuleBase ParentDescriptor SetupState
        ThreadLocalStack capture_call_intermediates create_descriptor_wrapper module_field
        tuple_init tuple_reduce wrap_descriptor_once""",
    "partitioning": "core_remat_static",
    "recurrent": "RNNBase",
    "summary": "Row",
    "transforms": "InstancePlaceholder VariablePlaceholder",
}


def defined(module: types.ModuleType) -> set[str]:
    """The public names that a module of flax defines, not those that it imports."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and getattr(value, "__module__", None) == module.__name__
        and isinstance(value, (type, types.FunctionType))
    }


@pytest.mark.parametrize("name", LINEN)
def test_each_submodule_is_an_address(name: str) -> None:
    ours = importlib.import_module(f"liftax.{name}")
    held = getattr(liftax, name)
    assert held is ours or (name == "summary" and callable(held))
    if name == "fp8_ops":  # flax's own functions, and operators that are left out
        return
    public = defined(importlib.import_module(f"flax.linen.{name}"))
    missing = {n for n in public if not hasattr(ours, n) and n not in absent.ADVICE}
    assert missing == set(LEFT_OUT.get(name, "").split())


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("initializers", "constant orthogonal zeros variance_scaling lecun_normal Initializer"),
        ("linear", "Dense PrecisionLike PaddingLike default_kernel_init _canonicalize_tuple"),
        ("linear", "_normalize_axes _conv_dimension_numbers Conv promote_dtype"),
        ("attention", "MultiHeadDotProductAttention DenseGeneral combine_masks promote_dtype"),
        ("normalization", "_canonicalize_axes Axes LayerNorm WeightNorm SpectralNorm"),
        ("recurrent", "RNNCellBase LSTMCell RNN"),
        ("module", "Module compact merge_param Scope Variable VariableDict FrozenVariableDict"),
        ("module", "_context InterceptorContext wrap_method_once nowrap intercept_methods"),
        ("transforms", "scan remat vmap map_variables"),
        ("spmd", "LogicallyPartitioned LogicalRules RulesFallback get_logical_axis_rules"),
        ("partitioning", "axis_rules with_sharding_constraint LogicalRules ScanIn AxisMetadata"),
        ("summary", "tabulate"),
        ("core", "Scope CollectionFilter VariableDict FrozenDict freeze unfreeze copy pop"),
        ("core.scope", "Scope Variable"),
        ("core.variables", "Variable"),
        ("core.axes_scan", "broadcast"),
        ("core.frozen_dict", "FrozenDict freeze unfreeze pop copy pretty_repr"),
        ("core.lift", "CollectionFilter PRNGSequenceFilter InOutAxis In Out scan"),
        ("core.meta", "Partitioned AxisMetadata unbox"),
    ],
)
def test_names_that_public_code_imports(module: str, names: str) -> None:
    for name in names.split():
        exec(f"from liftax.{module} import {name}", {})


def test_flaxs_own_dicts_are_flaxs() -> None:
    assert liftax.core.FrozenDict is flax.core.FrozenDict
    assert "FrozenDict" not in liftax.core.__all__  # a star import goes without flax


def test_flaxs_own_products_in_eight_bits_are_flaxs() -> None:
    theirs = importlib.import_module("flax.linen.fp8_ops")
    for name in "in_qdq out_qdq in_q out_dq qdq fm32 quantized_dot fp8_scaled_dot_general".split():
        assert getattr(liftax.fp8_ops, name) is getattr(theirs, name)


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("liftax", "FrozenDict", "plain dicts go in and come out"),
        ("liftax", "Fp8DotGeneralOp", "dot_general_cls= of your own"),
        ("liftax.fp8_ops", "Fp8Einsum", "dot_general"),
        ("liftax.core.scope", "CollectionFilter", "it is liftax.core.CollectionFilter"),
        ("liftax.core", "spmd", "liftax.spmd"),
        ("liftax.summary", "_process_inputs", "nn.tabulate"),
        ("liftax.module", "_tabulate_context", "nn.layout"),
        ("liftax.partitioning", "_add_axis_to_metadata", "scan_with_axes"),
        ("liftax", "LayerNom", "did you mean 'LayerNorm'"),
        ("liftax.transforms", "clean_clone", "apply and bind"),
        ("liftax.core.frozen_dict", "freez", "did you mean 'freeze'"),
    ],
)
def test_what_is_not_here_says_what_to_use(module: str, name: str, said: str) -> None:
    package = importlib.import_module(module)
    with pytest.raises(AttributeError, match=said):
        getattr(package, name)
    with pytest.raises(ImportError, match=said):
        exec(f"from {module} import {name}", {})
    assert not hasattr(package, name)


@pytest.mark.parametrize(
    ("read", "end"),
    [
        (lambda: liftax.LayerNom, "'LayerNom'; did you mean 'LayerNorm'?"),
        (lambda: liftax.Dense(3).featurs, "on a bound module. Did you mean: 'features'?"),
    ],
)
def test_a_guess_is_printed_once(read, end, capsys) -> None:
    """Python adds one to the message where it knows of what an attribute was asked for."""
    with pytest.raises(AttributeError) as found:
        read()
    sys.__excepthook__(found.type, found.value, found.tb)
    assert capsys.readouterr().err.rstrip().endswith(end)


def test_helpers_that_public_code_calls() -> None:
    from flax.linen import linear as theirs
    from flax.linen import normalization as theirs_too

    from liftax import linear, normalization

    assert linear._canonicalize_tuple(3) == theirs._canonicalize_tuple(3)
    assert linear._canonicalize_tuple([1, 2]) == theirs._canonicalize_tuple([1, 2])
    shape = (1, 2, 3, 4)
    assert linear._conv_dimension_numbers(shape) == theirs._conv_dimension_numbers(shape)
    for axes in (-1, (0, -1), (-1, 0)):
        ours = normalization._canonicalize_axes(3, axes)
        assert ours == theirs_too._canonicalize_axes(3, axes)
    assert linear._normalize_axes((-1, 0), 3) == theirs._normalize_axes((-1, 0), 3)
    a, b = jnp.ones((2, 3)), jnp.ones((3, 4))
    found, wanted = (
        lib.Einsum((3, 4))._get_bias_shape("ab,bc->ac", a, b) for lib in (liftax, flax.linen)
    )
    assert tuple(map(tuple, found)) == tuple(map(tuple, wanted))


def test_what_an_interceptor_of_public_code_asks() -> None:
    """AQT's: whether the module may declare variables now."""

    def run(lib: Library) -> list[tuple[str, str, bool]]:
        nn = lib.nn
        heard: list[tuple[str, str, bool]] = []

        class Inner(nn.Module):
            def setup(self):
                self.dense = nn.Dense(2)

            def __call__(self, x):
                heard.append(("Inner", "body", self._initialization_allowed))
                return self.dense(x)

        class Outer(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Inner()(x)

        def hear(next_fun, args, kwargs, context):
            module = context.module
            heard.append(
                (type(module).__name__, context.method_name, module._initialization_allowed)
            )
            return next_fun(*args, **kwargs)

        assert Outer()._initialization_allowed
        with nn.intercept_methods(hear):
            variables = Outer().init(jax.random.key(0), jnp.ones((1, 2)))
            Outer().apply(variables, jnp.ones((1, 2)))
        return heard

    theirs = run(linen())
    assert run(ours()) == theirs and {allowed for *_, allowed in theirs} == {True, False}


def test_what_runs_now_is_in_the_context() -> None:
    from liftax.module import _context, run_interceptors

    class Model(liftax.Module):
        def twice(self, x):
            return 2 * x

        @liftax.compact
        def __call__(self, x):
            assert _context.module_stack[-1] is self
            return run_interceptors(self.twice, self, x)

    heard = []

    def interceptor(following, args, kwargs, context):
        heard.append(context.method_name)
        return following(*args, **kwargs)

    assert _context.module_stack == [None]
    with liftax.intercept_methods(interceptor):
        assert Model().apply({}, 2) == 4
    assert "twice" in heard
    assert jax.tree.leaves(liftax.partitioning.AxisMetadata(("a",))) == []
