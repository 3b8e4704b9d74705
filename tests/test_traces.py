"""One trace: at any depth of lifts the user's body runs once for each call of the outermost.

The body counts how often Python runs through it. The reference, for comparison, runs the body of a
scan twice, and so 2**depth times in a nest of scans.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import ON_FLAX, Counter, Library, ours
from helpers.models import SHARED, WIDTH, cheap, mapped, scanned
from helpers.run import keys, ramp
from jax.sharding import AxisType, PartitionSpec

pytestmark = [
    pytest.mark.skipif(ON_FLAX, reason="the reference traces more often"),
    pytest.mark.usefixtures("compiled_quickly"),
]
DEPTHS = [1, 2, 3, 4, 5, 6]


def counting_body(lib: Library, counter: Counter) -> Any:
    nn = lib.nn

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            counter.hit()
            w = nn.Dense(WIDTH, kernel_init=cheap)
            total = self.variable("state", "total", lambda: jnp.zeros((WIDTH,)))
            y = jnp.tanh(w(c)) + x
            y = nn.Dropout(0.5, deterministic=False)(y)
            if self.is_mutable_collection("state"):
                total.value = total.value + y
            return y, (y, w(jnp.ones(WIDTH)))

    return Body


def wrap(kind: str, lib: Library, target: Any, depth: int) -> tuple[Any, Any]:
    """`depth` lifts of one kind, and the inputs."""
    nn = lib.nn
    xs: tuple[int, ...] = (WIDTH,)
    cs: tuple[int, ...] = (WIDTH,)
    for level in range(depth):
        name = kind if kind != "mixed" else ("scan", "vmap", "remat", "shared", "jit")[level % 5]
        if name == "scan":
            axes = {"params": 0, "state": 0}
            target = scanned(lib, target, variable_axes=axes)
        elif name == "shared":
            options = {**SHARED, "variable_axes": {"state": 0}}
            target = scanned(lib, target, out_axes=(0, lib.broadcast), **options)
        elif name == "carry":
            options = {**SHARED, "variable_carry": "state"}
            target = scanned(lib, target, **options)
        elif name == "vmap":
            axes = {"params": None, "state": 0}
            split = {"params": False, "dropout": True}
            target = mapped(lib, target, variable_axes=axes, split_rngs=split)
        elif name == "remat":
            target = nn.remat(target)
        elif name == "jit":
            target = nn.jit(target)
        elif name == "pipeline":
            # The whole carry is one microbatch: the body's is a vector, with no axis of a batch.
            # On one device that would be a scan; so it runs the steps of the schedule.
            axes = {"params": 0, "state": 0}
            split = {"params": True, "dropout": True}
            state = {"state": None}
            target = nn.pipeline(
                target,
                2,
                1,
                bubbles="nan",
                variable_axes=axes,
                split_rngs=split,
                length=2,
                microbatched=state,
            )
        elif name == "shard_map":
            # Devices of one level: an axis that each has to itself can be split only once.
            axis = f"level_{level}"
            mesh = jax.make_mesh((1,), (axis,), axis_types=(AxisType.Auto,))
            whole = PartitionSpec()
            target = nn.shard_map(target, (whole, whole), whole, mesh)
        elif name == "negate":
            target = nn.map_variables(target, "params", _negated, _negated, init=True)
        else:
            raise ValueError(name)
        if name in ("scan", "shared", "carry", "vmap", "pipeline"):
            xs = (2, *xs)
        if name == "vmap":
            cs = (2, *cs)
    return target(), (ramp(*cs), ramp(*xs))


def _negated(collections: Any) -> Any:
    return jax.tree.map(jnp.negative, collections)


KINDS = [
    "scan", "shared", "carry", "vmap", "remat", "jit", "negate", "mixed", "pipeline", "shard_map"
]  # fmt: skip


# A pipeline in a pipeline multiplies stages, and devices are given out once.
AT_DEPTHS = [
    (kind, depth)
    for kind in KINDS
    for depth in DEPTHS
    if depth <= {"pipeline": 2, "shard_map": 1}.get(kind, depth)
]


@pytest.mark.parametrize(("kind", "depth"), AT_DEPTHS)
def test_one_trace(kind: str, depth: int) -> None:
    counter = Counter()
    model, args = wrap(kind, ours(), counting_body(ours(), counter), depth)
    rngs = keys()
    given = {"dropout": rngs["dropout"]}

    def train(variables: Any) -> Any:
        return model.apply(variables, *args, rngs=given, mutable=["state"])

    def loss(params: Any, variables: Any) -> Any:
        (c, _), changed = train({**variables, "params": params})
        return jnp.sum(c), changed

    # Under a jit of the nest's own, what it traced before may serve again.
    cached = kind in ("jit", "mixed")

    def once(what: str, *, first: bool = False) -> None:
        count = counter.take()
        assert count == 1 or (count == 0 and cached and not first), f"{what}: {count} runs"

    # Traced, never compiled: how often a body runs is settled before XLA sees the program.
    shapes = jax.eval_shape(model.init, rngs, *args)
    once("init", first=True)
    jax.eval_shape(lambda v: model.apply(v, *args, rngs=given), shapes)
    once("apply", first=True)
    jax.eval_shape(train, shapes)
    once("apply with a mutable collection", first=True)
    jax.eval_shape(jax.grad(loss, has_aux=True), shapes["params"], shapes)
    once("grad")
    jax.eval_shape(jax.jit(lambda v: train(v)), shapes)
    once("jit")
    stacked = jax.tree.map(lambda s: jax.ShapeDtypeStruct((3, *s.shape), s.dtype), shapes)
    jax.eval_shape(jax.vmap(train), stacked)
    once("vmap outside")


@pytest.mark.parametrize("kind", ["scan", "shared", "carry", "vmap", "jit", "remat"])
def test_one_trace_as_jax_runs_it(kind: str) -> None:
    counter = Counter()
    model, args = wrap(kind, ours(), counting_body(ours(), counter), 2)
    variables = model.init(keys(), *args)
    assert counter.take() == 1, "init"
    jax.block_until_ready(model.apply(variables, *args, rngs=keys()))
    assert counter.take() == 1, "apply"


@pytest.mark.parametrize("kind", ["scan", "shared", "vmap", "jit", "remat"])
def test_a_map_makes_and_uses_what_a_lift_inside_makes_in_one_trace(kind: str) -> None:
    counter = Counter()
    model, args = wrap(kind, ours(), counting_body(ours(), counter), 1)
    mapped = ours().nn.map_variables(type(model), "params", _negated, _negated, init=True)
    jax.eval_shape(mapped().init, keys(), *args)
    assert counter.take() == 1


def test_a_jitted_call_is_traced_once_for_all_its_calls() -> None:
    counter = Counter()
    model, args = wrap("jit", ours(), counting_body(ours(), counter), 1)
    variables = model.init(keys(), *args)
    counter.take()
    for seed in range(3):
        model.apply(variables, *args, rngs=keys(seed))
    assert counter.take() == 1


def test_equal_modules_share_what_jit_traced() -> None:
    counter = Counter()
    lib = ours()
    cls = lib.nn.jit(counting_body(lib, counter))
    args = (ramp(WIDTH), ramp(WIDTH))
    variables = cls().init(keys(), *args)
    counter.take()
    for _ in range(3):
        cls().apply(variables, *args, rngs=keys())
    assert counter.take() == 1


def core_nests(lib: Library) -> dict[str, Callable[[Any], Any]]:
    lift = lib.lift
    stack = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    share = {"variable_broadcast": "params", "split_rngs": {"params": False}}
    return {
        "scan": lambda f: lift.scan(f, **stack, length=2),
        "shared": lambda f: lift.scan(f, **share, length=2),
        "vmap": lambda f: lift.vmap(f, **stack, axis_size=2, in_axes=None, out_axes=(None, 0)),
        "remat": lambda f: lift.remat(f),
        "jit": lambda f: lift.jit(f),
    }


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", ["scan", "shared", "remat", "jit"])
def test_one_trace_in_the_core(kind: str, depth: int) -> None:
    lib, counter = ours(), Counter()

    def body(scope: Any, c: Any, x: Any) -> Any:
        counter.hit()
        return c * scope.param("w", cheap, (WIDTH,)), None

    fn = body
    for _ in range(depth):
        fn = core_nests(lib)[kind](fn)
    shapes = jax.eval_shape(lib.core.init(fn), jax.random.key(0), ramp(WIDTH), None)[1]
    assert counter.take() == 1, "init"
    jax.eval_shape(lib.core.apply(fn), shapes, ramp(WIDTH), None)
    assert counter.take() == 1, "apply"


def test_functions_of_modules_are_traced_once() -> None:
    """Derivatives, checkify, while_loop, cond and switch, inside a scan and alone."""
    lib = ours()
    nn = lib.nn
    names = "vjp jvp grad jacfwd jacrev checkify while cond switch".split()
    counters = {name: Counter() for name in names}

    def counted(name: str) -> Any:
        def fn(mdl: Any, c: Any) -> Any:
            counters[name].hit()
            return jnp.tanh(mdl(c))

        return fn

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            w = nn.Dense(WIDTH, kernel_init=cheap)
            w(c)
            c, back = nn.vjp(counted("vjp"), w, c)
            back(c)
            tangents = {"params": jax.tree.map(jnp.ones_like, w.variables["params"])}
            c, _ = nn.jvp(counted("jvp"), w, (c,), (c,), tangents)
            nn.grad(lambda mdl, c: jnp.sum(counted("grad")(mdl, c)), w, c)
            nn.jacfwd(counted("jacfwd"), w, c)
            nn.jacrev(counted("jacrev"), w, c)
            _, c = nn.checkify(counted("checkify"))(w, c)
            c = nn.cond(c[0] > 0.0, counted("cond"), lambda mdl, c: c, w, c)
            c = nn.switch(1, [lambda mdl, c: c, counted("switch")], w, c)
            state = (0, jax.lax.stop_gradient(c))
            step = counted("while")
            state = nn.while_loop(
                lambda mdl, s: s[0] < 2, lambda mdl, s: (s[0] + 1, step(mdl, s[1])), w, state
            )
            return c + state[1], None

    model = scanned(lib, scanned(lib, Body, length=2), length=2)()
    shapes = jax.eval_shape(model.init, keys(), ramp(WIDTH), None)
    once = dict.fromkeys(counters, 1)
    assert {name: counter.take() for name, counter in counters.items()} == once
    jax.eval_shape(lambda v: model.apply(v, ramp(WIDTH), None), shapes)
    assert {name: counter.take() for name, counter in counters.items()} == once


@pytest.mark.parametrize("lengths", [(3,), (2, 2), (2, 2, 2)])
def test_remat_scan_is_traced_once(lengths: tuple[int, ...]) -> None:
    lib, counter = ours(), Counter()
    nn = lib.nn

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, c):
            counter.hit()
            return nn.Dense(WIDTH, kernel_init=cheap)(c)

    model = nn.remat_scan(Layer, lengths=lengths)()
    shapes = jax.eval_shape(model.init, keys(), ramp(WIDTH))
    assert counter.take() == 1
    grad = jax.grad(lambda v: model.apply(v, ramp(WIDTH)).sum())
    jax.eval_shape(grad, shapes)
    assert counter.take() == 1


def test_the_loops_are_in_the_program() -> None:
    """Scans stay scans, whatever had to be computed before them."""
    lib = ours()
    model, args = wrap("shared", lib, counting_body(lib, Counter()), 3)
    program = jax.make_jaxpr(model.init)(keys(), *args)
    assert _nesting(program.jaxpr) == 3


def _nesting(jaxpr: Any) -> int:
    deepest = 0
    for eqn in jaxpr.eqns:
        inside = 0
        for value in eqn.params.values():
            sub = getattr(value, "jaxpr", value)
            if hasattr(sub, "eqns"):
                inside = max(inside, _nesting(sub))
        deepest = max(deepest, inside + (eqn.primitive.name == "scan"))
    return deepest
