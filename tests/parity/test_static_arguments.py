"""Static arguments of `remat` and `jit`: a number or a name covers both ways of passing one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, Library, both

import liftax as nn

pytestmark = pytest.mark.skipif(ON_FLAX, reason="Linen's remat has no static_argnames")
X = jnp.ones((2, 3))
CALLS: dict[str, Callable[[Any], Any]] = {
    "position": lambda call: call(X, True),
    "keyword": lambda call: call(X, train=True),
    "all keywords": lambda call: call(x=X, train=True),
    "default": lambda call: call(X),
}
ARRAYS: dict[str, Callable[[Any], Any]] = {
    "position": lambda call: call(X, jnp.array(True)),
    "keyword": lambda call: call(X, train=jnp.array(True)),
}


def seen(lift: str, way: str, call: Callable[[Any], Any], **options: Any) -> type:
    """The type that the body sees of `train`, lifted as a class, a method or a function."""
    kinds: list[type] = []

    def body(self: Any, x: Any, train: Any = False) -> Any:
        kinds.append(type(train))
        return nn.Dense(2)(x)

    lifted: Any = getattr(nn, lift)
    if way == "class":

        class Inner(nn.Module):
            __call__ = nn.compact(body)

        run = lifted(Inner, **options)

        class Model(nn.Module):
            @nn.compact
            def __call__(self) -> Any:
                return call(run())
    else:
        fn = lifted(body, **options)

        class Model(nn.Module):  # type: ignore[no-redef]
            method = fn

            @nn.compact
            def __call__(self) -> Any:
                if way == "method":
                    return call(self.method)
                return call(lambda *args, **kwargs: fn(self, *args, **kwargs))

    Model().init_with_output(jax.random.key(0))
    assert len(kinds) == 1
    return kinds[0]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("way", ["class", "method", "function"])
@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_a_number_or_a_name_covers_both_ways(lift: str, way: str, call: str) -> None:
    for options in (
        {"static_argnames": "train"},
        {"static_argnums": 2},
        {"static_argnums": (0, -1)},
    ):
        assert seen(lift, way, CALLS[call], **options) is bool
    if call != "default":
        assert issubclass(seen(lift, way, CALLS[call], static_argnames="other"), jax.core.Tracer)


@pytest.mark.parametrize("numbers", [(3, 4), (0, 2), 3])
@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_numbers_are_linens(lift: str, numbers: Any) -> None:
    """As public models write them: `nn.remat(Block, static_argnums=(3, 4))`."""

    def run(lib: Library) -> Any:
        kinds = []

        class Block(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x, mask, train, cached):
                kinds.append([isinstance(v, jax.core.Tracer) for v in (x, train, cached)])
                return lib.nn.Dense(2)(x) * mask

        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self):
                lifted = getattr(lib.nn, lift)(Block, static_argnums=numbers)
                return lifted()(X, 2.0, True, False)

        return Model().init_with_output(jax.random.key(0)), kinds[0]

    both(run)


@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_an_array_passed_the_other_way_stays_traced(lift: str) -> None:
    """Linen traces it; whether it is an array or not is not to decide whether a program runs."""
    found = seen(lift, "class", ARRAYS["position"], static_argnames="train")
    assert issubclass(found, jax.core.Tracer)
    found = seen(lift, "class", ARRAYS["keyword"], static_argnums=2)
    assert issubclass(found, jax.core.Tracer)


@pytest.mark.parametrize("lift", ["remat", "jit"])
def test_a_number_that_no_argument_has(lift: str) -> None:
    with pytest.raises(nn.errors.StaticArgumentError, match="static_argnums has 5"):
        seen(lift, "class", CALLS["keyword"], static_argnums=5)
