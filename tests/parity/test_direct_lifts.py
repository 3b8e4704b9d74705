"""Lifts that are called at once: bound methods as functions, numbers that count the module."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, Library, assert_same, both, ours
from helpers.run import ramp

import liftax
from liftax.core import apply, lift

X = ramp(2, 3)


CALLS: dict[str, Any] = {
    "cond": lambda nn, m, x: nn.cond(False, m.small, m.large, m, x),
    "switch": lambda nn, m, x: nn.switch(2, [m.small, m.large, m.large], m, x),
    "while_loop": lambda nn, m, x: nn.while_loop(m.below, m.step, m, (0, x)),
    "vjp": lambda nn, m, x: nn.vjp(m.small, m, x)[1](x),
    "jvp": lambda nn, m, x: nn.jvp(m.small, m, (x,), (x,), {}),
    "grad": lambda nn, m, x: nn.grad(m.total, m, x),
    "value_and_grad": lambda nn, m, x: nn.value_and_grad(m.total, m, x),
}


def bound(lib: Library, call: Any, where: str) -> Any:
    nn = lib.nn

    class Methods(nn.Module):
        def setup(self):
            self.dense = nn.Dense(3)

        def small(self, x):
            return self.dense(x)

        def large(self, x):
            return self.dense(x) * 10

        def total(self, x):
            return self.dense(x).sum()

        def below(self, carry):
            return carry[0] < 3

        def step(self, carry):
            return carry[0] + 1, self.dense(carry[1])

        def __call__(self, x):
            made = self.dense(x)
            return made if self.is_initializing() else call(nn, self, x)

    if where == "self":
        return Methods()

    class Outer(nn.Module):
        def setup(self):
            self.inner = Methods()

        def __call__(self, x):
            made = self.inner(x)
            return made if self.is_initializing() else call(nn, self.inner, x)

    return Outer()


@pytest.mark.parametrize("where", ["self", "submodule"])
@pytest.mark.parametrize("call", CALLS)
def test_bound_methods_as_functions(call: str, where: str) -> None:
    def run(lib: Library) -> Any:
        model = bound(lib, CALLS[call], where)
        variables = model.init(jax.random.key(0), X)
        return variables, model.apply(variables, X)

    both(run)


@pytest.mark.skipif(ON_FLAX, reason="an improvement on flax")
def test_bound_methods_with_a_gradient_of_their_own() -> None:
    nn = ours().nn

    class Sign(nn.Module):
        def setup(self):
            self.dense = nn.Dense(3)

        def run(self, x):
            return self.dense(x)

        def forward(self, x):
            return nn.vjp(self.run, self, x)

        def __call__(self, x):
            def backward(pull, bar):
                variables, x_bar = pull(bar)
                return jax.tree.map(jnp.sign, variables), x_bar

            return nn.custom_vjp(self.run, self.forward, backward)(self, x)

    variables = Sign().init(jax.random.key(0), X)
    grads = jax.grad(lambda v: Sign().apply(v, X).sum())(variables)
    assert set(map(float, jnp.ravel(grads["params"]["dense"]["bias"]))) == {1.0}


# Linen takes a single number for a sequence, and reads negative ones in its own way.
NUMBERS = [(), (2,), (3,), (2, 3), (3, 2)]


def scaled(scope: Any, x: Any, k: Any, y: Any) -> Any:
    return x * scope.param("w", lambda key: jnp.ones(())) * k + y


@pytest.mark.parametrize("numbers", NUMBERS, ids=str)
def test_the_scope_counts_among_the_arguments_of_custom_vjp(numbers: tuple[int, ...]) -> None:
    def run(lib: Library) -> Any:
        def forward(scope: Any, *args: Any) -> Any:
            return lib.lift.vjp(scaled, scope, *args)

        def backward(*args: Any) -> Any:
            *fixed, pull, bar = args
            variables_bar, *bars = pull(bar)
            bars = [b for i, b in enumerate(bars, 1) if i not in numbers]
            weight = sum(v * 10**i for i, v in enumerate(fixed))
            return jax.tree.map(lambda v: v * 100 + weight, variables_bar), *bars

        call = lib.core.apply(
            lib.lift.custom_vjp(scaled, forward, backward, nondiff_argnums=numbers)
        )
        variables = {"params": {"w": jnp.ones(())}}
        return jax.grad(lambda v, x: call(v, x, 5.0, 7.0), argnums=(0, 1))(variables, 2.0)

    both(run)


@pytest.mark.parametrize("number", [3, -1, (3,), (-1,)], ids=str)
def test_one_argument_of_custom_vjp_in_every_spelling(number: Any) -> None:
    def forward(scope: Any, *args: Any) -> Any:
        return lift.vjp(scaled, scope, *args)

    def backward(y: Any, pull: Any, bar: Any) -> Any:
        variables_bar, x_bar, k_bar, _ = pull(bar)
        return jax.tree.map(lambda v: v + y, variables_bar), x_bar, k_bar

    variables = {"params": {"w": jnp.ones(())}}
    of_core = apply(lift.custom_vjp(scaled, forward, backward, nondiff_argnums=number))
    grads = jax.grad(lambda v: of_core(v, 2.0, 5.0, 7.0))(variables)
    assert float(grads["params"]["w"]) == 17

    class Model(liftax.Module):
        @liftax.compact
        def __call__(self, x, k, y):
            def run(mdl: Any, x: Any, k: Any, y: Any) -> Any:
                return x * mdl.get_variable("params", "w") * k + y

            self.param("w", lambda key: jnp.ones(()))

            def ahead(mdl: Any, *args: Any) -> Any:
                return liftax.vjp(run, mdl, *args)

            return liftax.custom_vjp(run, ahead, backward, nondiff_argnums=number)(self, x, k, y)

    found = jax.grad(lambda v: Model().apply(v, 2.0, 5.0, 7.0))(variables)
    assert_same(found, grads)


@pytest.mark.parametrize(("number", "text"), [(0, "has 0"), (4, "has 4"), (-4, "has -4")])
def test_numbers_that_the_core_refuses(number: int, text: str) -> None:
    run = apply_of(number)
    with pytest.raises(liftax.errors.StaticArgumentError, match=f"nondiff_argnums {text}"):
        run({"params": {"w": 1.0}}, 1.0, 1.0, 1.0)


def apply_of(number: int) -> Any:
    def called(*args: Any) -> Any:
        return apply(lift.custom_vjp(scaled, scaled, scaled, nondiff_argnums=(number,)))(*args)

    return called
