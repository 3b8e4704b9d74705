"""Every lift times every small module: variables, outputs, mutated collections and gradients.

A row of the table builds a module around one of the blocks. Where the reference itself fails for
a block, the row says so in `but`; what liftax does there is tested elsewhere.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both
from helpers.models import BLOCKS, SHARED, WIDTH, block, mapped, scanned
from helpers.run import MUTABLE, everything, ramp

ONE = (ramp(WIDTH), ramp(WIDTH, start=0.3))
TWO = (ramp(2, WIDTH), ramp(2, WIDTH, start=0.3))
LOOP = (ramp(WIDTH), ramp(2, WIDTH, start=0.3))


@dataclasses.dataclass(frozen=True)
class Row:
    """One lift: how to build the model, what to call it with, blocks that are left out."""

    build: Callable[[Library, Any], Any]
    args: tuple[Any, ...] = ONE
    but: tuple[str, ...] = ()
    mutable: Any = MUTABLE


ROWS: dict[str, Row] = {}


def row(args: tuple[Any, ...] = ONE, but: tuple[str, ...] = (), mutable: Any = MUTABLE) -> Any:
    def add(build: Callable[[Library, Any], Any]) -> Any:
        ROWS[build.__name__] = Row(build, args, but, mutable)
        return build

    return add


def with_block(lib: Library, target: Any, run: Callable[..., Any], *, setup: bool) -> Any:
    """A module that holds one block and calls ``run(self, inner, c, x)``."""
    nn = lib.nn

    if setup:

        class Setup(nn.Module):
            def setup(self):
                self.inner = target()

            def __call__(self, c, x):
                return run(self, self.inner, c, x)

        return Setup()

    class Compact(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return run(self, target(), c, x)

    return Compact()


@row(LOOP)
def scan(lib: Library, target: Any) -> Any:
    return scanned(lib, target, reverse=True)()


@row(LOOP, but=("batch_norm", "state"))
def scan_shared(lib: Library, target: Any) -> Any:
    shared = {**SHARED, "variable_axes": {"intermediates": 0}}
    return with_block(
        lib, scanned(lib, target, **shared), lambda mdl, inner, c, x: inner(c, x), setup=False
    )


@row(TWO)
def vmap(lib: Library, target: Any) -> Any:
    return with_block(lib, mapped(lib, target), lambda mdl, inner, c, x: inner(c, x), setup=True)


@row(TWO)
def vmap_shared(lib: Library, target: Any) -> Any:
    axes = {"params": None, "batch_stats": 0, "intermediates": 0}
    split = {"params": False, "dropout": True}
    return mapped(lib, target, variable_axes=axes, split_rngs=split)()


@row()
def remat(lib: Library, target: Any) -> Any:
    return with_block(lib, lib.nn.remat(target), lambda mdl, inner, c, x: inner(c, x), setup=True)


@row()
def remat_with_policy(lib: Library, target: Any) -> Any:
    policy = jax.checkpoint_policies.dots_saveable
    return lib.nn.checkpoint(target, policy=policy, prevent_cse=False)()


@row()
def remat_function(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        return lib.nn.remat(lambda m, c, x: m(c, x))(inner, c, x)

    return with_block(lib, target, run, setup=False)


def _one_argument(lib: Library, target: Any) -> Any:
    nn = lib.nn

    class Chained(nn.Module):
        @nn.compact
        def __call__(self, c):
            return target()(c, c)[0]

    return Chained


@row((ONE[0],), but=("boxed",))
def remat_scan(lib: Library, target: Any) -> Any:
    return lib.nn.remat_scan(_one_argument(lib, target), lengths=(3,))()


@row((ONE[0],), but=("boxed",))
def remat_scan_of_two_levels(lib: Library, target: Any) -> Any:
    return lib.nn.remat_scan(_one_argument(lib, target), lengths=(2, 2))()


@row()
def jit(lib: Library, target: Any) -> Any:
    return lib.nn.jit(target)()


@row()
def jit_function(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        return lib.nn.jit(lambda m, c, x: m(c, x))(inner, c, x)

    return with_block(lib, target, run, setup=True)


@row()
def vjp(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        out, back = lib.nn.vjp(lambda m, c, x: m(c, x), inner, c, x)
        return out, back(jax.tree.map(jnp.ones_like, out))[1:]

    return with_block(lib, target, run, setup=False)


@row()
def vjp_of_variables(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)

        def loss(m: Any, c: Any, x: Any) -> Any:
            y, z = m(c, x)
            return y, z

        out, back, aux = lib.nn.vjp(loss, inner, c, x, has_aux=True)
        return out, aux, back(jnp.ones_like(out))

    return with_block(lib, target, run, setup=True)


@row()
def jvp(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)
        params = inner.variables.get("params", {})
        tangents = {"params": jax.tree.map(jnp.ones_like, params)}
        return lib.nn.jvp(
            lambda m, c, x: m(c, x), inner, (c, x), (jnp.cos(c), jnp.sin(x)), tangents
        )

    return with_block(lib, target, run, setup=False)


def _loss(mdl: Any, c: Any, x: Any) -> Any:
    y, z = mdl(c, x)
    return jnp.sum(y * jnp.arange(1.0, WIDTH + 1.0)) + jnp.sum(z)


@row()
def grad(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)
        return lib.nn.grad(_loss, inner, c, x)

    return with_block(lib, target, run, setup=True)


@row()
def value_and_grad(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)

        def loss(m: Any, c: Any, x: Any) -> Any:
            return _loss(m, c, x), {"seen": x * 2.0}

        return lib.nn.value_and_grad(loss, inner, c, x, has_aux=True)

    return with_block(lib, target, run, setup=False)


@row(but=("batch_norm", "sow"))
def custom_vjp(lib: Library, target: Any) -> Any:
    nn = lib.nn

    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        def call(m: Any, c: Any, x: Any) -> Any:
            return m(c, x)

        def forward(m: Any, c: Any, x: Any) -> Any:
            return nn.vjp(call, m, c, x)

        def backward(back: Any, cotangents: Any) -> Any:
            params, dc, dx = back(cotangents)
            return jax.tree.map(jnp.sign, params), dc * 2.0, dx

        inner(c, x)
        return nn.custom_vjp(call, forward_fn=forward, backward_fn=backward)(inner, c, x)

    return with_block(lib, target, run, setup=True)


# What a block sows is lost in the reference's loop; liftax says so.
@row(but=("batch_norm", "state", "sow"))
def while_loop(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)

        def go_on(m: Any, state: Any) -> Any:
            return state[0] < 3

        def step(m: Any, state: Any) -> Any:
            index, c, x = state
            return (index + 1, *m(c, x))

        state = (0, jax.lax.stop_gradient(c), jax.lax.stop_gradient(x))
        split = {"params": False, "dropout": True}
        done = lib.nn.while_loop(go_on, step, inner, state, split_rngs=split)
        return jax.lax.stop_gradient(done)

    return with_block(lib, target, run, setup=False)


@row(but=("batch_norm",), mutable=False)
def cond(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)
        out = []
        for limit in (-100.0, 100.0):
            chosen = lib.nn.cond(
                jnp.sum(c) > limit,
                lambda m, c, x: m(c, x),
                lambda m, c, x: (m(c, x)[0] * 2.0, x),
                inner,
                c,
                x,
            )
            out.append(chosen)
        return out

    return with_block(lib, target, run, setup=True)


@row(but=("batch_norm",), mutable=False)
def switch(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        inner(c, x)
        branches = [
            lambda m, c, x: m(c, x),
            lambda m, c, x: (m(c, x)[0] * 2.0, x),
            lambda m, c, x: (c, x),
        ]
        index = jnp.argmax(c)
        return [lib.nn.switch((index + i) % 3, branches, inner, c, x) for i in range(3)]

    return with_block(lib, target, run, setup=False)


def _doubled(collections: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * 2.0, collections)


def _halved(collections: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * 0.5, collections)


@row(but=("batch_norm",), mutable=False)
def map_variables(lib: Library, target: Any) -> Any:
    return lib.nn.map_variables(target, "params", _doubled, _halved, init=True)()


@row(but=("batch_norm",), mutable=False)
def map_variables_function(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        first = inner(c, x)
        other = lib.nn.map_variables(lambda m, c, x: m(c, x), "params", _doubled)
        return first, other(inner, c, x)

    return with_block(lib, target, run, setup=True)


@row(LOOP)
def add_metadata_axis(lib: Library, target: Any) -> Any:
    named = lib.nn.add_metadata_axis(
        target, variable_axes={"params": 0}, metadata_params={"partition_name": "extra"}
    )
    return with_block(lib, named, lambda mdl, inner, c, x: inner(c, x[0]), setup=False)


@row()
def named_call(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        return lib.nn.named_call(lambda m, c, x: m(c, x))(inner, c, x)

    return with_block(lib, target, run, setup=True)


@row()
def fold_rngs(lib: Library, target: Any) -> Any:
    def run(mdl: Any, inner: Any, c: Any, x: Any) -> Any:
        return lib.nn.fold_rngs(lambda m, c, x: m(c, x))(inner, c, x)

    return with_block(lib, target, run, setup=False)


@functools.cache
def table() -> list[Any]:
    return [
        pytest.param(lift, name, id=f"{lift}-{name}")
        for lift, entry in ROWS.items()
        for name in BLOCKS
        if name not in entry.but
    ]


@pytest.mark.parametrize(("lift", "name"), table())
def test_lift(lift: str, name: str) -> None:
    entry = ROWS[lift]
    both(
        lambda lib: everything(
            entry.build(lib, block(name, lib)), entry.args, mutable=entry.mutable
        )
    )


def test_every_lift_has_a_row() -> None:
    names = {
        "scan", "vmap", "remat", "remat_scan", "jit", "vjp", "jvp", "grad", "value_and_grad",
        "custom_vjp", "while_loop", "cond", "switch", "map_variables", "add_metadata_axis",
        "named_call", "fold_rngs",
    }  # fmt: skip
    assert names <= set(ROWS)
