"""Misuse of modules beside Linen's: what users catch there, they catch here."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, linen, ours

X = jnp.ones(2)
KEY = jax.random.key(0)


def model(lib: Library) -> Any:
    class Model(lib.nn.Module):
        width: int = 2

        def other(self, x):
            return x

        @lib.nn.compact
        def __call__(self, x):
            return x * self.param("w", lambda key: jnp.ones(self.width))

    return Model


def compact(lib: Library, call: Callable[..., Any]) -> Any:
    class Model(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, x):
            return call(self, x)

    return Model()


def made(lib: Library) -> Any:
    return {"params": {"w": jnp.ones(2)}}


def bound(lib: Library) -> Any:
    return model(lib)().bind(made(lib))


def without_call(lib: Library) -> Any:
    class Model(lib.nn.Module):
        def other(self, x):
            return x

    return Model()


def without_init(lib: Library) -> Any:
    class Model(lib.nn.Module):
        def __init__(self):
            pass

        def __call__(self, x):
            return x

    return Model()


def perturbed(lib: Library) -> Any:
    def call(mdl: Any, x: Any) -> Any:
        return mdl.perturb("b", mdl.perturb("a", x))

    return compact(lib, call)


def reading(lib: Library, kind: str) -> Any:
    class Own:
        def __get__(self, mdl, cls=None):
            return mdl.missing

    class Model(lib.nn.Module):
        own = Own()

        @property
        def plain(self):
            return self.missing

        @functools.cached_property
        def cached(self):
            return self.missing

        def __call__(self, x):
            return getattr(self, kind, x)

    return Model()


def init(lib: Library, rngs: Any) -> Any:
    return model(lib)().init(rngs, X)


def apply(lib: Library, *args: Any, **kwargs: Any) -> Any:
    return model(lib)().apply(made(lib), X, *args, **kwargs)


def perturb(lib: Library, *names: str) -> Any:
    return perturbed(lib).apply({"perturbations": dict.fromkeys(names, X)}, X)


MISUSES: dict[str, Callable[[Library], Any]] = {
    "a text as a key": lambda lib: init(lib, {"params": "text"}),
    "a number as a key": lambda lib: init(lib, {"params": 3}),
    "None as a key": lambda lib: init(lib, {"params": None}),
    "floats as a key": lambda lib: init(lib, {"params": X}),
    "three words as a key": lambda lib: init(lib, {"params": jnp.ones(3, jnp.uint32)}),
    "two keys as one": lambda lib: init(lib, {"params": jax.random.split(KEY)}),
    "a stream without a name": lambda lib: init(lib, {0: KEY}),
    "a text for the streams": lambda lib: init(lib, "text"),
    "a list for the streams": lambda lib: init(lib, [KEY]),
    "no key": lambda lib: init(lib, {}),
    "a text as a key of apply": lambda lib: apply(lib, rngs={"dropout": "text"}),
    "a list of keys of apply": lambda lib: apply(lib, rngs=[KEY]),
    "mutable, a number": lambda lib: apply(lib, mutable=3),
    "mutable, a function": lambda lib: apply(lib, mutable=lambda col: True),
    "captures, a number": lambda lib: apply(lib, capture_intermediates=3),
    "an array as a collection": lambda lib: model(lib)().apply({"params": X}, X),
    "None as a collection": lambda lib: model(lib)().apply({"params": None}, X),
    "init without __call__": lambda lib: without_call(lib).init(KEY, X),
    "apply without __call__": lambda lib: without_call(lib).apply({}, X),
    "calling what has no __call__": lambda lib: without_call(lib)(X),
    "a number as a method": lambda lib: apply(lib, method=3),
    "a list as a method": lambda lib: apply(lib, method=["other"]),
    "a field as a method": lambda lib: apply(lib, method="width"),
    "init by a field": lambda lib: model(lib)().init(KEY, X, method="width"),
    "no such method": lambda lib: apply(lib, method="nothing"),
    "a method of no argument": lambda lib: apply(lib, method=lambda: 3),
    "lazy_init by a number": lambda lib: model(lib)().lazy_init(KEY, X, method=3),
    "bind of the class": lambda lib: model(lib).bind({}, {}),
    "bind of the class to nothing else": lambda lib: model(lib).bind({}),
    "apply of the class": lambda lib: model(lib).apply({}, X),
    "init of the class": lambda lib: model(lib).init(KEY, X),
    "bind with a text as a key": lambda lib: model(lib)().bind({}, rngs={"params": "text"}),
    "unbind of what is not bound": lambda lib: model(lib)().unbind(),
    "hash of a bound module": lambda lib: hash(bound(lib)),
    "hash inside": lambda lib: compact(lib, lambda mdl, x: hash(mdl)).apply({}, X),
    "a submodule as a key": lambda lib: compact(lib, lambda mdl, x: {lib.nn.Dense(2): x}).apply(
        {}, X
    ),
    "one perturbation of two": lambda lib: perturb(lib, "a"),
    "another perturbation": lambda lib: perturb(lib, "c"),
    "no perturbation in the collection": lambda lib: perturb(lib),
    "a number as a parameter's name": lambda lib: compact(
        lib, lambda mdl, x: mdl.param(3, lambda key: x)
    ).init(KEY, X),
    "None as a parameter's name": lambda lib: compact(
        lib, lambda mdl, x: mdl.param(None, lambda key: x)
    ).init(KEY, X),
    "a number as a variable's name": lambda lib: compact(
        lib, lambda mdl, x: mdl.variable("state", 3, lambda: x)
    ).init(KEY, X),
    "a number as the name of what is sown": lambda lib: compact(
        lib, lambda mdl, x: mdl.sow("state", 3, x)
    ).apply({}, X, mutable=["state"]),
    "a number as a submodule's name": lambda lib: compact(
        lib, lambda mdl, x: lib.nn.Dense(2, name=3)(x)
    ).init(KEY, X),
    "a number as a parent": lambda lib: lib.nn.Dense(2, parent=3),
    "a text as a parent": lambda lib: lib.nn.Dense(2, parent="text"),
    "__init__ without the fields": lambda lib: without_init(lib).apply({}, X),
    "the path of what is not bound": lambda lib: model(lib)().path,
    "the variables of what is not bound": lambda lib: model(lib)().variables,
    "perturb of what is not bound": lambda lib: model(lib)().perturb("a", X),
    "a property of nothing": lambda lib: reading(lib, "plain").apply({}, X),
    "a cached property of nothing": lambda lib: reading(lib, "cached").apply({}, X),
    "a descriptor of nothing": lambda lib: reading(lib, "own").apply({}, X),
    "a field in setup": lambda lib: bound(lib).__setattr__("width", 3),
    "clone with another field": lambda lib: model(lib)().clone(nothing=3),
    "copy with another field": lambda lib: model(lib)().copy(nothing=3),
    "parent among the parameters": lambda lib: type(
        "Model", (lib.nn.Module,), {"__annotations__": {"parent": Any}}
    ),
    "a number called name": lambda lib: type(
        "Model", (lib.nn.Module,), {"__annotations__": {"name": int}}
    ),
    "parent by position": lambda lib: model(lib)(2, None),
}


def _names(error: BaseException) -> set[str]:
    ours_for = {"FlaxError": "LiftaxError"}
    names = {cls.__name__ for cls in type(error).__mro__}
    return {ours_for.get(name, name) for name in names}


@pytest.mark.parametrize("misuse", MISUSES)
def test_what_users_catch_in_linen_they_catch_here(misuse: str) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        MISUSES[misuse](linen())
    with pytest.raises(Exception) as here:  # noqa: PT011
        MISUSES[misuse](ours())
    assert _names(theirs.value) <= _names(here.value)


@pytest.mark.parametrize(
    "use",
    [
        lambda lib: model(lib).__match_args__,
        lambda lib: list(model(lib).__dataclass_fields__),
        lambda lib: [field.name for field in dataclasses.fields(lib.nn.Dense)][-2:],
        lambda lib: (
            type("M", (model(lib),), {"__annotations__": {"z": int}, "z": 3}).__match_args__
        ),
        lambda lib: type(model(lib)).__call__ and bound(lib).path,
        lambda lib: apply(lib, capture_intermediates=None),
        lambda lib: model(lib)().bind(made(lib), "not used")(X),
        lambda lib: perturbed(lib).apply({}, X),
        lambda lib: perturb(lib, "a", "b", "more"),
        lambda lib: type("M", (lib.nn.Module,), {"__annotations__": {"name": str}})().name,
    ],
)
def test_what_is_no_misuse(use: Callable[[Library], Any]) -> None:
    both(use)


def test_a_repr_runs_no_setup() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        log: list[str] = []

        # No field has a default that it is left at: those liftax leaves out.
        class Leaf(nn.Module):
            width: int

            @nn.compact
            def __call__(self, x):
                return x * self.param("w", nn.initializers.ones, (self.width, 1))[0]

        class Child(nn.Module):
            width: int = 1
            made: Any = dataclasses.field(init=False)

            def setup(self):
                log.append("setup")
                self.made = [Leaf(self.width)]

            def __call__(self, x):
                return self.made[0](x)

        class Model(nn.Module):
            child: Any

            def setup(self):
                self.more = {"k": Child(3)}
                log.append(repr(self))

            def __call__(self, x):
                log.extend(map(repr, (self, self.child, self.more["k"])))
                x = self.child(x)
                log.append(repr(self))
                return x

        Model(Child(2)).init_with_output(KEY, X)
        assert log.count("setup") == 1
        return [text for text in log if text.startswith(("Model(", "Child("))]

    assert len(both(run)) == 5


def test_fields_that_setup_fills() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Block(nn.Module):
            width: int = 2
            dense: Any = dataclasses.field(init=False)
            more: Any = dataclasses.field(init=False, repr=False)

            def setup(self):
                self.dense = nn.Dense(self.width, use_bias=False)
                self.more = [3.0, nn.Dense(self.width)]

            def __call__(self, x):
                return self.more[1](self.dense(x)) * self.more[0]

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                return nn.remat(Block)()(nn.jit(Block)()(Block()(x)))

        assert Block() == Block() and hash(Block()) == hash(Block()) and Block().clone() == Block()
        return Model().init(KEY, X)

    both(run)


def test_a_submodule_as_method() -> None:
    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            inner: Any

            def __call__(self, x):
                return self.inner(x) + 1.0

        outer = Model(model(lib)())
        variables = {"params": {"inner": {"w": X * 3.0}}}
        return outer.apply(variables, X), outer.apply(variables, X, method="inner")

    both(run)


@pytest.mark.parametrize("where", ["setup", "setup, not yet assigned", "compact", "a list"])
def test_deep_copies_of_submodules(where: str) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Model(nn.Module):
            def setup(self):
                if where == "setup":
                    self.a = nn.Dense(2)
                    self.b = copy.deepcopy(self.a)
                else:
                    new = nn.Dense(2)
                    self.a, self.b = copy.copy(new), [copy.deepcopy(new)] * 2
                    self.c = copy.deepcopy([new, new, {"k": new}])

            @nn.compact
            def __call__(self, x):
                x = self.a(x)
                if where == "setup":
                    return self.b(x)
                if where == "compact":
                    one = nn.Dense(2)
                    x = one(x)
                    return copy.deepcopy(one)(x)
                return self.c[2]["k"](self.b[1](x))

        variables = Model().init(KEY, X)
        return variables, Model().apply(variables, X)

    both(run)
