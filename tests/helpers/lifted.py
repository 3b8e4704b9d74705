"""Every lift as a function of a module class, for modules that are called as ``module(x)``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from .compare import Library


def doubled(variables: Any) -> Any:
    return jax.tree.map(lambda v: v * 2, variables)


def halved(variables: Any) -> Any:
    return jax.tree.map(lambda v: v / 2, variables)


def looped(lib: Library, target: Any, **options: Any) -> Any:
    nn = lib.nn

    class Step(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            return target()(c), None

    class Loop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.scan(Step, length=2, **options)()(x, None)[0]

    return Loop


def called(lib: Library, target: Any, call: Callable[[Any, Any, Any], Any]) -> Any:
    nn = lib.nn

    class Call(nn.Module):
        @nn.compact
        def __call__(self, x):
            return call(nn, target(), x)

    return Call


def by_custom_vjp(nn: Any, inner: Any, x: Any) -> Any:
    def run(mdl: Any, x: Any) -> Any:
        return mdl(x)

    def forward(mdl: Any, x: Any) -> Any:
        return nn.vjp(run, mdl, x)

    return nn.custom_vjp(run, forward, lambda pull, bar: pull(bar))(inner, x)


EACH = {"params": True, "dropout": True}
LIFTS: dict[str, Callable[[Library, Any], Any]] = {
    "none": lambda lib, t: t,
    "jit": lambda lib, t: lib.nn.jit(t),
    "remat": lambda lib, t: lib.nn.remat(t),
    "vmap": lambda lib, t: lib.nn.vmap(t, variable_axes={True: 0}, split_rngs=EACH),
    "vmap_shared": lambda lib, t: lib.nn.vmap(
        t,
        variable_axes={"params": None, True: 0},
        split_rngs={"params": False, "dropout": False},
    ),
    "scan": lambda lib, t: looped(lib, t, variable_axes={True: 0}, split_rngs=EACH),
    "scan_shared": lambda lib, t: looped(
        lib,
        t,
        variable_broadcast="params",
        variable_axes={"state": 0, "seen": 0, "batch_stats": 0},
        split_rngs={"params": False, "dropout": True},
    ),
    "remat_scan": lambda lib, t: lambda: lib.nn.remat_scan(t, lengths=(2, 1))(),
    "cond": lambda lib, t: called(
        lib, t, lambda nn, m, x: nn.cond(True, lambda m, x: m(x), lambda m, x: m(x) * 2, m, x)
    ),
    "switch": lambda lib, t: called(
        lib, t, lambda nn, m, x: nn.switch(1, [lambda m, x: m(x) * 2, lambda m, x: m(x)], m, x)
    ),
    "vjp": lambda lib, t: called(lib, t, lambda nn, m, x: nn.vjp(lambda m, x: m(x), m, x)[0]),
    "jvp": lambda lib, t: called(
        lib, t, lambda nn, m, x: nn.jvp(lambda m, x: m(x), m, (x,), (x,), {})[0]
    ),
    "custom_vjp": lambda lib, t: called(lib, t, by_custom_vjp),
    "map_variables": lambda lib, t: lib.nn.map_variables(
        t, "params", doubled, halved, init=True, mutable=True
    ),
    "fold_rngs": lambda lib, t: lib.nn.fold_rngs(t),
}
