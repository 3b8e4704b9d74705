"""init that comes again: not traced again, equal to the last bit, fresh where anything differs."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import cheap

import liftax as nn
from liftax.core.staged import Programs

KEY = jax.random.key(7)
X = jnp.ones((2, 4))


def counting() -> tuple[Any, list[int]]:
    calls: list[int] = []

    class Block(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x, scale=1):
            calls.append(1)
            self.variable("stats", "count", lambda: jnp.zeros((), jnp.int32))
            x = x @ self.param("w", cheap, (x.shape[-1], self.width))
            return x * self.param("gain", cheap, (self.width,)) * scale

    return Block, calls


def same(a: Any, b: Any) -> bool:
    return bool(
        jax.tree.structure(a) == jax.tree.structure(b)
        and jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a, b))
    )


def test_the_same_bits_without_another_trace() -> None:
    Block, calls = counting()
    first = Block().init(KEY, X)
    for _ in range(3):
        assert same(Block().init(KEY, X), first)
    assert len(calls) == 1
    assert same(Block().init_with_output(KEY, X)[1], first)
    other = Block().init(jax.random.key(8), X)
    assert len(calls) == 2
    assert not same(other["params"], first["params"])


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block(5).init(KEY, X),
        lambda block: block().init(KEY, X[None]),
        lambda block: block().init(KEY, X.astype(jnp.bfloat16)),
        lambda block: block().init(KEY, np.ones((2, 4), np.float32)),
        lambda block: block().init(KEY, X, scale=2),
        lambda block: block().init(KEY, X, scale=1.0),
        lambda block: block().init(KEY, X, True),
        lambda block: block().init(jax.random.PRNGKey(7), X),
        lambda block: block().init({"params": KEY, "dropout": KEY}, X),
        lambda block: block().init(KEY, X, mutable=["params", "stats"]),
    ],
)
def test_whatever_differs_is_traced(change: Any) -> None:
    Block, calls = counting()
    Block().init(KEY, X)
    Block().init(KEY, X)
    found = change(Block)
    assert len(calls) == 2
    assert same(change(Block), found)
    assert len(calls) == 2


def test_settings_of_jax_are_part_of_it() -> None:
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x * self.param("w", nn.initializers.normal(), (3,), float)

    narrow = [Wide().init(KEY, 1.0)["params"]["w"] for _ in range(2)]
    with jax.enable_x64(True):
        wide = [Wide().init(KEY, 1.0)["params"]["w"] for _ in range(2)]
    again = Wide().init(KEY, 1.0)["params"]["w"]
    assert [w.dtype.name for w in (*narrow, *wide, again)] == [
        *["float32"] * 2,
        *["float64"] * 2,
        "float32",
    ]
    assert same(wide[0], wide[1])
    assert same(again, narrow[0])


def test_interceptors_hear_every_init() -> None:
    Block, calls = counting()
    heard: list[str] = []

    def note(fun, args, kwargs, context):
        heard.append(context.method_name)
        return fun(*args, **kwargs)

    Block().init(KEY, X)
    with nn.intercept_methods(note):
        Block().init(KEY, X)
        Block().init(KEY, X)
    assert heard == ["__call__"] * 2
    assert len(calls) == 3


def test_inside_of_a_transformation_nothing_is_kept() -> None:
    Block, calls = counting()
    for _ in range(2):
        jax.jit(lambda key: Block().init(key, X))(KEY)
    jax.vmap(lambda key: Block().init(key, X))(jax.random.split(KEY, 3))
    assert len(calls) == 3


def test_few_are_kept() -> None:
    programs = Programs(size=3)
    made: list[int] = []

    def make(i: int) -> Any:
        made.append(i)
        return SimpleNamespace(number=i, warned=False)

    for i in (0, 1, 2, 0, 3, 0, 1, 3):  # 1 had to go for 3, then 2 for 1
        assert programs.find(i, lambda i=i: make(i)).number == i
    assert made == [0, 1, 2, 3, 1]
    assert len(programs.kept) == 3


def test_a_warning_is_given_each_time() -> None:
    Block, _ = counting()
    same_for_all = nn.vmap(
        Block, variable_axes={"params": 0, "stats": 0}, split_rngs={"params": False}
    )
    for _ in range(3):
        with pytest.warns(nn.LiftWarning, match="LX202"):
            same_for_all().init(KEY, X)


def test_programs_go_with_their_class() -> None:
    def use() -> Any:
        Block, _ = counting()
        for _ in range(3):
            Block().init(KEY, X)
        return weakref.ref(Block)

    block = use()
    gc.collect()
    assert block() is None
