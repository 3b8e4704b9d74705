"""The lifted scan beside flax.linen's: same variables, keys, outputs and gradients, bit for bit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, shapes
from helpers.models import BLOCKS, SHARED, WIDTH, block, cheap, key_bits, scanned
from helpers.run import everything, keys, ramp

# Streams that are not split while their parameters are stacked are among the cases.
pytestmark = pytest.mark.filterwarnings("ignore:LX202")

CARRY = ramp(WIDTH)
XS = ramp(2, WIDTH, start=0.5)


@pytest.mark.parametrize("name", BLOCKS)
def test_stacked_layers(name: str) -> None:
    both(lambda lib: everything(scanned(lib, block(name, lib))(), (CARRY, XS)))


@pytest.mark.parametrize("name", [n for n in BLOCKS if n not in ("batch_norm", "state")])
def test_shared_parameters(name: str) -> None:
    both(
        lambda lib: everything(
            scanned(
                lib,
                block(name, lib),
                **{**SHARED, "variable_axes": {"intermediates": 0}},
            )(),
            (CARRY, XS),
        )
    )


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
@pytest.mark.parametrize("name", ["dense", "sow", "boxed"])
def test_variable_axis(name: str, axis: int) -> None:
    if name == "boxed" and axis < 0:
        pytest.skip("the reference gives negative axes no name")
    axes = {"params": axis, "intermediates": axis}
    both(lambda lib: everything(scanned(lib, block(name, lib), variable_axes=axes)(), (CARRY, XS)))


@pytest.mark.parametrize("params", [True, False])
@pytest.mark.parametrize("dropout", [True, False])
@pytest.mark.parametrize("name", ["dropout", "direct_rng", "nested_rng"])
def test_split_or_shared_keys(name: str, params: bool, dropout: bool) -> None:
    split = {"params": params, "dropout": dropout}

    def run(lib: Library) -> Any:
        model = scanned(lib, block(name, lib), split_rngs=split)()
        return everything(model, (CARRY, XS))

    both(run)


@pytest.mark.parametrize("typed", [True, False])
@pytest.mark.parametrize("name", ["dense", "dropout", "direct_param", "direct_rng"])
def test_key_styles(name: str, typed: bool) -> None:
    both(
        lambda lib: everything(scanned(lib, block(name, lib))(), (CARRY, XS), keys(3, typed=typed))
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("unroll", [1, 2, 3, 5, True, False])
def test_order_and_unroll(reverse: bool, unroll: int | bool) -> None:
    both(
        lambda lib: everything(
            scanned(lib, block("direct_rng", lib), reverse=reverse, unroll=unroll)(),
            (CARRY, ramp(5, WIDTH)),
        )
    )


@pytest.mark.parametrize("length", [1, 2, 4])
def test_length_alone(length: int) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, c, _):
                return nn.Dense(WIDTH, kernel_init=cheap)(c), None

        return everything(scanned(lib, Layer, length=length)(), (CARRY, None))

    assert shapes(both(run)["variables"]["params"]["Dense_0"]["bias"]) == (length, WIDTH)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    "name", ["direct_param", "direct_setup_param", "direct_rng", "nested", "nested_rng"]
)
def test_keys_of_nested_scans(name: str, depth: int, share: bool) -> None:
    """Parameters and keys drawn in the scanned module's own scope, where counters matter."""
    options = SHARED if share else {}

    def run(lib: Library) -> Any:
        target = block(name, lib)
        for _ in range(depth):
            target = scanned(lib, target, **options)
        return everything(target(), (CARRY, ramp(*[2] * depth, WIDTH)))

    both(run)


@pytest.mark.parametrize("outer", ["stacked", "shared"])
@pytest.mark.parametrize("inner", ["stacked", "shared"])
@pytest.mark.parametrize("drops", [(True, True), (True, False), (False, True), (False, False)])
def test_mixed_nests(outer: str, inner: str, drops: tuple[bool, bool]) -> None:
    def options(kind: str, drop: bool) -> dict[str, Any]:
        split = {"params": kind == "stacked", "dropout": drop}
        return {**({} if kind == "stacked" else SHARED), "split_rngs": split}

    def run(lib: Library) -> Any:
        target = scanned(lib, block("direct_rng", lib), **options(inner, drops[0]))
        target = scanned(lib, target, **options(outer, drops[1]))
        return everything(target(), (CARRY, ramp(2, 3, WIDTH)))

    both(run)


@pytest.mark.parametrize("kind", ["compact", "setup"])
@pytest.mark.parametrize("given", ["layers", None])
def test_inside_a_parent(kind: str, given: str | None) -> None:
    """Names, counters of the parent before and after, and two calls of one scanned module."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Compact(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                before = key_bits(self.make_rng("dropout"))
                layers = scanned(lib, block("direct_rng", lib))(name=given)
                c, y = layers(c, x)
                c, z = layers(c, x)
                c, _ = scanned(lib, block("direct_rng", lib))()(c, x)
                after = self.param("after", cheap, (WIDTH,))
                return c + before, (y + z, after, key_bits(self.make_rng("dropout")))

        class Setup(nn.Module):
            def setup(self):
                self.layers = scanned(lib, block("direct_rng", lib))(name=given)
                self.more = [scanned(lib, block("dense", lib))(features=WIDTH) for _ in range(2)]

            def __call__(self, c, x):
                c, y = self.layers(c, x)
                for layer in self.more:
                    c, y = layer(c, y)
                return c, y

        return everything((Compact if kind == "compact" else Setup)(), (CARRY, XS))

    both(run)


@pytest.mark.parametrize("share", [True, False])
def test_function_of_a_module(share: bool) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                def body(mdl, c, x):
                    y = nn.Dense(WIDTH, kernel_init=cheap)(c) + x
                    noise = key_bits(mdl.make_rng("dropout"))
                    return y, y + noise + mdl.param("w", cheap, (WIDTH,))

                if share:
                    c = c + self.param("before", cheap, (WIDTH,))
                c, y = scanned(lib, body, **(SHARED if share else {}))(self, c, x)
                if share:
                    c = nn.Dense(WIDTH, kernel_init=cheap)(c)
                return c, y + key_bits(self.make_rng("dropout"))

        return everything(Model(), (CARRY, XS))

    both(run)


def test_function_of_a_child() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.cell = block("nested", lib)()
                self.head = nn.Dense(2, kernel_init=cheap)

            def __call__(self, c, x):
                step = scanned(lib, lambda mdl, c, x: mdl(c, x))
                c, y = step(self.cell, c, x)
                return self.head(c), y

        return everything(Model(), (CARRY, XS))

    both(run)


def test_function_that_uses_a_sibling() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                self.first = block("dense", lib)()
                self.second = nn.Dense(WIDTH, kernel_init=cheap)

            def body(self, c, x):
                c, y = self.first(c, x)
                return self.second(c), y

            def __call__(self, c, x):
                return scanned(lib, Model.body, **SHARED)(self, c, x)

        return everything(Model(), (CARRY, XS))

    both(run)


@pytest.mark.parametrize("name", ["state"])
@pytest.mark.parametrize("reverse", [False, True])
def test_carried_collection(name: str, reverse: bool) -> None:
    def run(lib: Library) -> Any:
        model = scanned(
            lib,
            block(name, lib),
            variable_axes={"params": 0},
            variable_carry="batch_stats",
            reverse=reverse,
        )()
        made = {
            "params": scanned(lib, block(name, lib))().init(keys(), CARRY, XS)["params"],
            "batch_stats": {"mean": ramp(WIDTH)},
        }
        return everything(model, (CARRY, XS), variables=made)

    both(run)


def test_carried_collection_of_a_function() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                count = self.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
                w = self.param("w", cheap, (WIDTH,))

                def counts(mdl, c, x):
                    here = mdl.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
                    here.value += 1
                    return c * mdl.get_variable("params", "w") + here.value.astype(c.dtype), x

                c, y = scanned(
                    lib,
                    counts,
                    variable_axes={},
                    variable_broadcast="params",
                    variable_carry="state",
                    split_rngs={},
                )(self, c, x)
                return c + w, (y, count.value)

        return everything(Model(), (CARRY, XS))

    both(run)


@pytest.mark.parametrize("capture", [True, "filter"])
def test_captured_intermediates(capture: Any) -> None:
    def run(lib: Library) -> Any:
        model = scanned(lib, block("nested", lib))()
        made = model.init(keys(), CARRY, XS)
        keep = (lambda mdl, name: "Dense" in (mdl.name or "")) if capture == "filter" else True
        return model.apply(made, CARRY, XS, capture_intermediates=keep, mutable=["intermediates"])

    both(run)


@pytest.mark.parametrize(
    ("dtype", "param_dtype"),
    [(jnp.bfloat16, jnp.float32), (jnp.bfloat16, jnp.bfloat16), (jnp.float16, jnp.float32)],
)
def test_low_precision(dtype: Any, param_dtype: Any) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                c = nn.Dense(WIDTH, dtype=dtype, param_dtype=param_dtype)(c + x)
                c = nn.LayerNorm(dtype=dtype, param_dtype=param_dtype)(c)
                return nn.Dropout(0.5, deterministic=False)(c), c.sum()

        args = (ramp(WIDTH, dtype=dtype), ramp(2, WIDTH, dtype=dtype))
        return everything(scanned(lib, Layer)(), args)

    with jax.numpy_dtype_promotion("standard"):  # the reference needs it
        both(run)


def test_double_precision() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                c = nn.Dense(WIDTH, param_dtype=jnp.float64)(c + x)
                return nn.Dropout(0.5, deterministic=False)(c), c.sum()

        args = (ramp(WIDTH, dtype=jnp.float64), ramp(2, WIDTH, dtype=jnp.float64))
        return everything(scanned(lib, Layer)(), args)

    with jax.enable_x64(True):
        found = both(run)
        assert found["out"][0].dtype == jnp.float64


def test_lstm_of_the_reference_page() -> None:
    """The first seed document's example, as jax runs it, compiled and not."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class SimpleScan(nn.Module):
            @nn.compact
            def __call__(self, c, xs):
                lstm = nn.scan(
                    nn.LSTMCell,
                    variable_broadcast="params",
                    split_rngs={"params": False},
                    in_axes=1,
                    out_axes=1,
                )
                return lstm(out_feat)(c, xs)

        seq_len, batch_size, in_feat, out_feat = 20, 16, 3, 5
        key_1, key_2, key_3 = jax.random.split(jax.random.PRNGKey(0), 3)
        xs = jax.random.uniform(key_1, (batch_size, seq_len, in_feat))
        cell = nn.LSTMCell(out_feat)
        init_carry = cell.initialize_carry(key_2, (batch_size, in_feat))
        model = SimpleScan()
        variables = model.init(key_3, init_carry, xs)
        carry, out = model.apply(variables, init_carry, xs)
        assert out.shape == (batch_size, seq_len, out_feat)
        jitted = jax.jit(model.apply)(variables, init_carry, xs)
        return {"variables": variables, "out": (carry, out), "jitted": jitted}

    both(run)


def test_body_function_of_the_reference_page() -> None:
    """The first seed document's second example: positional extras are scanned as `in_axes` says."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        def body_fn(cls, carry, xs, *args):
            extended = cls.some_fn(xs, carry, *args)
            return extended, extended * 2.0

        class Model(nn.Module):
            def setup(self):
                self.w = nn.Dense(WIDTH, kernel_init=cheap)

            def some_fn(self, xs, carry, scale):
                return self.w(carry) * scale + xs

            def __call__(self, c, xs, scale):
                scan_fn = nn.scan(
                    body_fn,
                    in_axes=0,
                    variable_broadcast="params",
                    split_rngs={"params": False},
                )
                return scan_fn(self, c, xs, scale)

        return everything(Model(), (CARRY, XS, ramp(2)))

    both(run)


def test_as_jax_runs_it() -> None:
    """Not one primitive at a time: a whole program, gradients and all."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                c = nn.LayerNorm()(c + nn.Dense(8)(nn.relu(nn.Dense(16)(c))))
                return nn.Dropout(0.25, deterministic=False)(c), c.mean()

        model = scanned(lib, Layer, length=4)()
        args = (ramp(5, 8), None)
        return jax.jit(lambda rngs: everything(model, args, rngs, compiled=True))(keys())

    both(run)


@pytest.mark.parametrize(("dtype", "nested"), [("float32", False), ("bfloat16", True)])
def test_init_of_a_stack_that_is_made_side_by_side(dtype: str, nested: bool) -> None:
    """Enough parameters in small layers for `init` to make them as one batch."""

    def made(lib: Library) -> Any:
        nn = lib.nn

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                y = nn.Dense(x.shape[-1], param_dtype=dtype)(nn.LayerNorm()(x))
                init = nn.initializers.truncated_normal(0.02)
                bias = self.param("bias", nn.initializers.normal(0.1), x.shape, dtype)
                return nn.DenseGeneral((4, 24), kernel_init=init)(y + bias).reshape(x.shape), None

        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        stack = nn.scan(Block, length=6, **axes)
        if nested:
            stack = nn.scan(stack, length=2, **axes)
        return stack().init(jax.random.key(3), jnp.ones(96), None)

    both(made)
