"""How modules of public code are written: fields, constructors, attributes, containers.

A program for Linen; run with flax and with liftax, it prints the same lines. Where Linen refuses,
the name of the error is printed.
"""

import copy
import dataclasses
import functools
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from flax.linen import module as linen_module

KEY = jax.random.key(0)
X = jnp.asarray(np.sin(np.arange(6.0)).reshape(2, 3), jnp.float32)


def bits(tree):
    """Paths, shapes and bits of all arrays."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [
        (jax.tree_util.keystr(path), np.shape(leaf), np.asarray(leaf).tobytes().hex()[:24])
        for path, leaf in leaves
    ]


def show(what, run):
    try:
        found = run()
    except Exception as error:
        found = type(error).__name__
    print(what, found)


def show_init(what, made):
    show(what, lambda: bits(made().init_with_output(KEY, X)))


class Filled(nn.Module):
    """A field that `setup` fills, and one that no constructor takes."""

    width: int = 2
    layer: Any = dataclasses.field(init=False)
    more: int = dataclasses.field(init=False, default=3)

    def setup(self):
        self.layer = nn.Dense(self.width + self.more)

    def __call__(self, x):
        return self.layer(x)


class Derived(nn.Module):
    n: int = 2
    total: int = dataclasses.field(init=False)

    def __post_init__(self):
        self.total = self.n * 2
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.total)(x)


class Longer(Derived):
    m: int = 1


class KeywordsOnly(nn.Module, kw_only=True):
    a: int = 1
    b: int

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.a * self.b)(x)


class ForTheConstructor(nn.Module):
    a: int
    factor: dataclasses.InitVar[int] = 2

    def __post_init__(self, factor):
        self.width = self.a * factor
        super().__post_init__()

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.width)(x)


def fields():
    for lift in (lambda cls: cls, nn.remat, nn.jit):
        show_init("filled", lift(Filled))
    mapped = nn.vmap(Filled, variable_axes={"params": 0}, split_rngs={"params": True})
    show_init("filled, under vmap", mapped)
    show_init("filled, cloned", lambda: Filled().clone(width=3))
    show("filled by the caller", lambda: Filled(layer=1))
    show("not filled yet", lambda: Filled().layer)
    show("equal", lambda: (Filled() == Filled(), hash(Filled()) == hash(Filled())))
    show("bound", lambda: type(Filled().bind(Filled().init(KEY, X)).layer).__name__)
    show_init("derived", lambda: Derived(3))
    show("derived, changed", lambda: (Derived(3).clone(n=5).total, Derived(3).copy(n=4).total))
    show("fields", lambda: [f.name for f in dataclasses.fields(Longer)])
    show_init("longer", lambda: Longer(2, m=3))
    show_init("pickled", lambda: pickle.loads(pickle.dumps(Derived(3))))
    show_init("copied", lambda: copy.deepcopy(copy.copy(Filled())))
    show_init("replaced", lambda: dataclasses.replace(Derived(3), n=1))
    show_init("keywords", lambda: KeywordsOnly(b=2))
    show_init("for the constructor", lambda: ForTheConstructor(2))
    show("frozen", lambda: setattr(Derived(3), "n", 4))


class OwnInit(nn.Module):
    n: int = 3

    def __init__(self, n, extra=0, parent=None, name=None):
        self.n = n + extra
        self.parent, self.name = parent, name
        self.__post_init__()

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.n)(x)


class SuperInit(nn.Module):
    n: int = 3

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.n)(OwnInit(3, name="own")(nn.remat(OwnInit)(3)(x)))


def constructors():
    show_init("own", lambda: OwnInit(3, extra=1))
    show_init("own, cloned", lambda: OwnInit(4).clone())
    show_init("super", lambda: SuperInit(n=2))


class SetsOthers(nn.Module):
    def __setattr__(self, key, value):
        super().__setattr__(key, nn.Dense(5) if key == "dense" else value)

    def setup(self):
        self.dense = nn.Dense(2)

    def __call__(self, x):
        return self.dense(x)


class GetsOthers(nn.Module):
    def __getattr__(self, key):
        return 6 if key == "magic" else super().__getattr__(key)

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.magic)(x)


class Four:
    def __get__(self, instance, owner=None):
        return self if instance is None else 4

    def __set__(self, instance, value):
        raise AttributeError("read only")


class Declared:
    """A descriptor that declares a parameter when it is read."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, instance, owner=None):
        return self if instance is None else instance.param(self.name, nn.initializers.ones, (3,))


class Attributes(nn.Module):
    n: int = 2
    four = Four()
    scale = Declared()

    @property
    def double(self):
        return self.n * 2

    @functools.cached_property
    def triple(self):
        return self.n * 3

    @functools.cached_property
    def kept(self):
        return nn.Dense(3)

    @property
    def wrong(self):
        return self.nothing

    @classmethod
    def of(cls, n):
        return cls(n)

    @nn.nowrap
    def helper(self):
        return self.double + self.four + self.triple

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.helper())(self.kept(self.kept(x)) * self.scale)


class OfSetup(nn.Module):
    def setup(self):
        self.dense = nn.Dense(2)
        self.shift = self.param("shift", nn.initializers.ones, (2,))

    @property
    def inner(self):
        return self.dense

    @property
    def value(self):
        return self.get_variable("params", "shift") + self.inner(X)

    def __call__(self, x):
        return self.value


def attributes():
    show_init("setattr", SetsOthers)
    show_init("getattr", GetsOthers)
    show_init("descriptors", lambda: Attributes.of(3))
    show("properties", lambda: (Attributes().double, Attributes().triple, Attributes().four))
    show("of setup", lambda: OfSetup().inner)
    show_init("of setup", OfSetup)
    show("wrong", lambda: (hasattr(Attributes(), "wrong"), Attributes().wrong))
    show("set", lambda: setattr(Attributes(), "double", 3))
    show("set", lambda: setattr(Attributes(), "four", 3))


class Defaults(nn.Module):
    inner: nn.Module = nn.Dense(4)
    again: nn.Module = inner
    made: nn.Module = dataclasses.field(default_factory=lambda: nn.Dense(3))
    cls: Any = nn.Dense
    part: Any = functools.partial(nn.Dense, 2)
    layers: Sequence[nn.Module] = (nn.Dense(4), nn.relu, nn.Dense(3))

    @nn.compact
    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.part()(self.cls(3)(self.again(self.made(self.inner(x)[:, :3]))))


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        return Defaults()(jnp.tile(Defaults()(x), 2)[:, :3])


def defaults():
    show_init("defaults", Defaults)
    show_init("defaults, twice", Twice)
    show_init("defaults, under jit", nn.jit(Defaults))


class Pair(NamedTuple):
    a: Any
    b: Any


@struct.dataclass
class Tree:
    closed: Any = struct.field(pytree_node=False)
    open: Any = None


def run_all(held, x):
    for leaf in jax.tree.leaves(held, is_leaf=lambda y: isinstance(y, (nn.Module, nn.Variable))):
        if isinstance(leaf, nn.Variable):
            x = x * leaf.value
        elif isinstance(leaf, nn.Module) or callable(leaf):
            x = leaf(x)
    return x


class InAField(nn.Module):
    held: Any

    def __call__(self, x):
        return run_all(self.held, x)


class InSetup(nn.Module):
    kind: str

    def setup(self):
        dense = nn.Dense(3)
        self.held = {
            "one in three places": lambda: [dense, dense, {"k": dense}],
            "a parameter": lambda: {"w": self.param("w", nn.initializers.ones, (3,)), "d": dense},
            "a variable": lambda: [self.variable("state", "v", jnp.ones, (3,))],
            "nothing": lambda: [{}, ()],
            "a partial": lambda: functools.partial(dense),
            "a function": lambda: [lambda x: dense(x)],
            "names": lambda: [nn.Dense(3, name=f"layer{i}") for i in range(2)],
            **{kind: (lambda made=made: made) for kind, made in containers().items()},
        }[self.kind]()
        self.kept = self.held

    def __call__(self, x):
        return run_all(self.held, x)


class Late(nn.Module):
    def setup(self):
        self.layers = []
        self.layers.append(nn.Dense(3))

    def __call__(self, x):
        return self.layers[0](x)


class Collide(nn.Module):
    def setup(self):
        self.layers_0 = nn.Dense(3)
        self.layers = [nn.Dense(3)]

    def __call__(self, x):
        return self.layers[0](x)


def containers():
    return {
        "dicts": {"a": [nn.Dense(3), (nn.Dense(3),)], "b": {"c": nn.Dense(3)}},
        "a pair": Pair(nn.Dense(3), [nn.Dense(3)]),
        "frozen": flax.core.freeze({"a": {"b": nn.Dense(3)}}),
        "numbers": {1: nn.Dense(3)},
        "mixed": [None, {"f": nn.relu, "m": nn.Dense(3), "n": 3}],
        "a tree": Tree(nn.Dense(3), nn.Dense(3)),
    }


def nested():
    for kind, held in containers().items():
        show_init(f"a field: {kind}", functools.partial(InAField, held))
        show_init(f"setup: {kind}", functools.partial(InSetup, kind))
    for kind in ("one in three places", "a parameter", "a variable", "nothing", "a partial",
                 "a function", "names"):  # fmt: skip
        show_init(f"setup: {kind}", functools.partial(InSetup, kind))
    show("late", lambda: type(Late().init(KEY, X)).__name__)
    show_init("collide", Collide)


class Outside(nn.Module):
    """Modules that belong to nobody are made while nobody stands on the stack."""

    @nn.compact
    def __call__(self, x):
        stack = linen_module._context.module_stack
        assert stack[-1] is self and stack[0] is None
        stack.append(None)
        try:
            free = nn.Dense(2)
        finally:
            stack.pop()
        alone, mine = nn.Dense(2, parent=None), nn.Dense(2, parent=self)
        assert free.parent is None and alone.parent is None
        print("stack", len(stack), free.name, alone.name, mine.name, nn.Dense(1).name)
        print("place", self.name, self.path, self.scope.path, self.scope.name)
        return mine(x)


class Kept(nn.Module):
    layer: nn.Module

    def __call__(self, x):
        return self.layer(x)


def names():
    show_init("outside", Outside)
    print("stack", len(linen_module._context.module_stack))
    show_init("adopted names are left", lambda: Kept(nn.Dense(3, name="mine")))


if __name__ == "__main__":
    fields()
    constructors()
    attributes()
    defaults()
    nested()
    names()
