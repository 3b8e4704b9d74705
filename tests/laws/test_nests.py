"""Laws: a random nest of lifts equals the Python loops that it stands for."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers.compare import ON_FLAX, assert_same, ours
from helpers.interpret import interpret
from helpers.nests import (
    DERIVATIVES,
    MODES,
    WIDTH,
    Loops,
    Nest,
    draws_before,
    forward_and_back,
    lifted,
    nests,
)
from hypothesis import given, settings

# What the installed reference cannot do, when these tests are checked on it.
CARRIES = not ON_FLAX
IDENTITIES = ("remat",) if ON_FLAX else ("remat", "jit", "map")
BRANCHES = () if ON_FLAX else ("cond", "switch")
DEVICES = () if ON_FLAX else ("pipeline", "shard_map")
VALUES = ("vjp",) if ON_FLAX else (*DERIVATIVES, "checkify")


def inputs(nest: Nest) -> tuple[Any, Any, Any]:
    c, x = (WIDTH,), (WIDTH,)
    for level in reversed(nest):
        if level.is_loop and level.x_axis is not None:
            x = _grown(x, level.x_axis, level.size)
        if level.kind == "vmap":
            c = _grown(c, level.c_axis, level.size)
    size = int(np.prod(x))
    carry = np.arange(np.prod(c), dtype=np.float32).reshape(c) % 11.0
    return carry, (np.arange(size, dtype=np.float32) * 5.0 % 13.0 - 6.0).reshape(x), np.float32(2)


def _grown(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (size, *shape) if axis == 0 else (*shape, size)


def check(nest: Nest, style: str) -> None:
    lib = ours()
    _, apply = lifted(lib, nest, style)
    args = inputs(nest)
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    # Variables are made without some levels: parameters that are not there yet have no gradient,
    # jit folds its keys, branches draw theirs in turn. There is no noise then.
    first = tuple(
        level for level in nest if level.kind not in (*DERIVATIVES, "jit", "shard_map", *BRANCHES)
    )
    if _map_shows(first):
        first = tuple(level for level in first if level.kind != "map")
    if first != nest:
        del keys["dropout"]
    out, variables = interpret(lifted(lib, first, style)[0], keys, *args)
    same((out, variables), Loops(lib, "init").run(first, {}, keys, *args), "init")
    del keys["params"]
    for mode in ("train", "eval"):
        mutable = MODES[mode]
        found = interpret(
            lambda variables, keys, *args, m=mutable: apply(variables, keys, m, *args),
            variables, keys, *args,
        )  # fmt: skip
        same(found, Loops(lib, mode).run(nest, variables, keys, *args), mode)


def _map_shows(nest: Nest) -> bool:
    """Tells whether it shows that Linen's `map_variables` runs its body twice in init.

    There no plain loop says what comes out: tests/parity/test_map_variables.py compares it.
    """
    maps = sum(level.kind == "map" for level in nest)
    shared = any(level.kind == "scan" and None in (level.params, level.stats) for level in nest)
    return maps > 1 or (maps == 1 and shared)


def same(found: Any, expected: Any, what: str) -> None:
    """Equal; adding zero makes -0.0 and 0.0 one number."""
    plus_zero = [jax.tree.map(lambda leaf: np.asarray(leaf) + 0.0, t) for t in (found, expected)]
    assert_same(*plus_zero, what)


@settings(max_examples=70)
@given(nests(("scan", "vmap"), carries=CARRIES))
def test_loops_of_functions(nest: Nest) -> None:
    check(nest, "functions")


@settings(max_examples=50)
@given(nests(("scan", "vmap", *VALUES, *IDENTITIES, *BRANCHES), carries=CARRIES))
def test_any_lifts_of_functions(nest: Nest) -> None:
    check(nest, "functions")


@settings(max_examples=3)
@given(nests(("vmap", *DEVICES), carries=CARRIES, deepest=2))
def test_lifts_over_devices(nest: Nest) -> None:
    """A pipeline of one microbatch is a loop, and a mesh of one device the body itself."""
    check(nest, "modules")


@settings(max_examples=50)
@given(nests(("scan", "vmap", *IDENTITIES), carries=CARRIES))
def test_lifts_of_modules(nest: Nest) -> None:
    check(nest, "modules")


@settings(max_examples=30)
@given(nests(("scan", "vmap", "remat"), carries=CARRIES, deepest=3))
def test_gradients(nest: Nest) -> None:
    """jax.grad through the nest is the loops backwards through the gradients of the body."""
    lib = ours()
    init, apply = lifted(lib, nest, "functions")
    args = inputs(nest)
    keys = {"params": jax.random.key(1), "dropout": jax.random.key(2)}
    _, variables = interpret(init, keys, *args)
    del keys["params"]

    def loss(params: Any, c: Any, x: Any) -> Any:
        out, _ = apply({**variables, "params": params}, keys, False, c, x, args[2])
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out))

    found = interpret(jax.grad(loss, argnums=(0, 1, 2)), variables["params"], *args[:2])
    out, back = forward_and_back(lib, nest, draws_before(nest, "eval"), variables, keys, *args)
    expected = back(jax.tree.map(lambda leaf: np.ones(np.shape(leaf), np.float32), out))
    same(found, expected, "gradients")
