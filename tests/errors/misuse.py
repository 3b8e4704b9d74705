"""A misuse and its corrected twin, at any depth of lifts: how the tests here are written.

A case is one function ``(mdl, x, wrong)``, the body of a compact method: with ``wrong`` it makes
the mistake, without it is the corrected program. `misuse` files it with what the message must
say; `cases_of` makes the parameters of a test module; `assert_refused` and `assert_passes` run it.
"""

from __future__ import annotations

import dataclasses
import re
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax.layout import RULES, rule_of

WIDTH = 4
MARK = 7.03125
"""In every input: a message that shows it prints array contents."""

X = jnp.full((2, WIDTH), MARK, jnp.float32)
"""The input of every case: two examples."""

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}

NESTS = {
    "bare": (),
    "scan": ("scan",),
    "vmap_remat": ("vmap", "remat"),
    "jit_scan_vmap": ("jit", "scan", "vmap"),
}
"""The lifts around a case, outermost first."""

ENDS = ("bare", "jit_scan_vmap")
"""Where the twins run: a program that passes at both ends passes in between."""


@dataclasses.dataclass(frozen=True)
class Misuse:
    """One mistake.

    Attributes:
      body: ``(mdl, x, wrong) -> y``.
      error: the class of the error.
      says: texts that the message must have.
      at: the path of the place that the message names, below the module whose body makes the
        mistake; None where no place is known.
      given: arguments of ``apply``; None for a mistake that shows in ``init``.
      keys: the streams of ``init``.
      cause: the class of JAX's own error behind it.
    """

    body: Callable[[nn.Module, Any, bool], Any]
    error: type[Exception]
    says: tuple[str, ...]
    at: str | None
    given: dict[str, Any] | None
    keys: dict[str, Any]
    cause: type[Exception] | None

    @property
    def name(self) -> str:
        return self.body.__name__


def misuse(
    error: type[Exception],
    *says: str,
    at: str | None = "",
    apply: bool | dict[str, Any] = False,
    keys: Iterable[str] = ("params",),
    cause: type[Exception] | None = None,
) -> Callable[[Callable[..., Any]], Misuse]:
    """Makes a case of a body; see `Misuse`. ``apply`` is True or arguments of ``apply``."""
    given = None if apply is False else {} if apply is True else apply

    def file(body: Callable[..., Any]) -> Misuse:
        return Misuse(body, error, says, at, given, {k: KEYS[k] for k in keys}, cause)

    return file


def cases_of(names: dict[str, Any], nests: Iterable[str] = NESTS) -> Any:
    """Parametrizes a test over the cases in a module, each at several depths."""
    found = [value for value in names.values() if isinstance(value, Misuse)]
    return pytest.mark.parametrize(
        ("case", "nest"),
        [pytest.param(case, nest, id=f"{case.name}-{nest}") for case in found for nest in nests],
    )


# --- the lifts around a case ---------------------------------------------------


def nested(case: Misuse, lifts: tuple[str, ...], wrong: bool) -> tuple[nn.Module, tuple[str, ...]]:
    """Returns the case's module inside ``lifts``, and the path at which it stands."""

    class Host(nn.Module):
        @nn.compact
        def __call__(self, x):
            return case.body(self, x, wrong)

    return _around(Host, lifts, "host")


def _around(host: type[nn.Module], lifts: tuple[str, ...], name: str) -> Any:
    if not lifts:
        return host(), ()
    inner, path = _around(host, lifts[1:], name)

    class Level(nn.Module):
        @nn.compact
        def __call__(self, x):
            return inner.copy(name="in")(x)

    class Step(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return inner.copy(name="in")(x), None

    every = {
        "variable_axes": {True: 0},
        "split_rngs": {True: True},
        "metadata_params": {nn.PARTITION_NAME: "outer"},
    }

    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            if lifts[0] == "scan":
                return nn.scan(Step, **every, length=2)(name="by")(x, None)[0]
            if lifts[0] == "vmap":
                return nn.vmap(Level, **every, in_axes=None, axis_size=2)(name="by")(x)[0]
            return {"remat": nn.remat, "jit": nn.jit}[lifts[0]](Level)(name="by")(x)

    return Outer(), ("by", "in", *path)


# --- running it -------------------------------------------------------------------


def _run(case: Misuse, nest: str, wrong: bool) -> Any:
    """Runs a case as a user would: init, and apply where the mistake shows there."""
    model, _ = nested(case, NESTS[nest], wrong)
    if case.given is None:
        return model.init(case.keys, X)
    fixed, _ = nested(case, NESTS[nest], False)
    shapes = jax.eval_shape(lambda: fixed.init(case.keys, X))
    variables = jax.tree.map(lambda s: jnp.full(s.shape, MARK, s.dtype), shapes)
    return model.apply(variables, X, **case.given)


def assert_refused(case: Misuse, nest: str) -> None:
    """The mistake raises its error, with the wording that belongs to it."""
    match = "|".join(map(re.escape, case.says))
    with pytest.raises(case.error, match=match) as caught:
        _run(case, nest, True)
    error, message = caught.value, str(caught.value)
    assert type(error) is case.error
    for text in case.says:
        assert text in message, f"{text!r} is not in the message:\n{message}"
    if case.at is not None:
        _, path = nested(case, NESTS[nest], True)
        place = "module /" + "/".join([*path, *case.at.split("/")] if case.at else path)
        assert re.search(re.escape(place) + r"(?![\w/])", message), f"no {place!r}:\n{message}"
    if case.cause is not None:
        assert isinstance(error.__context__, case.cause)
    assert_readable(message)
    if isinstance(error, nn.errors.LiftaxError):
        rule = rule_of(error)
        assert rule is not None and rule.code in RULES


def assert_readable(message: str) -> None:
    """At most 12 lines; no contents of arrays, no tracers, no addresses."""
    assert message and len(message.splitlines()) <= 12
    assert max(map(len, message.splitlines())) <= 400
    for part in (str(MARK), "Array(", "array(", "Tracer", "Traced<", "ShapedArray", " at 0x"):
        assert part not in message, f"{part!r} in the message:\n{message}"


def assert_passes(case: Misuse, nest: str) -> None:
    """The corrected twin is traced to its end, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        jax.eval_shape(lambda: _run(case, nest, False))


def show(case: Misuse, nest: str) -> str:
    """What a case says: for the eye."""
    try:
        _run(case, nest, True)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "(nothing)"
