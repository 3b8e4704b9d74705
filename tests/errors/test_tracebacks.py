"""What a traceback shows: the user's lines, no more of them than Linen's, and no chain."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, linen, ours
from parity.test_misuse_of_modules import MISUSES

import liftax

X = jnp.ones((2, 3))
KEY = jax.random.key(0)
STACKED = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
NOT_SHOWN = (os.path.dirname(liftax.__file__), os.path.dirname(jax.__file__))
MESSAGE = 4
"""The lines that a message of liftax may have more: found, expected, and the page."""


def inside(call: Callable[[Any, Any, Any], Any], depth: int = 0) -> Callable[[Library], Any]:
    """A mistake in the body of a compact method, ``depth`` modules deep: ``call(nn, mdl, x)``."""

    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            left: int

            @lib.nn.compact
            def __call__(self, x):
                if self.left:
                    return Model(self.left - 1)(x)
                return call(lib.nn, self, x)

        return Model(depth).init(KEY, X)

    return run


def lifted(lift: Callable[[Any, Any], Any], body: Callable[[Any, Any, Any], Any], depth: int = 0):
    """A mistake in the body of a lifted class, called with a carry and nothing to scan."""

    def call(nn: Any, mdl: Any, x: Any) -> Any:
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, *args):
                return body(nn, self, x)

        return lift(nn, Body)()(x, None)

    return inside(call, depth)


LIFTS: dict[str, Callable[[Any, Any], Any]] = {
    "scan": lambda nn, t: nn.scan(t, **STACKED, length=3),
    "vmap": lambda nn, t: nn.vmap(t, **STACKED, in_axes=(0, None)),
    "remat": lambda nn, t: nn.remat(t),
    "jit": lambda nn, t: nn.jit(t),
    "scan of remat": lambda nn, t: nn.scan(nn.remat(t), **STACKED, length=3),
}


def chosen(nn: Any, mdl: Any, x: Any) -> Any:
    return (x, None) if x.sum() > 0 else (-x, None)


def counted(nn: Any, mdl: Any, x: Any) -> Any:
    return x * sum(range(int(x.sum()))), None


def multiplied(nn: Any, mdl: Any, x: Any) -> Any:
    return x @ jnp.ones((7, 7)), None


def unfit(nn: Any, mdl: Any, x: Any) -> Any:
    return jax.lax.dot(x, jnp.ones((7, 7))), None


def failing(nn: Any, mdl: Any, x: Any) -> Any:
    raise RuntimeError("of the user's own")


def unnamed(nn: Any, mdl: Any, x: Any) -> Any:
    return jax.lax.psum(x, "nowhere"), None


def wider(nn: Any, mdl: Any, x: Any) -> Any:
    return nn.Dense(5)(x), None


def rematted(nn: Any, mdl: Any, x: Any) -> Any:
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return x if train else -x

    return nn.remat(Block)()(x, True)


def applied(variables: Any, x: Any) -> Callable[[Library], Any]:
    return lambda lib: lib.nn.Dense(3).apply(variables, x)


MISTAKES: dict[str, Callable[[Library], Any]] = {
    **{
        f"{body.__name__} in {name}": lifted(lift, body)
        for body in (chosen, counted, multiplied, unfit, failing, unnamed)
        for name, lift in LIFTS.items()
    },
    "a carry of another width": lifted(LIFTS["scan"], wider),
    "a carry of another width, four deep": lifted(LIFTS["scan"], wider, depth=4),
    "a bool into remat": inside(rematted),
    "a bool into remat, four deep": inside(rematted, depth=4),
    "shapes that do not fit, four deep": inside(multiplied, depth=4),
    "an if, four deep, in a scan": lifted(LIFTS["scan"], chosen, depth=4),
    "no parameters": applied({}, X),
    "parameters of another shape": applied(
        {"params": {"kernel": jnp.ones((5, 3)), "bias": jnp.ones(3)}}, X
    ),
    "a text for an input": applied({"params": {"kernel": X, "bias": X}}, "text"),
    **{f"misuse: {name}": misuse for name, misuse in MISUSES.items()},
}


DIRECT = (
    "misuse: a number as a parent",
    "misuse: a text as a parent",
    "misuse: a field in setup",
    "misuse: clone with another field",
)
"""Outside of every call, a line or two of liftax's are left: whatever hides them would cost each
module that is made."""


def shown(mistake: Callable[[Library], Any], lib: Library) -> Exception:
    try:
        mistake(lib)
    except Exception as error:
        return error
    raise AssertionError("no mistake")


def lines(error: Exception) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_ends_at_the_users_line_and_is_no_longer_than_linens(mistake: str) -> None:
    here, theirs = (shown(MISTAKES[mistake], lib) for lib in (ours(), linen()))
    frames = traceback.extract_tb(here.__traceback__)
    if mistake not in DIRECT:
        assert not [f for f in frames if f.filename.startswith(NOT_SHOWN)]
    assert len(frames) <= len(traceback.extract_tb(theirs.__traceback__))
    assert "another exception" not in "\n".join(lines(here))
    more = MESSAGE if isinstance(here, liftax.errors.LiftaxError) else 1
    assert len(lines(here)) <= len(lines(theirs)) + more


@pytest.mark.parametrize(
    ("lift", "body"),
    [
        *[(lift, body) for lift in LIFTS for body in (multiplied, unfit)],
        *[(lift, body) for lift in ("scan", "vmap") for body in (chosen, counted)],
    ],
)
def test_an_error_of_jax_says_in_which_module_it_came(lift: str, body: Any) -> None:
    error = shown(lifted(LIFTS[lift], body), ours())
    (note,) = [n for n in error.__notes__ if n.startswith("in module ")]
    assert re.match(r"in module /\w+_0, inside .*\bof Body", note), note
    assert ("nn.cond" in note) == (body in (chosen, counted))


def test_an_error_of_the_users_own_is_left_as_it_is() -> None:
    error = shown(lifted(LIFTS["scan"], failing), ours())
    assert not [n for n in error.__notes__ if n.startswith("in module ")]


def test_the_error_of_jax_is_kept_behind_the_message() -> None:
    error = shown(MISTAKES["a bool into remat"], ours())
    assert isinstance(error.__context__, jax.errors.TracerBoolConversionError)


@pytest.mark.parametrize("mode", ["off", "remove_frames", "tracebackhide", "quiet_remove_frames"])
def test_the_setting_of_jax_holds(mode: str) -> None:
    code = (
        "import jax, liftax as nn; import jax.numpy as jnp; nn.Dense(3).apply({}, jnp.ones((2, 3)))"
    )
    env = {**os.environ, "JAX_TRACEBACK_FILTERING": mode}
    run = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert run.returncode == 1
    last = run.stderr.split("Traceback (most recent call last)")[-1]
    assert ("scope.py" in last) == (mode in ("off", "tracebackhide"))
    assert "LX" in last
