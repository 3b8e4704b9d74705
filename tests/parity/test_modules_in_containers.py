"""Modules in containers: what they are called, in every container, wherever it stands."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, ours
from helpers.models import cheap
from helpers.run import keys

X = jnp.ones(())


class Pair(NamedTuple):
    right: Any
    left: Any


@flax.struct.dataclass
class Struct:
    right: Any
    left: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Data:
    right: Any
    left: Any


@jax.tree_util.register_pytree_node_class
class Node:
    def __init__(self, right: Any, left: Any):
        self.right, self.left = right, left

    def tree_flatten(self) -> Any:
        return (self.right, self.left), None

    @classmethod
    def tree_unflatten(cls, _: Any, parts: Any) -> Any:
        return cls(*parts)


@jax.tree_util.register_pytree_with_keys_class
class Keyed(Node):
    def tree_flatten_with_keys(self) -> Any:
        key = jax.tree_util.GetAttrKey
        return ((key("right"), self.right), (key("left"), self.left)), None


class MyList(list[Any]):
    pass


class MyDict(dict[Any, Any]):
    pass


def _defaultdict(**items: Any) -> Any:
    return collections.defaultdict(list, items)


Make = Callable[[Any, Any], Any]

KINDS: dict[str, Make] = {
    "list": lambda a, b: [a, b],
    "tuple": lambda a, b: (a, None, b),
    "list subclass": lambda a, b: MyList([a, b]),
    "NamedTuple": Pair,
    "dict": lambda a, b: {"right": a, "left": b},
    "dict of numbers": lambda a, b: {10: a, 9: b},
    "dict of several types": lambda a, b: {("k", 1): a, None: b},
    "dict subclass": lambda a, b: MyDict(right=a, left=b),
    "OrderedDict": lambda a, b: collections.OrderedDict(right=a, left=b),
    "defaultdict": lambda a, b: _defaultdict(right=a, left=b),
    "FrozenDict": lambda a, b: flax.core.FrozenDict({"right": a, "left": b}),
    "flax.struct": Struct,
    "Partial": lambda a, b: jax.tree_util.Partial(max, a, last=[b]),
    "nested": lambda a, b: {"k": Pair((1, a), {"j": [b]})},
    "nested in NamedTuple": lambda a, b: Pair(_defaultdict(k=a), Struct([b], 3)),
    "beside other values": lambda a, b: [{"f": max, "x": X}, a, "text", {}, b],
    "one twice in a list": lambda a, b: [*[b] * 2, a, *[b] * 7, a],
    "one twice in a dict": lambda a, b: {"z": a, "b": a, "c": {"x": b, "a": b}},
    "one twice in a NamedTuple": lambda a, b: Pair(a, a),
    "one twice in nested ones": lambda a, b: {"z": Pair(a, b), "b": [b, a]},
}
NOT_IN_LINEN: dict[str, tuple[Make, list[str]]] = {
    "MappingProxyType": (
        lambda a, b: types.MappingProxyType({"right": a, "left": b}),
        ["f_left", "f_right"],
    ),
    "UserDict": (lambda a, b: collections.UserDict(right=a, left=b), ["f_left", "f_right"]),
    "dataclass pytree": (Data, ["f_left", "f_right"]),
    "node": (Node, ["f_0", "f_1"]),
    "node with keys": (Keyed, ["f_left", "f_right"]),
    "nested": (lambda a, b: Data([a], Keyed({"k": b}, None)), ["f_left_right_k", "f_right_0"]),
}


def leaf(lib: Library) -> Any:
    class Leaf(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, x):
            return x * self.param("w", cheap, ())

    return Leaf


def call_all(mdl: Any, x: Any) -> Any:
    """Calls the modules in a container, whatever it is, in the order of their names."""
    for _, child in sorted(mdl._state.children.items()):
        x = child(x) if callable(child) else x
    return x


def placed(lib: Library, make: Make, place: str) -> Any:
    """A model with a container of two modules somewhere."""
    nn = lib.nn
    new = leaf(lib)

    class Field(nn.Module):
        f: Any

        @nn.compact
        def __call__(self, x):
            return call_all(self, x)

    class Setup(nn.Module):
        def setup(self):
            self.f = make(new(), new())

        def __call__(self, x):
            return call_all(self, x * (self.f is not None))

    class Outer(nn.Module):
        first: Any

        def setup(self):
            self.second = [Field(make(new(), new()))]

        def __call__(self, x):
            return self.second[0](self.first(x))

    class Step(Setup):
        def __call__(self, x):
            return super().__call__(x), None

    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    if place == "field":
        return Field(make(new(), new()))
    if place == "setup":
        return Setup()
    if place == "nested":
        return Outer(Field(make(new(), new())))
    if place == "scan":
        return nn.scan(Step, length=2, **axes)()
    if place == "vmap":
        return nn.vmap(Setup, in_axes=None, axis_size=2, **axes)()
    return {"remat": nn.remat, "jit": nn.jit}[place](Setup)()


@pytest.mark.parametrize("place", ["field", "setup", "nested"])
@pytest.mark.parametrize("kind", KINDS)
def test_names_are_linens(kind: str, place: str) -> None:
    if (kind, place) == ("list subclass", "setup"):
        pytest.skip("left unbound by Linen, in setup alone")
    assert both(lambda lib: placed(lib, KINDS[kind], place).init(keys(), X))["params"]


@pytest.mark.parametrize("place", ["scan", "vmap", "remat", "jit"])
@pytest.mark.parametrize(
    "kind", ["NamedTuple", "defaultdict", "Partial", "nested", "one twice in nested ones"]
)
def test_names_are_linens_under_every_lift(kind: str, place: str) -> None:
    both(lambda lib: jax.eval_shape(placed(lib, KINDS[kind], place).init, keys(), X))


@pytest.mark.parametrize("place", ["field", "setup", "remat"])
@pytest.mark.parametrize("kind", NOT_IN_LINEN)
def test_containers_that_linen_does_not_open(kind: str, place: str) -> None:
    """Linen leaves the modules in them unbound; here they are named in the same way."""
    make, names = NOT_IN_LINEN[kind]
    variables = jax.eval_shape(placed(ours(), make, place).init, keys(), X)
    assert sorted(variables["params"]) == names


def test_two_keys_of_one_text() -> None:
    lib = ours()
    model = placed(lib, lambda a, b: {1: a, "1": b}, "field")
    with pytest.raises(lib.errors.NameInUseError, match="f_1"):
        model.init(keys(), X)


def _kinds(value: Any) -> Any:
    """The types of containers, from the outside in; Linen's FrozenDict stands for a dict."""
    if hasattr(value, "keys"):
        return {"dict": {key: _kinds(value[key]) for key in sorted(value, key=str)}}
    if isinstance(value, (list, tuple)):
        return {type(value).__name__: {str(i): _kinds(part) for i, part in enumerate(value)}}
    return value


@pytest.mark.parametrize("kind", [k for k in KINDS if "one" not in k and "other" not in k])
def test_what_a_field_holds_is_frozen(kind: str) -> None:
    if kind in ("FrozenDict", "flax.struct", "Partial", "nested in NamedTuple"):
        pytest.skip("no plain container; a FrozenDict keeps the lists in it")

    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            a: Any

            def setup(self):
                self.b = KINDS[kind](1, [2])

            def __call__(self):
                return repr(_kinds(self.a)), repr(_kinds(self.b))

        return Model(KINDS[kind](1, [2])).apply({})

    both(run)


@pytest.mark.parametrize("kind", ["NamedTuple", "defaultdict", "flax.struct", "nested"])
@pytest.mark.parametrize("lift", ["remat", "jit", "vmap"])
def test_containers_of_modules_as_arguments_and_in_fields_of_lifted_modules(
    kind: str, lift: str
) -> None:
    make = KINDS[kind]

    def run(lib: Library) -> Any:
        nn = lib.nn
        new = leaf(lib)

        def lifted(target: Any) -> Any:
            if lift == "vmap":
                split = {"split_rngs": {"params": False}}
                shared = {"variable_axes": {"params": None}, **split}
                return nn.vmap(target, in_axes=None, axis_size=2, **shared)
            return getattr(nn, lift)(target)

        class Use(nn.Module):
            f: Any

            @nn.compact
            def __call__(self, x):
                for part in jax.tree.leaves(self.f, is_leaf=callable):
                    x = part(x) if callable(part) else x
                return x * self.param("w", cheap, ())

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                a, b = new(), new()
                x = lifted(Use)(make(a, b))(x)
                if lift == "vmap":
                    return x
                f = lifted(lambda mdl, both, x: Use(both, name="inner")(x))
                return f(self, make(a, b), x)

        variables = Model().init(keys(), X)
        return variables, Model().apply(variables, X)

    both(run)


@pytest.mark.parametrize("keep", [True, False, None])
def test_preserve_adopted_names(keep: bool | None) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn
        new = leaf(lib)

        class Model(nn.Module):
            f: Any
            if keep is not None:
                preserve_adopted_names = keep

            @nn.compact
            def __call__(self, x):
                x = new()(x)
                for part in jax.tree.leaves(self.f, is_leaf=callable):
                    x = part(x)
                return x

        model = Model([new(name="mine"), {"k": new()}, Model(new(name="deep"), name="inner")])
        return model.init(keys(), X), nn.remat(Model)(new(name="mine")).init(keys(), X)

    inside = both(run)[0]["params"]
    assert ("mine" in inside) is ("deep" in inside.get("inner", {})) is bool(keep)


LIFTS = ["none", "remat", "jit", "vmap", "scan", "function", "while_loop", "cond", "map_variables"]


@pytest.mark.parametrize("wrap", [lambda v: v, lambda v: Pair([v], 1)], ids=["bare", "nested"])
@pytest.mark.parametrize("lift", LIFTS)
def test_a_variable_in_a_field_is_written_under_lifts(lift: str, wrap: Callable[..., Any]) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Count(nn.Module):
            calls: Any

            @nn.compact
            def __call__(self, x):
                calls = self.calls.right[0] if isinstance(self.calls, Pair) else self.calls
                calls.value += 1.0
                return x * self.param("w", cheap, ()) + calls.value

        class Step(Count):
            def __call__(self, x):
                return super().__call__(x), None

        def lifted(mdl: Any, calls: Any, x: Any) -> Any:
            split = {"split_rngs": {"params": True}}
            both = {"variable_axes": {"params": 0, "state": None}, **split}
            if lift in ("remat", "jit"):
                return getattr(nn, lift)(Count)(calls)(x)
            if lift == "vmap":
                return nn.vmap(Count, in_axes=None, axis_size=2, **both)(calls)(x)
            if lift == "scan":
                axes = {"variable_axes": {"params": 0}, "variable_carry": "state", **split}
                return nn.scan(Step, length=2, **axes)(calls)(x)[0]
            if lift == "map_variables":
                init = mdl.is_initializing()
                return nn.map_variables(Count, "params", lambda p: p, init=init)(calls)(x)
            inner = Count(calls)
            if lift == "function":
                return nn.remat(lambda m, x: m(x))(inner, x)
            if lift == "cond":
                return nn.cond(x > 0, lambda m, x: m(x), lambda m, x: m(x) * 2.0, inner, x)
            if lift == "while_loop" and not mdl.is_initializing():
                return nn.while_loop(
                    lambda m, c: c[0] < 2,
                    lambda m, c: (c[0] + 1, m(c[1])),
                    inner,
                    (0, x),
                    carry_variables="state",
                )[1]
            return inner(x)

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x):
                calls = self.variable("state", "calls", lambda: jnp.zeros(()))
                return lifted(self, wrap(calls), x), calls.value

        variables = Model().init(keys(), X)
        known = jax.tree.map(jnp.ones_like, variables)
        return variables, Model().apply(known, X, mutable=["state"])

    both(run)
