"""The lifted vmap beside flax.linen's: same variables, keys, outputs and gradients, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, shapes
from helpers.models import BLOCKS, LAYERS, WIDTH, block, cheap, key_bits, mapped
from helpers.run import everything, keys, ramp

# Streams that are not split while their parameters are stacked are among the cases.
pytestmark = pytest.mark.filterwarnings("ignore:LX202")

CARRY = ramp(2, WIDTH)
XS = ramp(2, WIDTH, start=0.5)
SHARED = {"variable_axes": {"params": None, "intermediates": 0, "batch_stats": 0}}
SAME_KEYS = {"split_rngs": {"params": False, "dropout": True}}


@pytest.mark.parametrize("name", BLOCKS)
def test_one_set_of_parameters_each(name: str) -> None:
    both(lambda lib: everything(mapped(lib, block(name, lib))(), (CARRY, XS)))


@pytest.mark.parametrize("name", BLOCKS)
def test_shared_parameters(name: str) -> None:
    both(
        lambda lib: everything(mapped(lib, block(name, lib), **SHARED, **SAME_KEYS)(), (CARRY, XS))
    )


@pytest.mark.parametrize("axis", [1, -1, -2])
@pytest.mark.parametrize("name", ["dense", "sow", "boxed", "state"])
def test_variable_axis(name: str, axis: int) -> None:
    if (name == "boxed" and axis < 0) or (name == "state" and axis == -2):
        pytest.skip("the reference gives negative axes no name")
    axes = {"params": axis, "intermediates": axis, "batch_stats": axis}
    both(lambda lib: everything(mapped(lib, block(name, lib), variable_axes=axes)(), (CARRY, XS)))


@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("params", [True, False])
@pytest.mark.parametrize("stacked", [True, False])
@pytest.mark.parametrize("name", ["direct_rng", "nested_rng"])
def test_split_or_shared_keys(name: str, stacked: bool, params: bool, dropout: bool) -> None:
    if params and not stacked:
        pytest.skip("contradictory: a key for each, one set of parameters")

    def run(lib: Library) -> Any:
        options: dict[str, Any] = {} if stacked else dict(SHARED)
        split = {"params": params, "dropout": dropout}
        return everything(mapped(lib, block(name, lib), split_rngs=split, **options)(), (CARRY, XS))

    both(run)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", ["dense", "dropout", "direct_rng"])
def test_key_styles(name: str, typed: bool) -> None:
    both(lambda lib: everything(mapped(lib, block(name, lib))(), (CARRY, XS), keys(4, typed=typed)))


# in_axes, out_axes, inputs
AXES: dict[str, Any] = {
    "first": (0, 0, (ramp(3, WIDTH), ramp(3, 2))),
    "second": (1, 1, (ramp(WIDTH, 3), ramp(2, 3))),
    "last": (-1, -1, (ramp(WIDTH, 3), ramp(2, 2, 3))),
    "each_its_own": ((1, 0), (0, {"p": 1, "q": -1}), (ramp(WIDTH, 3), ramp(3, 2))),
    "one_whole": ((None, 0), (0, 0), (ramp(WIDTH), ramp(3, 2))),
    "dict": (
        (0, {"a": 1, "b": None}),
        (0, {"p": -2, "q": 0}),
        (ramp(3, WIDTH), {"a": ramp(2, 3), "b": (ramp(2), ramp(1))}),
    ),
    "list": ((None, [0, None]), 0, (ramp(WIDTH), [ramp(3, 2), ramp(2)])),
    "unmapped_output": ((None, 0), (None, 0), (ramp(WIDTH), ramp(3, 2))),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", AXES)
def test_axes_of_inputs_and_outputs(case: str, shared: bool) -> None:
    in_axes, out_axes, args = AXES[case]
    if case == "unmapped_output" and not shared:
        pytest.skip("with parameters of its own each output differs")

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Body(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                y = nn.Dense(WIDTH, kernel_init=cheap)(c)
                flat = jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(x)])
                return y, {"p": jnp.outer(y, flat), "q": y * jnp.sum(flat)}

        options = {**SHARED, **SAME_KEYS} if shared else {}
        model = mapped(lib, Body, in_axes=in_axes, out_axes=out_axes, **options)()
        return everything(model, args)

    both(run)


def test_axis_size_alone() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Body(nn.Module):
            @nn.compact
            def __call__(self):
                return self.param("w", cheap, (WIDTH,))

        return everything(mapped(lib, Body, axis_size=4)(), ())

    assert shapes(both(run)["out"]) == (4, WIDTH)


def test_batch_norm_across_the_axis() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Body(nn.Module):
            @nn.compact
            def __call__(self, x):
                y = nn.Dense(WIDTH, kernel_init=cheap)(x)
                y = nn.BatchNorm(use_running_average=False, axis_name="batch", momentum=0.5)(y)
                return jax.lax.pmean(y, "batch"), y

        model = nn.vmap(
            Body,
            variable_axes={"params": None, "batch_stats": None},
            split_rngs={"params": False},
            axis_name="batch",
        )()
        return everything(model, (ramp(4, 2, WIDTH),))

    both(run)


def test_spmd_axis_name() -> None:
    def run(lib: Library) -> Any:
        return everything(mapped(lib, block("dense", lib), spmd_axis_name="data")(), (CARRY, XS))

    both(run)


def test_metadata_of_a_new_axis() -> None:
    def run(lib: Library) -> Any:
        stacked = mapped(lib, block("boxed", lib), metadata_params={"partition_name": "members"})
        twice = mapped(
            lib,
            stacked,
            metadata_params={"partition_name": "teams"},
            variable_axes={"params": 1},
        )
        return everything(twice(), (ramp(2, 2, WIDTH), ramp(2, 2, WIDTH)))

    both(run)


def test_roles_for_one_direction() -> None:
    def run(lib: Library) -> Any:
        made = mapped(lib, block("sow", lib))().init(keys(), CARRY, XS)
        axes = {"params": lib.In(0), "intermediates": lib.Out(-1)}
        model = mapped(lib, block("sow", lib), variable_axes=axes)()
        return everything(model, (CARRY, XS), variables={"params": made["params"]})

    both(run)


def test_several_methods() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            def setup(self):
                self.w = nn.Dense(WIDTH, kernel_init=cheap)
                self.v = nn.Dense(2, kernel_init=cheap)

            def encode(self, x):
                return self.v(jnp.tanh(self.w(x)))

            def embed(self, x):
                return self.w(x)

        many = mapped(lib, Layer, methods=["encode", "embed"])

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                layers = many(name="many")
                return layers.encode(x), layers.embed(x)

        return everything(Model(), (CARRY,))

    both(run)


def test_options_of_each_method() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}

        class Layer(nn.Module):
            def setup(self):
                self.w = nn.Dense(WIDTH, kernel_init=cheap)

            def one(self, x):
                return self.w(x)

            def two(self, x):
                return self.w(x) * 2.0

        methods = {"one": options, "two": {**options, "in_axes": 1, "out_axes": 1}}
        many = nn.vmap(Layer, methods=methods)

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                layers = many()
                return layers.one(x), layers.two(x.T)

        return everything(Model(), (CARRY,))

    both(run)


def test_function_of_a_module() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.inner = block("nested_rng", lib)()
                self.head = nn.Dense(WIDTH, kernel_init=cheap)

            def __call__(self, c, x):
                share = {**SHARED, **SAME_KEYS}
                c, y = mapped(lib, lambda mdl, c, x: mdl(c, x), **share)(self.inner, c, x)
                of_self = mapped(lib, lambda mdl, c, x: mdl.inner(c, mdl.head(x)), **share)
                c, z = of_self(self, c, x)
                return self.head(c), y + z + key_bits(self.make_rng("dropout"))

        return everything(Model(), (CARRY, XS))

    both(run)


def test_inside_a_parent() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                before = key_bits(self.make_rng("dropout"))
                layers = mapped(lib, block("direct_rng", lib))()
                c, y = layers(c, x)
                c, z = layers(c, x)
                c, _ = mapped(lib, block("direct_rng", lib))(name="more")(c, x)
                w = self.param("after", cheap, (WIDTH,))
                return c + before, (y + z, w, key_bits(self.make_rng("dropout")))

        return everything(Model(), (CARRY, XS))

    both(run)


def test_captured_intermediates() -> None:
    def run(lib: Library) -> Any:
        model = mapped(lib, block("nested", lib))()
        made = model.init(keys(), CARRY, XS)
        return model.apply(made, CARRY, XS, capture_intermediates=True)

    both(run)


def test_low_and_double_precision() -> None:
    def run(dtype: Any) -> Any:
        def with_library(lib: Library) -> Any:
            nn = lib.nn

            class Layer(nn.Module):
                @nn.compact
                def __call__(self, x):
                    x = nn.Dense(WIDTH, dtype=dtype, param_dtype=dtype)(x)
                    return nn.Dropout(0.5, deterministic=False)(x)

            model = mapped(lib, Layer, metadata_params=LAYERS)()
            return everything(model, (ramp(2, WIDTH, dtype=dtype),))

        return with_library

    both(run(jnp.bfloat16))
    with jax.enable_x64(True):
        both(run(jnp.float64))


def test_as_jax_runs_it() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, x):
                x = nn.relu(nn.Dense(8)(x))
                return nn.Dropout(0.25, deterministic=False)(nn.Dense(2)(x))

        model = mapped(lib, Layer, **SHARED, **SAME_KEYS)()
        return everything(model, (ramp(4, 3),), compiled=True)

    both(run)
