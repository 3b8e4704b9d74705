"""Lifted classes as objects: sent elsewhere, and called with arguments left to their defaults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cloudpickle
import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, assert_same, ours
from helpers.models import SHARED, WIDTH, cheap, mapped, scanned
from helpers.run import ramp

import liftax
from liftax.core import init, lift

LIFTS: dict[str, Callable[[Library, Any], Any]] = {
    "scan": lambda lib, t: scanned(lib, t, length=2, **SHARED),
    "vmap": lambda lib, t: mapped(lib, t, in_axes=None, axis_size=2),
    "remat": lambda lib, t: lib.nn.remat(t),
    "jit": lambda lib, t: lib.nn.jit(t),
    "map_variables": lambda lib, t: lib.nn.map_variables(t, "params", init=True),
    "fold_rngs": lambda lib, t: lib.nn.fold_rngs(t),
}


@pytest.mark.parametrize("name", LIFTS)
def test_a_lifted_class_that_was_used_travels(name: str) -> None:
    lib = ours()

    class Local(lib.nn.Module):
        width: int = WIDTH

        @lib.nn.compact
        def __call__(self, c, x):
            return c * self.param("w", cheap, (self.width,)), x

    model = LIFTS[name](lib, Local)()
    args = jax.random.key(0), ramp(WIDTH), None
    expected = model.init(*args)
    assert_same(cloudpickle.loads(cloudpickle.dumps(model)).init(*args), expected)


class Mode(liftax.Module):
    @liftax.compact
    def __call__(self, x, mode="sum"):
        return getattr(jnp, mode)(x * self.param("w", cheap, (WIDTH,)))


@pytest.mark.parametrize("lift_name", ["remat", "jit"])
def test_a_static_argument_left_to_its_default(lift_name: str) -> None:
    model = getattr(liftax, lift_name)(Mode, static_argnums=2)()
    x = ramp(WIDTH)
    variables = model.init(jax.random.key(0), x)
    assert_same(model.apply(variables, x), model.apply(variables, x, "sum"))
    model.apply(variables, x, "mean")
    with pytest.raises(liftax.errors.StaticArgumentError, match="static_argnums has 7"):
        getattr(liftax, lift_name)(Mode, static_argnums=7)().init(jax.random.key(0), x)


@pytest.mark.parametrize("lift_name", ["remat", "jit"])
def test_a_static_argument_of_a_function_left_to_its_default(lift_name: str) -> None:
    def body(mdl: Any, x: Any, mode: str = "sum") -> Any:
        return mdl(x, mode)

    lifted = getattr(liftax, lift_name)(body, static_argnums=2)

    class Model(liftax.Module):
        @liftax.compact
        def __call__(self, x):
            mode = Mode()
            return lifted(mode, x), lifted(mode, x, "sum")

    (left, given), _ = Model().init_with_output(jax.random.key(0), ramp(WIDTH))
    assert_same(left, given)

    def function(scope: Any, x: Any, mode: str = "sum") -> Any:
        return getattr(jnp, mode)(x)

    run = getattr(lift, lift_name)(function, static_argnums=1)
    assert_same(init(run)(jax.random.key(0), ramp(WIDTH))[0], ramp(WIDTH).sum())
