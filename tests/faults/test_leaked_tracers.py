"""Nothing of a trace lives on in a lift when the trace has ended.

`jax.checking_leaks` is quiet, and no reference cycle keeps tracers until the collector comes.
"""

from __future__ import annotations

import ast
import contextlib
import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY, X = jax.random.key(0), jnp.ones((2, 4))
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}


def body(module, x):
    return jnp.tanh(module.dense(x))


def same(variables):
    return variables


def scanned(module, x):
    """Shared variables, an output that is the same in each iteration, and one that is not."""

    def step(module, carry, _):
        y = body(module, carry)
        return y, (y, module.dense.variables["params"]["kernel"].sum())

    loop = nn.scan(
        step,
        length=2,
        variable_broadcast="params",
        split_rngs={"params": False},
        out_axes=(0, nn.broadcast),
    )
    y, (_, total) = loop(module, x, None)
    return y + total


def counted(module, x):
    """A carried variable that the body makes, one that it makes in another lift."""

    def step(module, carry, _):
        count = module.variable("state", "count", lambda: jnp.zeros(()))
        count.value += 1
        return nn.remat(body)(module, carry), None

    loop = nn.scan(
        step,
        length=2,
        variable_carry="state",
        variable_broadcast="params",
        split_rngs={"params": False},
    )
    return loop(module, x, None)[0]


def partly_mapped(module, x):
    """An output that is no batch's."""
    mapped = nn.vmap(
        lambda m, x: (body(m, x), m.dense.variables["params"]["bias"]), out_axes=(0, None), **SHARED
    )
    y, bias = mapped(module, x)
    return y + bias


def once_and_again(module, x):
    if module.is_initializing():
        return body(module, x)
    return nn.while_loop(
        lambda m, c: c[1] < 2, lambda m, c: (body(m, c[0]), c[1] + 1), module, (x, 0)
    )[0]


def custom(module, x):
    return nn.custom_vjp(body, lambda m, x: nn.vjp(body, m, x), lambda f, bar: f(bar))(module, x)


def choose(module, x):
    def grows(module, x):
        module.sow("intermediates", "seen", x)
        return body(module, x)

    return nn.switch(1, [body, grows, body], module, nn.cond(True, body, body, module, x))


FUNCTIONS = {
    "jit": lambda module, x: nn.jit(body)(module, x),
    "remat": lambda module, x: nn.remat(body)(module, x),
    "scan": scanned,
    "scan of a carried variable": counted,
    "vmap": lambda module, x: nn.vmap(body, **SHARED)(module, x),
    "vmap of an output without axis": partly_mapped,
    "map_variables": lambda module, x: nn.map_variables(body, "params", same, same, init=True)(
        module, x
    ),
    "vjp": lambda module, x: nn.vjp(body, module, x)[1](x)[1],
    "grad": lambda module, x: nn.grad(lambda m, x: body(m, x).sum(), module, x)[0],
    "value_and_grad": lambda module, x: nn.value_and_grad(lambda m, x: body(m, x).sum(), module, x)[
        1
    ][0],
    "jvp": lambda module, x: nn.jvp(body, module, (x,), (x,), {})[1],
    "custom_vjp": custom,
    "cond and switch": choose,
    "while_loop": once_and_again,
    "fold_rngs": lambda module, x: nn.fold_rngs(body)(module, x),
    "add_metadata_axis": lambda module, x: nn.add_metadata_axis(body)(module, x),
}


class Step(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return nn.Dense(4)(x), None


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dropout(0.5, deterministic=self.is_initializing())(nn.Dense(4)(x))


CLASSES = {
    "class: scan": lambda: (nn.scan(Step, length=2, **STACKED)(), (X, None)),
    "class: vmap": lambda: (nn.vmap(nn.Dense, **STACKED)(4), (X,)),
    "class: remat": lambda: (nn.remat(nn.Dense)(4), (X,)),
    "class: jit": lambda: (nn.jit(nn.Dense)(4), (X,)),
    "class: remat_scan": lambda: (nn.remat_scan(Layer, lengths=(2,))(), (X,)),
    "class: vmap of scan of remat": lambda: (
        nn.vmap(nn.scan(nn.remat(Step), length=2, **STACKED), in_axes=(0, None), **STACKED)(),
        (X, None),
    ),
    "RNN": lambda: (nn.RNN(nn.LSTMCell(4)), (jnp.ones((2, 3, 4)),)),
}


LAYERS = {
    "RNN of a module from outside": nn.RNN(nn.GRUCell(4)),
    "Bidirectional": nn.Bidirectional(nn.RNN(nn.GRUCell(4)), nn.RNN(nn.GRUCell(4))),
    "Sequential": nn.Sequential([nn.Dense(4), nn.LayerNorm(), nn.remat(nn.Dense)(4)]),
    "WeightNorm": nn.WeightNorm(nn.Dense(4)),
    "BatchNorm": nn.BatchNorm(use_running_average=False),
    "attention": nn.MultiHeadDotProductAttention(num_heads=2),
    "Stack": nn.Stack(Layer(), depth=2),
    "Stack, checkpointed": nn.Stack(Layer(), depth=2, remat=nn.Remat()),
}
"""Counted only: most of them hold others."""


def model_of(name):
    if name in LAYERS:
        return LAYERS[name], (jnp.ones((2, 3, 4)),)
    if name in CLASSES:
        return CLASSES[name]()
    lifted = FUNCTIONS[name]

    class Model(nn.Module):
        def setup(self):
            self.dense = nn.Dense(4)

        @nn.compact
        def __call__(self, x):
            return lifted(self, x)

    return Model(), (X,)


@contextlib.contextmanager
def few_objects():
    """Lets each of JAX's many collections look at what is new only."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


# Linen's leak there as well: JAX keeps the functions, and they what is around them.
KEPT_BY_JAX = {("custom_vjp", way) for way in ("grad", "jit(init)", "jit(grad)")}
MUTABLE = ["state", "intermediates", "batch_stats"]
IMPOSSIBLE = {("while_loop", "grad"), ("while_loop", "jit(grad)")}


def runs_of(name):
    """Returns what is run of a model, by name."""
    model, args = model_of(name)
    rngs = {"params": KEY, "dropout": KEY}
    variables = {}

    def init(rngs):
        return model.init(rngs, *args)

    def loss(variables):
        y, _ = model.apply(variables, *args, rngs=rngs, mutable=MUTABLE)
        return sum(leaf.sum() for leaf in jax.tree.leaves(y))

    runs = {
        "init": lambda: variables.update(init(rngs)),
        "apply": lambda: loss(variables),
        "grad": lambda: jax.grad(loss)(variables),
        "jit(init)": lambda: jax.jit(lambda rngs: init(rngs))(rngs),
        "jit(grad)": lambda: jax.jit(lambda variables: jax.grad(loss)(variables))(variables),
    }
    return {way: run for way, run in runs.items() if (name, way) not in IMPOSSIBLE}


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_no_tracer_outlives_its_trace(name):
    with few_objects():
        for way, run in runs_of(name).items():
            if (name, way) not in KEPT_BY_JAX:
                with jax.checking_leaks():
                    run()


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES, *LAYERS])
def test_no_tracer_waits_for_the_collector(name):
    """Linen leaves some in most of these cases, up to 70."""
    left = {}
    for way, run in runs_of(name).items():
        with few_objects():
            gc.disable()
            try:
                run()
                left[way] = len([o for o in gc.get_objects() if isinstance(o, jax.core.Tracer)])
            finally:
                gc.enable()
    assert left == dict.fromkeys(left, 0)


def test_no_function_in_a_function_calls_itself():
    """It would be a cycle, with all that it has seen."""
    found = []
    for file in Path(nn.__file__).parent.rglob("*.py"):
        outer = [node for node in ast.walk(ast.parse(file.read_text())) if is_function(node)]
        inner = {node for fn in outer for node in ast.walk(fn) if node is not fn}
        found += [
            f"{file.name}: {fn.name}"
            for fn in filter(is_function, inner)
            if any(isinstance(node, ast.Name) and node.id == fn.name for node in ast.walk(fn))
        ]
    assert found == []


def is_function(node):
    return isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))


def test_the_check_would_tell():
    kept = []

    def leak(x):
        kept.append(x * 2)
        return x

    with few_objects(), jax.checking_leaks(), pytest.raises(Exception, match="Leaked trace"):
        jax.make_jaxpr(leak)(1.0)
