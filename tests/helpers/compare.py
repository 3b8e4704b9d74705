"""liftax beside flax.linen, and comparison to the last bit.

A parity test writes its model once, as a function of a `Library`, and `both` runs it on each.
Setting ``LIFTAX_TESTS_SUBJECT=flax`` puts flax.linen in liftax's place as well: that checks the
tests themselves (are they legal Linen? do they compare what they say?), not the library.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import numpy as np

SUBJECT = os.environ.get("LIFTAX_TESTS_SUBJECT", "liftax")
ON_FLAX = SUBJECT == "flax"


@dataclasses.dataclass(frozen=True)
class Library:
    """The public names of one implementation, under the names that both have."""

    name: str
    nn: ModuleType
    core: ModuleType
    lift: ModuleType
    errors: ModuleType

    @property
    def In(self) -> Any:
        return getattr(self.core, "In", None) or self.lift.In

    @property
    def Out(self) -> Any:
        return getattr(self.core, "Out", None) or self.lift.Out

    @property
    def broadcast(self) -> Any:
        return self.core.broadcast

    def __repr__(self) -> str:
        return self.name


@functools.cache
def linen() -> Library:
    """flax.linen, the reference."""
    return Library(
        "flax",
        importlib.import_module("flax.linen"),
        importlib.import_module("flax.core"),
        importlib.import_module("flax.core.lift"),
        importlib.import_module("flax.errors"),
    )


@functools.cache
def ours() -> Library:
    """The library under test."""
    if ON_FLAX:
        return linen()
    return Library(
        "liftax",
        importlib.import_module("liftax"),
        importlib.import_module("liftax.core"),
        importlib.import_module("liftax.core.lift"),
        importlib.import_module("liftax.errors"),
    )


def _plain(value: Any) -> Any:
    """Dicts, lists and arrays only: boxes become dicts of their value and their axis names."""
    if hasattr(value, "unbox") and hasattr(value, "add_axis"):
        names = getattr(value, "names", None)
        return {"<box>": type(value).__name__, "names": names, "value": _plain(value.value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {name: _plain(getattr(value, name)) for name in value._fields}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def _bits(value: Any) -> tuple[Any, ...]:
    if isinstance(value, jax.Array) and jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
        value, kind = jax.random.key_data(value), str(value.dtype)
    else:
        kind = "array" if isinstance(value, (jax.Array, np.ndarray)) else type(value).__name__
    if isinstance(value, (jax.Array, np.ndarray, np.generic, bool, int, float, complex)):
        array = np.asarray(value)
        return kind, array.shape, str(array.dtype), array.tobytes()
    return (kind, value)


def assert_same(found: Any, expected: Any, what: str = "value") -> None:
    """Same structure, shapes, dtypes and bits; says where the first difference lies."""
    found, expected = _plain(found), _plain(expected)
    none = {"is_leaf": lambda leaf: leaf is None}
    left = jax.tree_util.tree_flatten_with_path(found, **none)
    right = jax.tree_util.tree_flatten_with_path(expected, **none)
    left_paths = [jax.tree_util.keystr(path) for path, _ in left[0]]
    right_paths = [jax.tree_util.keystr(path) for path, _ in right[0]]
    assert left_paths == right_paths, (
        f"{what}: paths differ\n  found    {left_paths}\n  expected {right_paths}"
    )
    assert left[1] == right[1], f"{what}: structures differ\n  {left[1]}\n  {right[1]}"
    for (path, a), (_, b) in zip(left[0], right[0], strict=True):
        where = what + jax.tree_util.keystr(path)
        bits_a, bits_b = _bits(a), _bits(b)
        assert bits_a[:-1] == bits_b[:-1], f"{where}: {bits_a[:-1]} is not {bits_b[:-1]}"
        if bits_a[-1] != bits_b[-1]:
            raise AssertionError(f"{where}: {_difference(a, b)}")


def _difference(a: Any, b: Any) -> str:
    if not isinstance(a, (jax.Array, np.ndarray)) or jax.dtypes.issubdtype(
        a.dtype, jax.dtypes.prng_key
    ):
        return f"found {a!r}, expected {b!r}"
    a, b = np.asarray(a), np.asarray(b)
    differs = np.asarray(a != b)
    gap = np.max(np.abs(a.astype(np.float64) - b.astype(np.float64))) if a.size else 0.0
    return f"{int(differs.sum())} of {a.size} numbers differ, by at most {gap:.3g}"


def both(run: Callable[[Library], Any], what: str = "result") -> Any:
    """Runs `run` on both libraries, asserts that the results are the same, returns ours."""
    found = run(ours())
    assert_same(found, run(linen()), what)
    return found


def shapes(tree: Any) -> Any:
    """The same tree with each array replaced by its shape."""
    return jax.tree.map(lambda leaf: tuple(np.shape(leaf)), tree)


class Counter:
    """Counts how often Python runs through a place, which is how often jax traces it."""

    def __init__(self) -> None:
        self.count = 0

    def hit(self) -> None:
        self.count += 1

    def take(self) -> int:
        """The count since the last call."""
        count, self.count = self.count, 0
        return count

    # A counter rides in dataclass fields of modules: equal to itself, and hashable.
    def __deepcopy__(self, memo: dict[int, Any]) -> Counter:
        return self
