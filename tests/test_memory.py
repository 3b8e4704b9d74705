"""Nothing is kept of the models that a program has finished with."""

from __future__ import annotations

import gc
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ours
from helpers.models import cheap

MODELS = 2000


def _build(lib: Any, number: int) -> None:
    """One small module class and instance unlike any other, traced through jit and dropped."""
    nn = lib.nn

    class Small(nn.Module):
        scale: int

        @nn.compact
        def __call__(self, x):
            y = x * self.param("w", cheap, ()) * self.scale
            self.sow("intermediates", "y", y)
            return y

    model = nn.jit(Small)(scale=number)
    # Traced through both jits, not compiled: what XLA keeps is not what is measured here.
    variables = {"params": {"w": jnp.ones(())}}
    jax.jit(lambda v, x: model.apply(v, x)).trace(variables, jnp.ones(()))
    if number % 100 == 0:
        model.init(jax.random.key(0), jnp.ones(()))


def _modules(lib: Any) -> int:
    return sum(issubclass(type(found), lib.nn.Module) for found in gc.get_objects())


def _classes(lib: Any) -> int:
    return sum(
        isinstance(found, type) and issubclass(found, lib.nn.Module) for found in gc.get_objects()
    )


def _settle() -> None:
    for _ in range(3):
        gc.collect()


def test_two_thousand_modules_leave_nothing_behind() -> None:
    lib = ours()
    for i in range(20):  # whatever is made once
        _build(lib, -1 - i)
    _settle()
    modules, classes = _modules(lib), _classes(lib)
    for i in range(MODELS // 2):
        _build(lib, i)
    _settle()
    before = sys.getallocatedblocks()
    for i in range(MODELS // 2, MODELS):
        _build(lib, i)
    _settle()
    after = sys.getallocatedblocks()
    assert _modules(lib) <= modules + 1
    assert _classes(lib) <= classes + 1
    # Blocks, for a table of Python's own that grows is one of them, however large. A model kept
    # would be dozens.
    assert after - before < 5 * (MODELS // 2)


def test_an_applied_model_is_freed_with_its_last_reference() -> None:
    import weakref

    lib = ours()
    nn = lib.nn

    class Small(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return nn.Dense(2, kernel_init=cheap)(c), x

    def use() -> Any:
        model = nn.scan(Small, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)()
        variables = model.init(jax.random.key(0), jnp.ones(2), None)
        bound = model.bind(variables)
        bound(jnp.ones(2), None)
        return weakref.ref(model), weakref.ref(bound)

    references = use()
    gc.collect()
    assert [ref() for ref in references] == [None, None]


@pytest.mark.parametrize("lift", ["scan", "vmap", "remat", "jit", "none"])
def test_a_call_leaves_no_cycles(lift: str) -> None:
    """What a call has made goes with its last reference, before the collector comes."""
    lib = ours()
    nn = lib.nn

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.Dense(2, kernel_init=cheap)(x)

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return Layer()(c), x

    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    lifted = {
        "scan": lambda: nn.scan(Body, length=2, **axes),
        "vmap": lambda: nn.vmap(Body, in_axes=None, axis_size=2, **axes),
        "remat": lambda: nn.remat(Body),
        "jit": lambda: nn.jit(Body),
        "none": lambda: Body,
    }[lift]()

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lifted()(x, None)[0]

    variables = Model().init(jax.random.key(0), jnp.ones(2))

    def trace() -> None:
        jax.jit(lambda v, x: Model().apply(v, x)).trace(variables, jnp.ones(2))

    for _ in range(2):
        trace()
    _settle()
    gc.disable()
    try:
        trace()
        kept = _modules(lib)
        gc.collect()
        assert kept == _modules(lib)
    finally:
        gc.enable()
