"""Which calls interceptors hear of, one by one, in every lift and every layer: Linen's.

Two things are left out of the comparison, and stand in guides/differences.md: what is traced once
here and more often in Linen is heard once, and the module of a ``<lambda>`` event (a module that a
lift takes) is the module itself; in Linen it is a copy without a place, whose ``setup`` runs
besides.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, linen, ours
from helpers.run import keys

X, XS = jnp.ones((2, 4)), jnp.ones((2, 3, 4))
SPLIT: Any = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED: Any = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
LOOP: Any = {"variable_broadcast": "params", "split_rngs": {"params": False}, "length": 2}


def body(m, x):
    return jnp.tanh(m.helper(x))


def other(m, x):
    return m.helper(x) * 2.0


def direct(m, x):
    return m(x)


def once(nn, m, x, fn):
    """A `while_loop` makes no variables."""
    if m.is_initializing():
        return fn(m, x)
    return nn.while_loop(lambda m, c: c[1] < 2, lambda m, c: (fn(m, c[0]), c[1] + 1), m, (x, 0))[0]


# Of the module that runs (`fn` is `body`), or of another one that it made (`direct`).
FUNCTIONS: dict[str, Any] = {
    "jit": lambda nn, m, x, fn: nn.jit(fn)(m, x),
    "remat": lambda nn, m, x, fn: nn.remat(fn)(m, x),
    "remat of remat": lambda nn, m, x, fn: nn.remat(nn.remat(fn))(m, x),
    "vmap": lambda nn, m, x, fn: nn.vmap(fn, **SHARED)(m, x),
    "scan": lambda nn, m, x, fn: nn.scan(lambda m, c, _: (fn(m, c), None), **LOOP)(m, x, None)[0],
    "map_variables": lambda nn, m, x, fn: (
        nn.map_variables(fn, "params")(m, x) if not m.is_initializing() else fn(m, x)
    ),
    "fold_rngs": lambda nn, m, x, fn: nn.fold_rngs(fn)(m, x),
    "named_call": lambda nn, m, x, fn: nn.named_call(fn)(m, x),
    "vjp": lambda nn, m, x, fn: nn.vjp(fn, m, x)[1](x)[1],
    "grad": lambda nn, m, x, fn: nn.grad(lambda m, x: fn(m, x).sum(), m, x)[0],
    "value_and_grad": lambda nn, m, x, fn: nn.value_and_grad(lambda m, x: fn(m, x).sum(), m, x)[0],
    "jvp": lambda nn, m, x, fn: nn.jvp(fn, m, (x,), (x,), {})[1],
    "cond": lambda nn, m, x, fn: nn.cond(True, fn, lambda m, x: fn(m, x), m, x),
    "switch": lambda nn, m, x, fn: nn.switch(1, [fn, lambda m, x: fn(m, x), fn], m, x),
    "while_loop": once,
    "cond in remat": lambda nn, m, x, fn: nn.remat(lambda m, x: nn.cond(True, fn, fn, m, x))(m, x),
    "cond in cond": lambda nn, m, x, fn: nn.cond(
        True, lambda m, x: nn.cond(True, fn, fn, m, x), fn, m, x
    ),
    "twice": lambda nn, m, x, fn: nn.remat(fn)(m, nn.remat(fn)(m, x)),
}


def of_function(lib: Library, name: str, fn: Any) -> Any:
    nn = lib.nn

    class Below(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    class Model(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def helper(self, x):
            return self.dense(x)

        @nn.compact
        def __call__(self, x):
            return FUNCTIONS[name](nn, self if fn is body else Below(), x, fn)

    return Model(), (X,)


def classes(lib: Library) -> dict[str, Any]:
    nn = lib.nn

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4)(x), None

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    class WithSetup(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        def __call__(self, x):
            return self.dense(x)

    class Scoped(nn.Module):
        @nn.compact_name_scope
        def up(self, x):
            return nn.Dense(4)(x)

        @nn.compact_name_scope
        def down(self, x):
            return nn.Dense(4)(self.helper(x))

        def helper(self, x):
            return x

        def __call__(self, x):
            return self.down(self.up(x))

    class Decorated(nn.Module):
        @nn.remat
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    class Inner(nn.Module):
        @nn.remat
        def inner(self, x):
            return x + 1

        @nn.compact
        def __call__(self, x):
            return self.inner(nn.Dense(4)(x))

    class Methods(nn.Module):
        def yes(self, x):
            return x

        def no(self, x):
            return x + 1

        @nn.compact
        def __call__(self, x):
            return nn.cond(True, self.yes, self.no, self, x)

    nest = nn.vmap(nn.scan(nn.remat(Step), length=2, **SPLIT), in_axes=(0, None), **SPLIT)
    images = jnp.ones((2, 3, 4, 4))
    return {
        "class: scan": (nn.scan(Step, length=2, **SPLIT)(), (X, None)),
        "class: vmap": (nn.vmap(nn.Dense, **SPLIT)(4), (X,)),
        "class: remat": (nn.remat(nn.Dense)(4), (X,)),
        "class: jit": (nn.jit(nn.Dense)(4), (X,)),
        "class: remat of setup": (nn.remat(WithSetup)(), (X,)),
        "class: fold_rngs": (nn.fold_rngs(nn.Dense)(4), (X,)),
        "class: remat_scan": (nn.remat_scan(Layer, lengths=(2,))(), (X,)),
        "class: vmap of scan of remat": (nest(), (X, None)),
        "class: remat of a decorated method": (nn.remat(Decorated)(), (X,)),
        "compact_name_scope": (Scoped(), (X,)),
        "a decorated method": (Decorated(), (X,)),
        "an inner decorated method": (Inner(), (X,)),
        "bound methods": (Methods(), (X,)),
        "RNN": (nn.RNN(nn.LSTMCell(4)), (XS,)),
        "RNN, reversed": (nn.RNN(nn.GRUCell(4), reverse=True, return_carry=True), (XS,)),
        "RNN of OptimizedLSTMCell": (nn.RNN(nn.OptimizedLSTMCell(4)), (XS,)),
        "RNN of ConvLSTMCell": (nn.RNN(nn.ConvLSTMCell(4, (3,))), (images,)),
        "RNN of MGUCell": (nn.RNN(nn.MGUCell(4)), (XS,)),
        "RNN of SimpleCell": (nn.RNN(nn.SimpleCell(4)), (XS,)),
        "Bidirectional": (
            nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))),
            (XS,),
        ),
        "SpectralNorm": (nn.SpectralNorm(nn.Dense(4)), (X,), {"update_stats": True}),
        "WeightNorm": (nn.WeightNorm(nn.Dense(4)), (X,)),
        "attention": (nn.MultiHeadAttention(2, normalize_qk=True), (XS,)),
        "Sequential": (nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)]), (X,)),
        "BatchNorm": (nn.BatchNorm(use_running_average=False), (X,)),
        "LayerNorm": (nn.LayerNorm(), (X,)),
        "InstanceNorm": (nn.InstanceNorm(), (XS,)),
        "GroupNorm": (nn.GroupNorm(2), (X,)),
        "RMSNorm": (nn.RMSNorm(), (X,)),
        "Conv": (nn.Conv(4, (3,)), (XS,)),
        "ConvTranspose": (nn.ConvTranspose(4, (3,)), (XS,)),
        "ConvLocal": (nn.ConvLocal(4, (3,)), (XS,)),
        "DenseGeneral": (nn.DenseGeneral((2, 2)), (X,)),
        "Einsum": (nn.Einsum((4, 3), "ab,bc->ac"), (X,)),
        "Embed": (nn.Embed(5, 4), (jnp.ones((3,), int),)),
        "PReLU": (nn.PReLU(), (X,)),
        "Dropout": (nn.Dropout(0.5, deterministic=False), (X,)),
    }


# `map_variables` of Linen runs the layer before its mapping, and after it.
RUN_TWICE = ("SpectralNorm", "WeightNorm")


def events(call: Any) -> list[tuple[str, str, Any]]:
    """What is heard while ``call`` is traced: class, method, path."""
    log: list[tuple[str, str, Any]] = []

    def note(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        place = None if context.method_name == "<lambda>" else context.module.path
        log.append((type(context.module).__name__, context.method_name, place))
        return run(*args, **kwargs)

    jax.eval_shape(lambda: call(note))
    return log


def without_trials(log: list[Any]) -> list[Any]:
    """Without Linen's ``setup`` of a copy: right before its ``<lambda>``, of the same class."""
    return [
        event
        for event, after in zip(log, [*log[1:], ("", "", None)], strict=True)
        if not (event[1] == "setup" and after == (event[0], "<lambda>", None))
    ]


def traced_once(log: list[Any]) -> list[Any]:
    """With a run of events that is repeated at once as one."""
    for size in range(len(log) // 2, 0, -1):
        for i in range(len(log) - 2 * size + 1):
            if log[i : i + size] == log[i + size : i + 2 * size]:
                return traced_once([*log[:i], *log[i + size :]])
    return log


def heard(lib: Library, model: Any, args: Any, kwargs: Any) -> list[list[Any]]:
    def init(note: Any) -> Any:
        with lib.nn.intercept_methods(note):
            return model.init(keys(), *args, **kwargs)

    def apply(note: Any) -> Any:
        variables = model.init(keys(), *args, **kwargs)
        with lib.nn.intercept_methods(note):
            return model.apply(variables, *args, **kwargs, rngs=keys(), mutable=["batch_stats"])

    return [traced_once(without_trials(events(call))) for call in (init, apply)]


@pytest.mark.parametrize("fn", [body, direct], ids=["itself", "another"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_lifted_function(name: str, fn: Any) -> None:
    found, expected = (heard(lib, *of_function(lib, name, fn), {}) for lib in (ours(), linen()))
    assert found == expected


@pytest.mark.parametrize("name", classes(ours()))
def test_a_lifted_class_or_a_layer(name: str) -> None:
    def of(lib: Library) -> Any:
        model, args, *kwargs = classes(lib)[name]
        return heard(lib, model, args, kwargs[0] if kwargs else {})

    found, expected = of(ours()), of(linen())
    if name in RUN_TWICE:
        found, expected = ([set(log) for log in logs] for logs in (found, expected))
    assert found == expected


def test_what_is_made_of_a_lift_s_announcement_is_lost() -> None:
    """A change of inputs and outputs is made once, by the event of the method itself."""

    def double(run: Any, args: Any, kwargs: Any, context: Any) -> Any:
        return run(*[2 * x for x in args], **kwargs)

    def out(lib: Library) -> float:
        nn = lib.nn

        class Same(nn.Module):
            def __call__(self, x):
                return x

        with nn.intercept_methods(double):
            return float(nn.remat(nn.jit(Same))().apply({}, 1.0))

    assert out(ours()) == out(linen()) == 2.0
