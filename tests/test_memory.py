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

pytestmark = pytest.mark.usefixtures("compiled_quickly")

MODELS = 2000


@pytest.fixture(autouse=True)
def own_heap():
    """The collector looks at what a test makes, and not at all that the tests before it left."""
    gc.freeze()  # garbage with the rest: to look for it would be to look at everything
    yield
    gc.unfreeze()


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


AXES: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}

LIFTS: dict[str, Any] = {
    "none": lambda nn, body: body,
    "scan": lambda nn, body: nn.scan(body, length=2, **AXES),
    "scan, remat": lambda nn, body: nn.scan(nn.remat(body), length=2, **AXES),
    "stack": lambda nn, body: (
        lambda: lambda x, _: nn.Stack(body(), 2, outputs=True, remat=nn.Remat())(x, None)
    ),
    "vmap": lambda nn, body: nn.vmap(body, in_axes=None, axis_size=2, **AXES),
    "remat": lambda nn, body: nn.remat(body),
    "remat, policy": lambda nn, body: nn.remat(
        body, policy=jax.checkpoint_policies.dots_saveable, prevent_cse=False
    ),
    "jit": lambda nn, body: nn.jit(body),
    "jit, remat": lambda nn, body: nn.jit(nn.remat(body)),
    "map_variables": lambda nn, body: nn.map_variables(
        body, "params", lambda v: jax.tree.map(lambda w: 2 * w, v), init=True
    ),
    "fold_rngs": lambda nn, body: nn.fold_rngs(body),
    "vjp": lambda nn, body: lambda: lambda x, _: nn.vjp(lambda m, x: m(x, None)[0], body(), x),
    "jvp": lambda nn, body: (
        lambda: lambda x, _: nn.jvp(lambda m, x: m(x, None)[0], body(), (x,), (x,), {})
    ),
    "grad": lambda nn, body: (
        lambda: lambda x, _: (nn.grad(lambda m, x: m(x, None)[0].sum(), body(), x),)
    ),
    "custom_vjp": lambda nn, body: (
        lambda: (
            lambda x, _: (
                nn.custom_vjp(
                    lambda m, x: m(x, None)[0],
                    forward_fn=lambda m, x: nn.vjp(lambda m, x: m(x, None)[0], m, x),
                    backward_fn=lambda pull, g: pull(g),
                )(body(), x),
            )
        )
    ),
    "cond": lambda nn, body: (
        lambda: (
            lambda x, _: (
                nn.cond(
                    x.sum() > 0, lambda m, x: m(x, None)[0], lambda m, x: -m(x, None)[0], body(), x
                ),
            )
        )
    ),
    "switch": lambda nn, body: (
        lambda: (
            lambda x, _: (
                nn.switch((x.sum() > 0).astype(int), [lambda m, x: m(x, None)[0]] * 2, body(), x),
            )
        )
    ),
    "while_loop": lambda nn, body: lambda: lambda x, _: (_looped(nn, body(), x),),
}


def _looped(nn: Any, module: Any, x: Any) -> Any:
    module(x, None)  # what the loop reads is made before it
    return nn.while_loop(lambda m, x: x.sum() < 10, lambda m, x: m(x, None)[0] + 1, module, x)


def _tracer(lift: str, differentiated: bool) -> tuple[Any, Any]:
    """A function that traces a model with the lift in it, and the library."""
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

    lifted = LIFTS[lift](nn, Body)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return lifted()(x, None)[0]

    variables = Model().init(jax.random.key(0), jnp.ones(2))

    def loss(v: Any, x: Any) -> Any:
        return sum(y.sum() for y in jax.tree.leaves(Model().apply(v, x)))

    differentiated = differentiated and lift != "while_loop"
    fn = jax.grad(loss) if differentiated else loss

    def trace() -> None:
        jax.jit(lambda v, x: fn(v, x)).trace(variables, jnp.ones(2))

    return trace, lib


def _scopes() -> int:
    from liftax.core import Scope

    return sum(type(found) is Scope for found in gc.get_objects())


@pytest.mark.parametrize("differentiated", [False, True])
@pytest.mark.parametrize("lift", LIFTS)
def test_nothing_that_a_call_made_stays_in_a_cache(lift: str, differentiated: bool) -> None:
    """A scope that is kept keeps all arrays of its call."""
    trace, lib = _tracer(lift, differentiated)
    for _ in range(2):
        trace()
    _settle()
    before = _scopes(), _modules(lib)
    for _ in range(3):
        trace()
    _settle()
    assert (_scopes(), _modules(lib)) == before


@pytest.mark.parametrize("lift", ["scan", "vmap", "remat", "jit", "none"])
def test_a_call_leaves_no_cycles(lift: str) -> None:
    """What a call has made goes with its last reference, before the collector comes."""
    trace, lib = _tracer(lift, False)
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
