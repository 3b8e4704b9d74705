"""How often a body runs as Python, by the depth of the nest, for each lift alone and mixed.

Only flax.linen has these lifts, so the table compares the two of them; both run the code below.
``while_loop`` has no reverse derivative, and ``cond`` and ``switch`` make their variables outside
the branch, as linen asks for.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.table import Table, error_text
from benchmarks.timing import Settings

DEPTHS = range(1, 7)
LIBRARIES = {"liftax": "liftax", "flax.linen": "flax.linen"}
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}

Level = Callable[[Any, Any, jax.Array], jax.Array]


def call(module: Any, x: jax.Array) -> jax.Array:
    return module(x)


def scan(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.scan(lambda m, c, _: (m(c), None), length=2, **STACKED)(inner, x, None)[0]


def scan_broadcast(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    lifted = nn.scan(
        lambda m, c, _: (m(c), None),
        length=2,
        variable_broadcast="params",
        split_rngs={"params": False},
    )
    return lifted(inner, x, None)[0]


def vmap(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.vmap(call, in_axes=0, **SHARED)(inner, jnp.stack([x, x]))[0]


def vmap_stacked(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.vmap(call, in_axes=0, **STACKED)(inner, jnp.stack([x, x]))[0]


def remat(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.remat(call)(inner, x)


def remat_scan(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.remat_scan(call, lengths=(2,))(inner, x)


def jit(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.jit(call)(inner, x)


def vjp(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    y, pull = nn.vjp(call, inner, x)
    return y + pull(y)[1]


def jvp(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.jvp(call, inner, (x,), (x,), variable_tangents={})[0]


def grad(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.grad(lambda m, x: m(x).sum(), inner, x)[0]


def value_and_grad(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    value, gradients = nn.value_and_grad(lambda m, x: m(x).sum(), inner, x)
    return gradients[0] + value


def custom_vjp(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    def forward(m: Any, x: jax.Array) -> Any:
        return nn.vjp(call, m, x)

    def backward(pull: Any, g: jax.Array) -> Any:
        return pull(g)

    return nn.custom_vjp(call, forward_fn=forward, backward_fn=backward)(inner, x)


def while_loop(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    if inner.is_initializing():
        return inner(x)
    start = (jnp.zeros((), "int32"), x)
    return nn.while_loop(
        lambda m, c: c[0] < 2,
        lambda m, c: (c[0] + 1, m(c[1])),
        inner,
        start,
        broadcast_variables=True,
        split_rngs={},
    )[1]


def cond(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    if inner.is_initializing():
        return inner(x)
    return nn.cond(x.sum() > 0, call, lambda m, x: x, inner, x)


def switch(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    if inner.is_initializing():
        return inner(x)
    index = (x.sum() > 0).astype("int32")
    return nn.switch(index, [lambda m, x: x, call], inner, x)


def map_variables(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    same = lambda variables: variables  # noqa: E731
    return nn.map_variables(
        call, "params", trans_in_fn=same, trans_out_fn=same, init=True, mutable=True
    )(inner, x)


def named_call(nn: Any, inner: Any, x: jax.Array) -> jax.Array:
    return nn.named_call(call)(inner, x)


ALONE: Mapping[str, Level] = {
    "scan": scan,
    "scan, broadcast": scan_broadcast,
    "vmap, shared": vmap,
    "vmap, stacked": vmap_stacked,
    "remat": remat,
    "remat_scan": remat_scan,
    "jit": jit,
    "vjp": vjp,
    "jvp": jvp,
    "grad": grad,
    "value_and_grad": value_and_grad,
    "custom_vjp": custom_vjp,
    "while_loop": while_loop,
    "cond": cond,
    "switch": switch,
    "map_variables": map_variables,
    "named_call": named_call,
}
MIXED: Mapping[str, tuple[Level, ...]] = {
    "scan in vmap in ...": (vmap, scan),
    "scan in scan, broadcast, in ...": (scan_broadcast, scan),
    "scan in remat in ...": (remat, scan),
    "scan in jit in ...": (jit, scan),
    "jit in remat in vmap in scan in ...": (scan, vmap, remat, jit),
}
PHASES = ("init", "apply", "grad")
NOT_DIFFERENTIABLE = {"while_loop"}


class Bodies:
    """Counts the calls of the innermost body."""

    calls = 0


def body_class(nn: Any) -> Any:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            Bodies.calls += 1
            return jnp.tanh(nn.Dense(4)(x))

    return Body


def level_class(nn: Any, level: Level, inner_class: Any) -> Any:
    class Lifted(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return level(nn, inner_class(name="inner"), x)

    return Lifted


def nest(nn: Any, levels: tuple[Level, ...], depth: int) -> Any:
    """A module of ``depth`` lifts around the body, taking ``levels`` in turn from the outside."""
    inner = body_class(nn)
    for i in reversed(range(depth)):
        inner = level_class(nn, levels[i % len(levels)], inner)
    return inner()


def body_calls(nn: Any, levels: tuple[Level, ...], depth: int, *, grad: bool) -> dict[str, int]:
    """Calls of the body while tracing ``init``, ``apply`` and the gradient of ``apply``."""
    model = nest(nn, levels, depth)
    key, x = jax.random.key(0), jax.ShapeDtypeStruct((4,), jnp.float32)
    counts: dict[str, int] = {}

    def count(phase: str, function: Callable[..., Any], *args: Any) -> Any:
        Bodies.calls = 0
        shapes = jax.eval_shape(function, *args)
        counts[phase] = Bodies.calls
        return shapes

    def loss(variables: Any, x: jax.Array) -> jax.Array:
        return model.apply(variables, x).sum()

    variables = count("init", lambda key, x: model.init(key, x), key, x)
    count("apply", lambda v, x: model.apply(v, x), variables, x)
    if grad:
        count("grad", lambda v, x: jax.grad(loss)(v, x), variables, x)
    return counts


def run(settings: Settings) -> list[Table]:
    """A cell lists the counts at depth 1 to 6."""
    del settings  # nothing is timed, and the peers without lifts take no part
    table = Table(
        "traces",
        "calls of the body as Python, nested 1 to 6 deep",
        list(LIBRARIES),
        unit="lift: phases",
    )
    libraries: dict[str, Any] = {}
    for library, module_name in LIBRARIES.items():
        try:
            libraries[library] = importlib.import_module(module_name)
        except ImportError as error:
            table.note(f"{library}: missing, cannot be imported: {error}")
    for name, levels in {**{n: (lift,) for n, lift in ALONE.items()}, **MIXED}.items():
        put(
            table,
            name,
            {lib: counted(table, lib, nn, name, levels) for lib, nn in libraries.items()},
        )
    for row in table.cells:
        table.targets[row] = " ".join("1" for _ in DEPTHS)
    return [table]


def put(table: Table, name: str, found: Mapping[str, Mapping[str, str]]) -> None:
    """Rows of one lift; phases whose counts are alike in every library share a row."""
    rows: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for phase in PHASES:
        counts = tuple((lib, phases[phase]) for lib, phases in found.items() if phase in phases)
        if counts:
            rows.setdefault(counts, []).append(phase)
    for counts, phases in rows.items():
        for library, text in counts:
            table.put_text(f"{name}: {', '.join(phases)}", library, text)


def counted(
    table: Table, library: str, nn: Any, name: str, levels: tuple[Level, ...]
) -> dict[str, str]:
    """Phase -> the counts at each depth, as far as the library gets."""
    counts: dict[str, list[int]] = {}
    try:
        for depth in DEPTHS:
            found = body_calls(nn, levels, depth, grad=name not in NOT_DIFFERENTIABLE)
            for phase, number in found.items():
                counts.setdefault(phase, []).append(number)
    except Exception as error:  # one lift's fault must not hide the others' figures
        reached = min((len(c) for c in counts.values()), default=0)
        table.note(f"{library}, {name}: failed at depth {reached + 1}, {error_text(error)}")
    return {phase: " ".join(map(str, numbers)) for phase, numbers in counts.items()}
