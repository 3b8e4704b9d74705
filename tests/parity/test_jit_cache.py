"""What `nn.jit` finds again: fields of every kind and equal blocks are traced as often as in Linen.

Linen traces the body of a scan twice, so there it is once here for twice there.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import ON_FLAX, Counter, Library, both, ours
from helpers.models import cheap

pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)


@dataclasses.dataclass
class Options:
    """Not hashable: it can be changed."""

    size: Any


@dataclasses.dataclass(frozen=True)
class Fixed:
    """Hashable where what it holds is."""

    size: Any


class Refuses:
    def __hash__(self) -> int:
        raise RuntimeError("no hash of this one")


class Level(enum.Enum):
    LOW = 1


Pair = collections.namedtuple("Pair", "a b")

FIELDS: dict[str, Any] = {
    "set": {1, 2},
    "set in a tuple": ({1},),
    "set in a dict": {"a": {1}},
    "frozenset": frozenset({1}),
    "list": [1, [2]],
    "dict": {"a": [1]},
    "namedtuple": Pair(1, [2]),
    "deque": collections.deque([1]),
    "bytearray": bytearray(b"a"),
    "ordered dict": collections.OrderedDict(a=1),
    "mapping proxy": types.MappingProxyType({"a": 1}),
    "dataclass": Options(1),
    "frozen dataclass": Fixed(1),
    "frozen dataclass of a list": Fixed([1]),
    "array": np.ones(2),
    "dtype": jnp.bfloat16,
    "numpy's dtype": np.dtype("float32"),
    "enum": Level.LOW,
    "function": jnp.tanh,
    "partial": functools.partial(jnp.sum, axis=0),
    "shape": jax.ShapeDtypeStruct((2,), jnp.float32),
    "nan": float("nan"),
    "spec": jax.sharding.PartitionSpec("a"),
}


def _traces(lib: Library, decorated: bool, *values: Any) -> list[int]:
    """How often a jitted module is traced for each of the values in a field, applied twice."""
    nn, counter = lib.nn, Counter()

    def body(self: Any, x: Any) -> Any:
        counter.hit()
        return x * 2

    class Holder(nn.Module):
        field: Any
        __call__ = nn.jit(body) if decorated else body

    made = Holder if decorated else nn.jit(Holder)
    found = []
    for value in values:
        for _ in range(2):
            made(value).apply({}, X)
        found.append(counter.take())
    return found


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_of_every_kind(kind: str) -> None:
    for decorated in (True, False):
        assert both(lambda lib, d=decorated: _traces(lib, d, FIELDS[kind])) == [1]


def test_other_values_are_other_programs() -> None:
    """Also where Python takes them for equal, or their classes compare without types."""
    values = [{1}, {2}, {True}, frozenset({1}), Options(1), Options(2), Fixed(1), Fixed(True)]
    if not ON_FLAX:
        assert _traces(ours(), False, *values) == [1] * len(values)


@pytest.mark.parametrize("value", [Refuses(), Fixed(Refuses()), [Refuses()]], ids=["", "in", "of"])
def test_what_has_no_key_is_refused(value: Any) -> None:
    """A ValueError, as in Linen; what the class raises for its hash is the cause."""
    with pytest.raises(ValueError, match="not hashable"):
        _traces(ours(), False, value)


@pytest.mark.parametrize("statistics", [False, True], ids=["params", "batch_stats"])
@pytest.mark.parametrize("scanned", [False, True], ids=["alone", "in a scan"])
def test_equal_blocks_are_traced_once(scanned: bool, statistics: bool) -> None:
    counts: dict[str, list[int]] = {}

    def run(lib: Library) -> Any:
        nn, counter = lib.nn, Counter()

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x: Any) -> Any:
                counter.hit()
                x = nn.Dense(4, kernel_init=cheap)(x)
                if statistics:
                    x = nn.BatchNorm(use_running_average=False)(x)
                return nn.Dropout(0.5, deterministic=False)(x)

        jitted = nn.jit(Block)

        class Model(nn.Module):
            @nn.compact
            def __call__(self, x: Any, _: Any) -> Any:
                for _ in range(3):
                    x = jitted()(x)
                return x, None

        target = Model
        if scanned:
            target = nn.scan(
                Model,
                variable_axes={"params": 0, "batch_stats": 0},
                split_rngs={"params": True, "dropout": True},
                length=2,
            )
        key, found = jax.random.key(0), []
        variables = target().init({"params": key, "dropout": key}, X, None)
        found.append(counter.take())
        out = target().apply(
            variables, X, None, mutable=["batch_stats"], rngs={"dropout": jax.random.key(1)}
        )
        counts[lib.name] = [*found, counter.take()]
        return variables, out

    both(run)
    assert counts[ours().name] == ([2, 2] if ON_FLAX and scanned else [1, 1])


def test_methods_of_one_class_are_programs_of_their_own() -> None:
    """The methods share the caches of the lift: a program is told apart by its method too."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Two(nn.Module):
            def setup(self) -> None:
                self.dense = nn.Dense(4, kernel_init=cheap)

            def up(self, x: Any) -> Any:
                return self.dense(x) + 1

            def down(self, x: Any) -> Any:
                return self.dense(x) - 1

            def __call__(self, x: Any) -> Any:
                return self.up(x), self.down(x)

        lifted = nn.jit(Two, methods=["up", "down"])()
        return lifted.init_with_output(jax.random.key(0), X)

    both(run)
