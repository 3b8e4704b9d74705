"""Keys of modules that a lifted module holds, or gets as arguments, and that are not its own.

Under ``jit`` and ``fold_rngs`` Linen forgets their paths, so siblings draw equal keys; the
same bits come before better ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import pytest
from helpers.compare import Library, both
from helpers.models import cheap
from helpers.run import keys

# What is compared are keys: whole numbers, however they are compiled.
pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = jnp.ones(())
SPLIT = {"params": True, "noise": True}


def noisy(lib: Library) -> Any:
    """A module of two variables, a draw, and a submodule of one."""
    nn = lib.nn

    class Leaf(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("w", cheap, ())

    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = Leaf(name="leaf")(x) * self.param("v", cheap, ()) * self.param("w", cheap, ())
            return x + cheap(self.make_rng("noise"), ())

    return Noisy


def holder(lib: Library) -> Any:
    """Calls what it holds in a field, what comes as argument, and one of its own."""
    nn = lib.nn
    new = noisy(lib)

    class Use(nn.Module):
        held: Any = ()

        @nn.compact
        def __call__(self, x, *given, more=()):
            for part in (*self.held, new(name="own"), *given, *more):
                x = part(x) if hasattr(part, "apply") else x + part.value
            return x + cheap(self.make_rng("noise"), ())

    return Use


def _lift(lib: Library, lift: str, target: Any) -> Any:
    return getattr(lib.nn, lift)(target)


def in_field(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    parts = noisy(lib)(name="a"), noisy(lib)(name="b")
    return _lift(lib, lift, holder(lib))(parts)(x)


def called_before(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    a, b = noisy(lib)(name="a"), noisy(lib)(name="b")
    x = a(x)
    x = _lift(lib, lift, holder(lib))((a, b))(x)
    return b(a(x))


def as_arguments(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    a, b = noisy(lib)(name="a"), noisy(lib)(name="b")
    lifted = _lift(lib, lift, holder(lib))
    return lifted(name="first")(x, a, more=[b]) + lifted(name="second")(x, b)


def function_of_two(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    a, b = noisy(lib)(name="a"), noisy(lib)(name="b")
    return a(_lift(lib, lift, lambda m, n, x: n(m(x)))(a, b, x))


def function_of_self(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    a = noisy(lib)(name="a")
    x = _lift(lib, lift, lambda m, n, x: noisy(lib)(name="c")(n(x)))(mdl, a, x)
    return x + cheap(mdl.make_rng("noise"), ())


def its_own_parent(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    calls = mdl.variable("state", "calls", lambda: jnp.zeros(()))
    x = _lift(lib, lift, holder(lib))((calls, noisy(lib)(name="a")))(x)
    return x + cheap(mdl.make_rng("noise"), ())


def nested(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    a, b = noisy(lib)(name="a"), noisy(lib)(name="b")
    inner = _lift(lib, lift, holder(lib))(held=(a,), name="inner")
    return _lift(lib, lift, holder(lib))((inner, b))(x)


def one_stream(lib: Library, lift: str, mdl: Any, x: Any) -> Any:
    use = getattr(lib.nn, lift)(lambda m, n, x: m(n(x)), rngs=True)
    first = getattr(lib.nn, lift)(lambda m, x: x * m.param("u", cheap, ()), rngs="params")
    a, b = noisy(lib)(name="a"), noisy(lib)(name="b")
    return use(a, b, first(mdl, x)) + cheap(mdl.make_rng("noise"), ())


HELD: list[Callable[..., Any]] = [
    in_field, called_before, as_arguments, function_of_two, function_of_self, its_own_parent,
    nested, one_stream,
]  # fmt: skip


def model(lib: Library, held: Callable[..., Any], lift: str, place: str) -> Any:
    nn = lib.nn

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return held(lib, lift, self, x)

    class Step(Model):
        def __call__(self, x):
            return super().__call__(x), None

    axes = {"variable_axes": {"params": 0, "state": 0}, "split_rngs": SPLIT}
    if place == "scan":
        return nn.scan(Step, length=2, **axes)()
    if place == "shared":
        shared = {"variable_broadcast": "params", "variable_carry": "state"}
        return nn.scan(Step, length=2, **shared, split_rngs={**SPLIT, "params": False})()
    if place == "vmap":
        return nn.vmap(Model, in_axes=None, axis_size=2, **axes)()
    if place == "deeper":

        class Outer(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Model(name="deep")(x)

        return Outer()
    return Model() if place == "top" else getattr(nn, place)(Model)()


CASES = [("jit", held, "top") for held in HELD]
CASES += [("fold_rngs", held, "top") for held in (in_field, one_stream)]
CASES += [("jit", in_field, place) for place in ("deeper", "jit", "scan")]
CASES += [("jit", function_of_self, place) for place in ("remat", "vmap", "shared")]


@pytest.mark.parametrize(("lift", "held", "place"), CASES)
def test_keys_of_modules_from_outside(lift: str, held: Callable[..., Any], place: str) -> None:
    def run(lib: Library) -> Any:
        rngs = keys()
        made = model(lib, held, lift, place)
        variables = made.init(rngs, X)
        return variables, made.apply(variables, X, rngs=rngs, mutable=["state"])

    both(run)
