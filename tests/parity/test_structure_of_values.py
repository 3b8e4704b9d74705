"""A variable whose new value has another structure than the old: where Linen takes it, so do we."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, ours

ONE = jnp.ones(())
CHANGES: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a dict grows": ({"a": ONE}, lambda value: {**value, "b": ONE * 2}),
    "None first": (None, lambda value: ONE * 3),
    "a list becomes an array": ([ONE, ONE * 2], jnp.stack),
}


def model(lib: Library, lift: str, change: str) -> Any:
    nn = lib.nn
    first, changed = CHANGES[change]

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x):
            found = self.variable("state", "s", lambda: first)
            if not self.is_initializing():
                found.value = changed(found.value)
            return x + sum(map(jnp.sum, jax.tree.leaves(found.value)))

    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return Step(name="s")(x), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            stacked = {"variable_axes": {"state": 0}, "split_rngs": {}}
            if lift in ("remat", "jit"):
                return getattr(nn, lift)(Step)()(x)
            if lift == "vmap":
                return nn.vmap(Step, in_axes=None, axis_size=2, **stacked)()(x)
            if lift == "scan":
                return nn.scan(Pair, length=2, **stacked)()(x)[0]
            if lift == "carry":
                return nn.scan(Pair, length=2, variable_carry="state", split_rngs={})()(x)[0]
            if lift == "broadcast":
                return nn.scan(Pair, length=2, variable_broadcast="state", split_rngs={})()(x)[0]
            if lift == "map_variables":
                mapped = nn.map_variables(Step, "state", mutable=True, init=self.is_initializing())
                return mapped()(x)
            inner = Step(name="inner")
            if lift == "none" or self.is_initializing():
                return inner(x)
            if lift in ("cond", "one branch"):
                other = (lambda m, x: m(x) * 2) if lift == "cond" else (lambda m, x: x)
                return nn.cond(x > 0, lambda m, x: m(x), other, inner, x)
            if lift == "vjp":
                return nn.vjp(lambda m, x: m(x), inner, x)[0]
            return nn.while_loop(
                lambda m, x: x < 3, lambda m, x: m(x), inner, x, carry_variables="state"
            )

    return Model()


LIFTS = ["none", "remat", "jit", "vmap", "scan", "broadcast", "map_variables", "cond", "vjp"]


@pytest.mark.parametrize("lift", LIFTS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_value_of_another_structure(change: str, lift: str) -> None:
    def run(lib: Library) -> Any:
        made = model(lib, lift, change)
        variables = made.init(jax.random.key(0), ONE)
        return variables, made.apply(variables, ONE, mutable=["state"])

    both(run)


@pytest.mark.parametrize(
    ("lift", "change", "error", "text"),
    [
        ("carry", "None first", "CarryError", "/s/s changes .*\n.*float32.*\n.*None"),
        ("carry", "a list becomes an array", "CarryError", "state/s/s changes its structure"),
        ("one branch", "None first", "BranchError", "different structures in variable state/s"),
        ("one branch", "a list becomes an array", "BranchError", "different structures"),
        ("while_loop", "None first", "CarryError", "/inner, while_loop .*state/s changes"),
        ("while_loop", "a dict grows", "CarryError", "/inner, while_loop .*state/s changes"),
        ("while_loop", "a list becomes an array", "CarryError", "while_loop .*state/s changes"),
    ],
)  # fmt: skip
def test_where_the_structure_has_to_stay(lift: str, change: str, error: str, text: str) -> None:
    made = model(ours(), lift, change)
    variables = made.init(jax.random.key(0), ONE)
    with pytest.raises(getattr(ours().errors, error), match=text):
        made.apply(variables, ONE, mutable=["state"])


@pytest.mark.parametrize("lift", ["carry", "one branch"])
def test_a_dict_may_grow_in_a_carry_and_in_one_branch(lift: str) -> None:
    """Linen refuses both; here variables born in a body are known by their places."""
    made = model(ours(), lift, "a dict grows")
    variables = made.init(jax.random.key(0), ONE)
    y, changed = made.apply(variables, ONE, mutable=["state"])
    assert [float(leaf) for leaf in jax.tree.leaves(changed)] == [1.0, 2.0]
    assert float(y) == (7.0 if lift == "carry" else 4.0)


@pytest.mark.parametrize("jitted", [True, False])
@pytest.mark.parametrize("lift", ["cond", "switch"])
def test_branches_make_a_variable_of_no_value(lift: str, jitted: bool) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                def branch(mdl, x):
                    mdl.variable("state", "none", lambda: None)
                    return x + mdl.variable("state", "one", lambda: ONE).value

                if lift == "cond":
                    return nn.cond(x > 0, branch, branch, self, x)
                return nn.switch(1, [branch, branch], self, x)

        made = Model()
        with jax.disable_jit(not jitted):
            return made.init({}, ONE), made.apply({}, ONE, mutable="state")

    both(run)


def test_shared_variables_take_one_anothers_values() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                first = self.variable("state", "first", lambda: ONE)
                second = self.variable("state", "second", lambda: -ONE)
                third = self.variable("state", "third", lambda: {"a": ONE})
                self.variable("state", "none", lambda: None)
                second.value, third.value = first.value, None
                return x, None

        made = nn.scan(Body, variable_broadcast="state", split_rngs={}, length=2)()
        found = {"first": ONE * 3, "second": ONE * 4, "third": {"a": ONE}}
        applied = made.apply({"state": found}, ONE, None, mutable="state")
        return made.init({}, ONE, None), applied

    both(run)
