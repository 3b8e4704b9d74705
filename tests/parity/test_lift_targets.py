"""What may be lifted, and what may be handed to it: partials of classes, submodules, branches.

Every lift takes each kind of target; names of submodules made inside are Linen's, under
`jax.disable_jit` too, where JAX runs a loop's body once for each iteration.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Library, both, ours
from helpers.models import cheap

X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}}


def _same(collections: Any) -> Any:
    return collections


def _fold(lib: Library, fn: Any, **options: Any) -> Any:
    name = "transforms." * (lib.name == "flax") + "fold_rngs"
    return functools.reduce(getattr, name.split("."), lib.nn)(fn, **options)


# Each makes of a body `(mdl, h, x) -> x` a function `(mdl, h, x) -> x` under the lift.
LIFTS: dict[str, Callable[[Library, Any], Any]] = {
    "jit": lambda lib, f: lib.nn.jit(f),
    "remat": lambda lib, f: lib.nn.remat(f),
    "fold_rngs": lambda lib, f: _fold(lib, f),
    "map_variables": lambda lib, f: lib.nn.map_variables(f, "params", _same, _same, init=True),
    "add_metadata_axis": lambda lib, f: lib.nn.add_metadata_axis(f),
    "named_call": lambda lib, f: lib.nn.named_call(f),
    "vmap": lambda lib, f: lib.nn.vmap(f, in_axes=(None, 0), **STACKED),
    "vmap_shared": lambda lib, f: lib.nn.vmap(
        f, in_axes=(None, 0), variable_axes={"params": None}, split_rngs={"params": False}
    ),
    "scan": lambda lib, f: _scanned(lib, f, **STACKED),
    "scan_shared": lambda lib, f: _scanned(lib, f, **SHARED),
    "scan_remat": lambda lib, f: _scanned(lib, f, lib.nn.remat, **STACKED),
    "cond": lambda lib, f: lambda m, h, x: lib.nn.cond(True, f, f, m, h, x),
    "switch": lambda lib, f: lambda m, h, x: lib.nn.switch(1, [f, f], m, h, x),
}


def _scanned(lib: Library, f: Any, inner: Any = _same, **options: Any) -> Any:
    def body(m: Any, x: Any, h: Any) -> Any:
        return f(m, h, x), None

    scan = lib.nn.scan(inner(body), length=2, in_axes=lib.broadcast, **options)
    return lambda m, h, x: scan(m, x, h)[0]


HOLDERS: dict[str, Callable[[Any, Any], Any]] = {
    "submodule": lambda a, b: a,
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"a": a, "b": b},
    "nested": lambda a, b: {"a": [a], "b": (b, a)},
}


def _owner(lib: Library, lift: str, in_setup: bool) -> Any:
    """A module that hands its submodules to a lifted method, and to a lifted function of itself."""
    nn = lib.nn

    def body(m: Any, h: Any, x: Any) -> Any:
        for layer in jax.tree.leaves(h, is_leaf=lambda part: isinstance(part, nn.Module)):
            x = jnp.tanh(layer(x))
        return x

    def held() -> dict[str, Any]:
        def dense() -> Any:
            return nn.Dense(4, use_bias=False, kernel_init=cheap)

        return {name: hold(dense(), dense()) for name, hold in HOLDERS.items()}

    class Owner(nn.Module):
        if in_setup:

            def setup(self) -> None:
                self.held = held()

        run = LIFTS[lift](lib, body)

        def __call__(self, x: Any) -> Any:
            holders = self.held if in_setup else held()
            for i, h in enumerate(holders.values()):
                run = (functools.partial(LIFTS[lift](lib, body), self), self.run)[i % 2]
                x = run(h, x)
            return self.run(holders["submodule"], x)

        if not in_setup:
            __call__ = nn.compact(__call__)

    return Owner()


@pytest.mark.parametrize("in_setup", [True, False], ids=["setup", "compact"])
@pytest.mark.parametrize("lift", [name for name in LIFTS if name != "named_call"])
def test_self_and_its_submodules(lift: str, in_setup: bool) -> None:
    both(lambda lib: _owner(lib, lift, in_setup).init_with_output(jax.random.key(0), X))


def test_a_submodule_of_a_submodule_beside_self() -> None:
    def run(lib: Library, in_field: bool) -> Any:
        nn = lib.nn

        class Middle(nn.Module):
            inner: Any = None

            def setup(self) -> None:
                if not in_field:
                    self.made = nn.Dense(4, kernel_init=cheap)

            def __call__(self, x: Any) -> Any:
                return (self.inner if in_field else self.made)(x)

        class Outer(nn.Module):
            sub: Any = None

            def setup(self) -> None:
                if not in_field:
                    self.made = Middle()

            def __call__(self, x: Any) -> Any:
                middle = self.sub if in_field else self.made
                layer = middle.inner if in_field else middle.made

                def body(m: Any, h: Any, x: Any) -> Any:
                    return (m.sub if in_field else m.made)(h(x))

                return nn.remat(body)(self, layer, x)

        model = Outer(Middle(nn.Dense(4, kernel_init=cheap))) if in_field else Outer()
        variables = model.init(jax.random.key(0), X)
        return variables, model.apply(variables, X)

    both(lambda lib: run(lib, True))
    both(lambda lib: run(lib, False))


@pytest.mark.parametrize("where", ["setup", "compact"])
def test_a_name_that_is_really_taken_is_refused(where: str) -> None:
    lib = ours()
    nn = lib.nn

    class Twice(nn.Module):
        def setup(self) -> None:
            self.layer = nn.Dense(4, name="taken")
            if where == "setup":
                self.other = nn.Dense(4, name="taken")

        @nn.compact
        def __call__(self, x: Any) -> Any:
            def body(m: Any, h: Any, x: Any) -> Any:
                return nn.Dense(4, name="taken")(h(x))

            return nn.remat(body)(self, self.layer, x)

    with pytest.raises(lib.errors.NameInUseError, match="taken"):
        Twice().init(jax.random.key(0), X)


def test_a_lift_inside_setup_does_not_run_setup_again() -> None:
    nn = ours().nn

    class Early(nn.Module):
        def setup(self) -> None:
            self.layer = nn.Dense(4)
            self.start = nn.remat(lambda m, x: m.layer(x))(self, X)

        def __call__(self, x: Any) -> Any:
            return self.layer(x) + self.start

    with pytest.raises(AttributeError, match="layer"):
        Early().init(jax.random.key(0), X)


# --- partials of classes ------------------------------------------------------------------------


def _block(lib: Library) -> Any:
    nn = lib.nn

    class Block(nn.Module):
        features: int
        act: str = "tanh"

        @nn.compact
        def __call__(self, x: Any, _: Any = None) -> Any:
            y = getattr(nn, self.act)(nn.Dense(self.features, kernel_init=cheap)(x))
            return (y, None) if self.features == 4 and _ is not None else y

    return Block


CLASS_LIFTS: dict[str, Callable[[Library, Any], Any]] = {
    "jit": lambda lib, c: lib.nn.jit(c),
    "remat": lambda lib, c: lib.nn.remat(c),
    "fold_rngs": lambda lib, c: _fold(lib, c),
    "map_variables": lambda lib, c: lib.nn.map_variables(c, "params", _same, _same, init=True),
    "add_metadata_axis": lambda lib, c: lib.nn.add_metadata_axis(c, {"params": 0}),
    "vmap": lambda lib, c: lib.nn.vmap(c, **STACKED),
    "remat_scan": lambda lib, c: lib.nn.remat_scan(c, lengths=(2,)),
    "scan": lambda lib, c: lib.nn.scan(c, **STACKED),
    "scan of remat": lambda lib, c: lib.nn.scan(lib.nn.remat(c), **STACKED),
    "jit of vmap": lambda lib, c: lib.nn.jit(lib.nn.vmap(c, **STACKED)),
}


@pytest.mark.parametrize("lift", CLASS_LIFTS)
def test_a_partial_of_a_class(lift: str) -> None:
    def run(lib: Library) -> Any:
        block = _block(lib)
        by_keyword = functools.partial(block, features=7, act="relu")
        of_a_partial = functools.partial(functools.partial(block, act="relu"), 4)
        targets = [CLASS_LIFTS[lift](lib, t) for t in (by_keyword, of_a_partial)]
        assert all(isinstance(target, functools.partial) for target in targets)
        xs = (jnp.zeros(2),) if lift.startswith("scan") else ()

        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x: Any, *xs: Any) -> Any:
                return targets[0](features=4)(x, *xs), targets[1]()(x, *xs)

        return Model().init_with_output(jax.random.key(0), X, *xs)

    both(run)


def test_a_partial_is_lifted_as_its_class_is_once() -> None:
    nn, block = ours().nn, _block(ours())
    assert nn.remat(functools.partial(block, 4)).func is nn.remat(block)


# --- names of what is made inside ---------------------------------------------------------------


def _numbered(lib: Library, counts: tuple[int, ...], lift: str, made: list[str]) -> Any:
    """A model whose bodies make so many modules without variables, noting their names."""
    nn = lib.nn

    class Note(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            made.append(self.name)
            return x

    def body(count: int) -> Any:
        def run(m: Any, h: Any, x: Any) -> Any:
            for _ in range(count):
                x = Note()(x)
            return x

        return run

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, i: int) -> Any:
            x = Note()(x)
            bodies = [body(n) for n in counts]
            if lift == "switch":
                x = nn.switch(i, bodies, self, None, x)
            elif lift == "cond":
                x = nn.cond(i == 0, *bodies[:2], self, None, x)
            elif lift == "while_loop":
                x, _ = nn.while_loop(
                    lambda m, c: c[1] < 3,
                    lambda m, c: (bodies[0](m, None, c[0]), c[1] + 1),
                    self,
                    (x, i),
                )
            else:
                x = LIFTS[lift](lib, bodies[0])(self, None, x)
            return Note()(x)

    return Model()


@pytest.mark.parametrize("jitted", [True, False], ids=["jit", "disable_jit"])
@pytest.mark.parametrize("lift", [*LIFTS, "while_loop"])
def test_names_after_a_lifted_function(lift: str, jitted: bool) -> None:
    """Linen traces the body of a loop more often: the set of names is the same, and the last."""

    def run(lib: Library) -> Any:
        found = []
        for counts in [(2, 0, 1), (1, 2, 0)] if lift in ("cond", "switch") else [(2,)]:
            made: list[str] = []
            with contextlib.nullcontext() if jitted else jax.disable_jit():
                _numbered(lib, counts, lift, made).apply({}, X, 0)
            found.append((sorted(set(made)), made[-1]))
        return found

    both(run)


@pytest.mark.parametrize("lift", ["vmap_shared", "scan_shared", "cond"])
def test_parameters_of_what_a_lifted_function_makes(lift: str) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        def body(m: Any, h: Any, x: Any) -> Any:
            return jnp.tanh(nn.Dense(4, kernel_init=cheap)(x))

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                x = LIFTS[lift](lib, body)(self, None, x)
                return nn.Dense(3, kernel_init=cheap)(x)

        variables = Model().init(jax.random.key(0), X)
        with jax.disable_jit():
            return variables, Model().apply(variables, X)

    both(run)


@pytest.mark.parametrize("counts", [(1, 0), (1, 2)])
def test_branches_with_parameters_of_their_own_give_no_name_twice(counts: tuple[int, int]) -> None:
    """In Linen such a program does not initialise; here, what one branch made alone stays its."""
    nn = ours().nn

    def body(count: int) -> Any:
        def run(m: Any, x: Any) -> Any:
            for _ in range(count):
                x = jnp.tanh(nn.Dense(4)(x))
            return x

        return run

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x: Any, first: Any) -> Any:
            x = nn.cond(first, *map(body, counts), self, x)
            return nn.Dense(3)(x)

    variables = Model().init(jax.random.key(0), X, True)
    widths = {name: p["kernel"].shape[-1] for name, p in variables["params"].items()}
    last = f"Dense_{max(counts)}"
    assert widths == {**{f"Dense_{i}": 4 for i in range(max(counts))}, last: 3}
    for first, count in zip((True, False), counts, strict=True):
        x = X
        for i in range(count):
            x = jnp.tanh(nn.Dense(4).apply({"params": variables["params"][f"Dense_{i}"]}, x))
        expected = nn.Dense(3).apply({"params": variables["params"][last]}, x)
        assert jnp.allclose(Model().apply(variables, X, first), expected)


def test_a_forward_function_that_is_traced_after_the_call() -> None:
    """`jax.grad` of a jitted apply traces the rules of `custom_vjp` when the module is done."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        def body(m: Any, x: Any) -> Any:
            return nn.Dense(4, kernel_init=cheap)(x)

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                rule = nn.custom_vjp(body, lambda m, x: nn.vjp(body, m, x), lambda f, y: f(y))
                return nn.Dense(3, kernel_init=cheap)(rule(self, x))

        variables = Model().init(jax.random.key(0), X)
        return jax.grad(jax.jit(lambda v: jnp.sum(Model().apply(v, X) ** 2)))(variables)

    both(run)


# --- split_rngs -----------------------------------------------------------------------------------

KEY = jax.random.key(0)
TRUTHS = [0, 1, 2, None, 1.0, np.bool_(True), np.bool_(False), np.int32(1), np.array(True)]


@pytest.mark.filterwarnings("ignore:LX202")
@pytest.mark.parametrize("value", TRUTHS, ids=repr)
def test_what_python_takes_for_true_splits(value: Any) -> None:
    def run(lib: Library) -> Any:
        nn, split = lib.nn, {"params": value}
        return nn.vmap(_block(lib), variable_axes={"params": 0}, split_rngs=split)(4).init(KEY, X)

    both(run)


@pytest.mark.filterwarnings("ignore:LX202")
@pytest.mark.parametrize("lift", ["scan", "remat_scan"])
def test_what_python_takes_for_true_splits_in_loops(lift: str) -> None:
    def run(lib: Library) -> Any:
        nn, split = lib.nn, {"params": None}
        if lift == "remat_scan":
            return nn.remat_scan(_block(lib), lengths=(2,), split_rngs=split)(4).init(KEY, X)
        scan = nn.scan(_block(lib), variable_axes={"params": 0}, split_rngs=split)
        return scan(4).init(KEY, X, jnp.zeros(2))

    both(run)
