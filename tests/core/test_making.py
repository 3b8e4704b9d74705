"""init traces each time: what it reads is what is there, what it compiled is not compiled again."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.models import cheap

import liftax as nn
from liftax.core.making.kept import KeptLoops

KEY = jax.random.key(7)
X = jnp.ones((2, 4))

# --- What a body may read -----------------------------------------------------------------------

WIDTH = 2
TABLE: dict[str, Any] = {"width": 2, "array": np.full(2, 2.0)}
STATE = np.asarray([2.0, 2.0])


def helper() -> float:
    return 2.0


def initializer(key: Any, shape: Any) -> Any:
    return jnp.full(shape, 2.0)


class Scale:
    """A callable with a state."""

    def __init__(self, by: float):
        self.by = by

    def __call__(self, key: Any, shape: Any) -> Any:
        return jnp.full(shape, self.by)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scale)

    def __hash__(self) -> int:
        return 1


def _global(self: Any) -> Any:
    return self.param("w", cheap, (WIDTH,))


def _global_container(self: Any) -> Any:
    return self.param("w", cheap, (TABLE["width"],))


def _global_array(self: Any) -> Any:
    return self.param("w", lambda key: jnp.asarray(STATE) * 1.0)


def _helper(self: Any) -> Any:
    return self.param("w", lambda key: jnp.full((2,), helper()))


def _initializer(self: Any) -> Any:
    return self.param("w", initializer, (2,))


def _attribute(self: Any) -> Any:
    return self.param("w", cheap, (self.width,))


def _method(self: Any) -> Any:
    return self.param("w", cheap, (self.size(),))


def _array(self: Any) -> Any:
    return self.param("w", lambda key: jnp.asarray(self.array) + 1.0)


def _callable(self: Any) -> Any:
    return self.param("w", self.scale, (2,))


def _apart(self: Any) -> Any:
    return self.param("w", cheap, (self.apart,))


def _constant(self: Any) -> Any:
    array = TABLE["array"]
    inside = jax.jit(lambda w: w * array)  # a constant inside of a program
    return self.variable("stats", "w", lambda: inside(jnp.ones(2))).value


READS = [
    *(_global, _global_container, _global_array, _helper, _initializer, _attribute, _method),
    *(_array, _callable, _apart, _constant),
]


def block(read: Callable[[Any], Any]) -> Any:
    class Block(nn.Module):
        array: Any = None
        scale: Any = initializer
        apart: int = dataclasses.field(default=2, compare=False)
        width = 2

        def size(self) -> int:
            return 2

        @nn.compact
        def __call__(self, x: Any, scale: Any) -> Any:
            return x * jnp.sum(read(self)) * scale, None

    return Block


def change(
    read: Any, cls: Any, made: dict[str, Any], patch: pytest.MonkeyPatch, value: float
) -> dict[str, Any]:
    """Changes what is read; returns the fields of a module that is equal to the one before."""
    here, n = globals(), int(value)
    patch.setitem(here, "WIDTH", n)
    patch.setitem(TABLE, "width", n)
    patch.setitem(TABLE, "array", np.full(2, value))
    STATE[:] = value
    patch.setitem(here, "helper", lambda: value)
    patch.setitem(here, "initializer", lambda key, shape: jnp.full(shape, value))
    patch.setattr(cls, "width", n)
    patch.setattr(cls, "size", lambda self: n)
    if "array" in made:
        made["array"][:] = value
        made["scale"].by = value
    return {**made, "apart": n}


def stack(cls: Any, depth: int = 3) -> Any:
    axes = {"variable_axes": {"params": 0, "stats": 0}, "split_rngs": {"params": True}}
    return nn.scan(cls, in_axes=nn.broadcast, length=depth, **axes)


LIFTS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda cls: cls,
    "scan": stack,
    "scan, shared": lambda cls: nn.scan(
        cls,
        variable_broadcast=["params", "stats"],
        split_rngs={"params": False},
        in_axes=nn.broadcast,
        length=3,
    ),
    "remat of scan": lambda cls: nn.remat(stack(cls)),
}


def _init(module: Any) -> Any:
    return module.init(KEY, X, 1.0)


def _lazy_init(module: Any) -> Any:
    return module.lazy_init(KEY, jax.ShapeDtypeStruct((2, 4), "float32"), 1.0)


def _function(module: Any) -> Any:
    return nn.init(lambda m, x: m(x, 1.0), module)(KEY, X)


@pytest.fixture(autouse=True)
def same_state_for_each() -> Iterator[None]:
    yield
    STATE[:] = 2.0


@pytest.mark.parametrize(
    ("init", "lift"),
    [*((_init, lift) for lift in LIFTS), (_lazy_init, "scan"), (_function, "plain")],
)
@pytest.mark.parametrize("read", READS, ids=lambda read: read.__name__[1:])
def test_what_init_reads_is_what_is_there(
    read: Any, lift: str, init: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = block(read)
    lifted = LIFTS[lift](cls)
    made = {"array": np.full(2, 2.0, np.float32), "scale": Scale(2.0)}
    first = init(lifted(**made))
    assert same(init(lifted(**made)), first)
    made = change(read, cls, made, monkeypatch, 5.0)
    found = init(lifted(**made))
    fresh = init(LIFTS[lift](cls)(**made))  # a class that never was initialised
    assert same(found, fresh)
    assert not same(found, first)


# --- What comes again ---------------------------------------------------------------------------

_compiled: list[str] = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: _compiled.append(event) if "backend_compile" in event else None
)


def counting() -> tuple[Any, list[int]]:
    calls: list[int] = []

    class Block(nn.Module):
        width: int = 4

        @nn.compact
        def __call__(self, x, scale=1):
            calls.append(1)
            self.variable("stats", "count", lambda: jnp.zeros((), jnp.int32))
            x = x @ self.param("w", cheap, (x.shape[-1], self.width))
            return x * self.param("gain", cheap, (self.width,)) * scale, None

    return Block, calls


def same(a: Any, b: Any) -> bool:
    def equal(x: Any, y: Any) -> bool:
        x, y = np.asarray(x), np.asarray(y)
        return x.dtype == y.dtype and np.array_equal(x, y)

    return jax.tree.structure(a) == jax.tree.structure(b) and bool(
        jax.tree.all(jax.tree.map(equal, a, b))
    )


MODELS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda cls: cls,
    "scan": stack,
    "scan of scan": lambda cls: stack(stack(cls), 2),
    "remat of scan": lambda cls: nn.remat(stack(cls)),
    "scan of remat": lambda cls: stack(nn.remat(cls)),
    "vmap of scan": lambda cls: nn.vmap(
        stack(cls),
        variable_axes={"params": 0, "stats": 0},
        split_rngs={"params": True},
        in_axes=(0, None),
    ),
    "jit": nn.jit,
}


@pytest.mark.parametrize("model", MODELS)
def test_it_is_traced_again_and_compiled_once(model: str) -> None:
    Block, calls = counting()
    lifted = MODELS[model](Block)
    first = lifted().init(KEY, X, 1.0)
    traced, before = len(calls), len(_compiled)
    for n in range(2, 4):
        assert same(lifted().init(KEY, X, 1.0), first)
        assert len(calls) == n * traced or model == "jit"  # JAX keeps what jit traced
    assert _compiled[before:] == []
    assert not same(lifted().init(jax.random.key(8), X, 1.0)["params"], first["params"])
    assert _compiled[before:] == []


def test_settings_of_jax_are_part_of_it() -> None:
    class Wide(nn.Module):
        @nn.compact
        def __call__(self, x, _=None):
            return x * self.param("w", nn.initializers.normal(), (3,), float), None

    for cls in (
        Wide,
        nn.scan(Wide, variable_axes={"params": 0}, split_rngs={"params": True}, length=2),
    ):
        narrow = [cls().init(KEY, X[0, :3])["params"]["w"] for _ in range(2)]
        with jax.enable_x64(True):
            wide = [cls().init(KEY, np.ones(3))["params"]["w"] for _ in range(2)]
        again = cls().init(KEY, X[0, :3])["params"]["w"]
        assert [w.dtype.name for w in (*narrow, *wide, again)] == [
            *["float32"] * 2,
            *["float64"] * 2,
            "float32",
        ]
        assert same(wide[0], wide[1])
        assert same(again, narrow[0])


def test_interceptors_hear_every_init() -> None:
    Block, _ = counting()
    heard: list[str] = []

    def note(fun, args, kwargs, context):
        heard.append(context.method_name)
        return fun(*args, **kwargs)

    Block().init(KEY, X)
    with nn.intercept_methods(note):
        Block().init(KEY, X)
        Block().init(KEY, X)
    assert heard == ["__call__"] * 2


def test_a_warning_is_given_each_time() -> None:
    Block, _ = counting()
    same_for_all = nn.vmap(
        Block, variable_axes={"params": 0, "stats": 0}, split_rngs={"params": False}
    )
    for _ in range(3):
        with pytest.warns(nn.LiftWarning, match="LX202"):
            same_for_all().init(KEY, X)


def test_loops_go_with_their_class() -> None:
    def use() -> Any:
        Block, _ = counting()
        for _ in range(3):
            stack(Block)().init(KEY, X, 1.0)
        return weakref.ref(Block)

    block = use()
    gc.collect()
    assert block() is None


# --- Loops that are kept ------------------------------------------------------------------------


def loops(kept: KeptLoops, fn: Callable[..., Any], *args: Any) -> Any:
    """Runs a function whose one equation is a loop; returns its result."""
    closed = jax.make_jaxpr(fn)(*args)
    put = kept.put_into(closed.jaxpr)
    found = jax.core.eval_jaxpr(put, closed.consts, *jax.tree.leaves(args))
    expected = fn(*args)
    assert same(jax.tree.leaves(expected), found)
    return found


def summed(by: Any, xs: Any, reverse: bool = False) -> Any:
    return jax.lax.scan(lambda c, x: (c + x * by, c), 0.0, xs, reverse=reverse)


XS = jnp.arange(3.0)


def _held(array: np.ndarray) -> Callable[[Any], Any]:
    inside = jax.jit(lambda x: x * array)
    return lambda xs: jax.lax.scan(lambda c, x: (c + inside(x), c), jnp.zeros(2), xs)


def test_equal_loops_are_one() -> None:
    kept, array = KeptLoops(), np.asarray([1.0, 2.0], np.float32)
    for _ in range(3):
        loops(kept, functools.partial(summed, 2.0), XS)
        loops(kept, lambda xs: summed(2.0, xs), XS + 1)
        loops(kept, lambda xs: jax.lax.cond(xs[0] > 0, jnp.sin, jnp.cos, xs), XS)
        loops(kept, lambda x: jax.lax.while_loop(lambda v: v < 9, lambda v: v * 2, x), 1.0)
        loops(kept, _held(array), XS)
        loops(kept, lambda xs: jax.lax.scan(lambda c, x: (jax.nn.relu(c), x), 0.0, xs), XS)
    assert len(kept.calls) == 5


def test_other_loops_are_others() -> None:
    kept, array = KeptLoops(), np.asarray([1.0, 2.0], np.float32)
    rows: list[Callable[[], Any]] = [
        lambda: loops(kept, lambda xs: summed(2.0, xs), XS),
        lambda: loops(kept, lambda xs: summed(3.0, xs), XS),
        lambda: loops(kept, lambda xs: summed(-0.0, xs), XS),
        lambda: loops(kept, lambda xs: summed(0.0, xs), XS),
        lambda: loops(kept, lambda xs: summed(2.0, xs, reverse=True), XS),
        lambda: loops(kept, lambda xs: summed(2.0, xs), jnp.arange(4.0)),
        lambda: loops(kept, lambda xs: summed(2.0, xs), XS.astype(jnp.bfloat16)),
        lambda: loops(kept, lambda xs: jax.lax.scan(lambda c, x: (c - x, c), 0.0, xs), XS),
        lambda: loops(kept, _held(array), XS),
    ]
    for n, row in enumerate(rows, 1):
        row()
        assert len(kept.calls) == n
    loops(kept, _held(array + 1.0), XS)
    assert len(kept.calls) == len(rows) + 1


def test_few_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = KeptLoops()
    loops(kept, lambda xs: summed(0.0, xs), XS)
    (size,) = kept.sizes.values()
    monkeypatch.setattr("liftax.core.making.kept._MOST", 3 * size + size // 2)
    for by in (0, 1, 2, 0, 3):  # 1 had to go for 3
        loops(kept, lambda xs, by=float(by): summed(by, xs), XS)
    assert len(kept.calls) == 3
    assert kept.calls.keys() == kept.sizes.keys()
    before = dict(kept.calls)
    for by in (0, 2, 3):
        loops(kept, lambda xs, by=float(by): summed(by, xs), XS)
    assert before == kept.calls


def test_effects_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    def speaks(xs: Any) -> Any:
        def body(c: Any, x: Any) -> Any:
            jax.debug.print("{}", x)
            return c, x

        return jax.lax.scan(body, 0.0, xs)

    kept = KeptLoops()
    loops(kept, speaks, XS)
    jax.effects_barrier()
    assert capsys.readouterr().out.split() == ["0.0", "1.0", "2.0"] * 2
    assert not kept.calls


@pytest.mark.parametrize(
    ("layer", "runs"),
    [
        (lambda: nn.Dense(4), False),
        (lambda: nn.SpectralNorm(nn.Dense(4)), True),  # its matrix is divided by a sum
    ],
)
def test_a_loop_that_adds_up_is_not_cut_down(
    monkeypatch: pytest.MonkeyPatch, layer: Any, runs: bool
) -> None:
    seen: list[Any] = []
    put_into = KeptLoops.put_into

    def spy(self: KeptLoops, program: Any) -> Any:
        seen.append(program)
        return put_into(self, program)

    monkeypatch.setattr(KeptLoops, "put_into", spy)

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            extra = {"update_stats": True} if runs else {}
            return nn.tanh(layer()(x, **extra)), None

    axes = {"params": 0, "batch_stats": 0}
    deep = nn.scan(Block, variable_axes=axes, split_rngs={"params": True}, length=3)()
    variables = deep.init(KEY, X, None)
    # The last one is of init itself: nothing but the loop takes a tanh.
    assert ("tanh" in str(seen[-1])) is runs
    shapes = jax.tree.map(lambda x: x.shape, variables["params"])
    assert shapes["Dense_0"]["kernel"] == (3, 4, 4)
