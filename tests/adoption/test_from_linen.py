"""Linen modules as modules of liftax, against the same model in Linen alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import ON_FLAX, Library, both

import liftax as nn
from liftax import errors

pytestmark = pytest.mark.skipif(ON_FLAX, reason="liftax.from_linen is what is tested")
KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
X = jnp.asarray(np.sin(np.arange(12.0)).reshape(4, 3), jnp.float32)
SPLIT = {"params": True, "dropout": True}
STATE = {"batch_stats": 0, "intermediates": 0}


class Layer(flax.linen.Module):
    """A Linen module with a bit of everything."""

    rate: float = 0.5

    @flax.linen.compact
    def __call__(self, x: Any, _: Any = None) -> Any:
        init = flax.linen.with_partitioning(flax.linen.initializers.lecun_normal(), ("in", "out"))
        x = flax.linen.Dense(3, kernel_init=init)(x)
        x = flax.linen.BatchNorm(use_running_average=False)(x)
        self.sow("intermediates", "mean", x.mean())
        return flax.linen.Dropout(self.rate, deterministic=False)(x), None

    def half(self, x: Any) -> Any:
        return self(x)[0] / 2


def as_is(lib: Library, module: Any) -> Any:
    return module if lib.name == "flax" else nn.from_linen(module)


LIFTS: dict[str, Callable[[Any, Any], Any]] = {
    "plain": lambda lib, cls: cls,
    "remat": lambda lib, cls: lib.remat(cls),
    "jit": lambda lib, cls: lib.jit(cls),
    "scan": lambda lib, cls: lib.scan(
        cls,
        variable_axes={"params": 0, **STATE},
        split_rngs=SPLIT,
        length=2,
        metadata_params={lib.PARTITION_NAME: "layers"},
    ),
    "vmap": lambda lib, cls: lib.vmap(
        cls,
        variable_axes={"params": 0, **STATE},
        split_rngs=SPLIT,
        in_axes=(None, None),
        axis_size=2,
        metadata_params={lib.PARTITION_NAME: "heads"},
    ),
}


@pytest.mark.parametrize("lift", LIFTS)
def test_the_same_as_in_linen_alone(lift: str) -> None:
    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x):
                x, _ = LIFTS[lift](lib.nn, as_is(lib, Layer))(rate=0.25)(x, None)
                x = lib.nn.Dense(3)(x)
                return as_is(lib, Layer(name="last"))(x)[0]

        variables = Model().init(KEYS, X)
        mutable = ["batch_stats", "intermediates"]
        y, state = Model().apply(variables, X, rngs=KEYS, mutable=mutable)

        def loss(params: Any) -> Any:
            given = {**variables, "params": params}
            return Model().apply(given, X, rngs=KEYS, mutable=mutable)[0].sum()

        return variables, y, state, jax.grad(loss)(variables["params"])

    both(run)


def test_methods_fields_and_setup() -> None:
    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            inner: Any

            def setup(self):
                self.layer = as_is(lib, Layer(0.25))

            def __call__(self, x):
                assert self.layer.rate == 0.25
                return self.layer.half(x) + self.inner(x)

        model = Model(as_is(lib, flax.linen.Dense(3)))
        variables = model.init(KEYS, X)
        return variables, model.apply(variables, X, rngs=KEYS, mutable="batch_stats")

    both(run)
    module = nn.from_linen(flax.linen.Dense(3))
    assert module.kernel_init is flax.linen.Dense.kernel_init
    assert nn.from_linen(module) is module and nn.from_linen(nn.Dense) is nn.Dense
    assert nn.from_linen(flax.linen.Dense) is nn.from_linen(flax.linen.Dense)


def test_operators_in_eight_bits() -> None:
    def run(lib: Library) -> Any:
        operator = as_is(lib, flax.linen.Fp8DirectDotGeneralOp)
        model = lib.nn.Dense(4, dot_general_cls=operator)
        variables = model.init(KEYS, X)
        return variables, model.apply(variables, X)

    both(run)


def test_without_it_is_told() -> None:
    class Model(nn.Module):
        inner: Any

        def __call__(self, x: Any) -> Any:
            return self.inner(x)

    with pytest.raises(errors.ForeignModuleError, match=r"Dense is a module of flax.linen"):
        Model(flax.linen.Dense(2)).init(KEYS, X)
    with pytest.raises(errors.ForeignModuleError, match=r"scan: Layer .*\n.*from_linen\(Layer"):
        nn.scan(Layer, length=2)
    with pytest.raises(errors.TransformTargetError, match="expected a module of flax.linen"):
        nn.from_linen(len)
    bound = flax.linen.Dense(2).bind({})
    with pytest.raises(errors.TransformTargetError, match="Dense is bound already"):
        nn.from_linen(bound)


def test_what_a_lift_would_lose_is_told() -> None:
    """Linen alone returns no intermediates, without a word."""
    lifted = nn.scan(
        nn.from_linen(Layer),
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs=SPLIT,
        length=2,
        metadata_params={nn.PARTITION_NAME: None},
    )()
    variables = lifted.init(KEYS, X, None)
    with pytest.raises(errors.UnnamedCollectionError, match="intermediates"):
        lifted.apply(variables, X, None, rngs=KEYS, mutable=["batch_stats", "intermediates"])
