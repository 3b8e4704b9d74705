"""The numbers that both sides are given, and how what they make of them is compared."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def filled(tree: object) -> Any:
    """Numbers in place of shapes, the same ones every time; all else as it is."""
    counter = iter(range(1_000))

    def numbers(leaf: object) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        return _numbers(next(counter), leaf.shape, str(leaf.dtype))

    return jax.tree.map(numbers, tree, is_leaf=lambda leaf: leaf is None)


def _numbers(seed: int, shape: tuple[int, ...], dtype: str) -> jax.Array:
    rng = np.random.default_rng(seed)
    kind = np.dtype(dtype).kind if dtype != "bfloat16" else "f"
    # Small and positive: a variance may be among them, and a deep stack is not to overflow.
    values = rng.uniform(0.1, 0.9, shape) if kind == "f" else rng.integers(0, 2, shape)
    return jax.numpy.asarray(values, dtype)


def variables_of(pairs: list[Any], side: int) -> dict[str, Any]:
    """Values for all variables, equal for the two of a pair, in the tree of one side."""
    tree: dict[str, Any] = {}
    for pair in pairs:
        v, named = pair[side], pair[1]
        # By the goal's name: both sides have the same numbers, whatever theirs are called.
        seed = zlib.crc32(f"{named.collection}/{named.name}".encode())
        inner = tree.setdefault(v.collection, {})
        for part in v.path[:-1]:
            inner = inner.setdefault(part, {})
        values = _numbers(seed, v.shape, v.dtype)
        # Weights of both signs, statistics as they are.
        inner[v.path[-1]] = values - 0.5 if v.collection == "params" else values
    return tree


def renamed(out: Any, pairs: list[Any], side: int) -> Any:
    """An output with the collections that came beside it, under the goal's names."""
    output, collections = out
    flat = {}
    for pair in pairs:
        v, named = pair[side], pair[1]
        inner: Any = collections.get(v.collection)
        for part in v.path:
            inner = inner.get(part) if isinstance(inner, Mapping) else None
        if inner is not None:
            flat[f"{named.collection}/{'/'.join(named.path)}"] = inner
    return output, flat


def unequal(mine: object, goal: object, rtol: float = 1e-4) -> str | None:
    """What is wrong with a result, in words, or nothing; both may be trees."""
    ours, structure = jax.tree.flatten(mine)
    asked, wanted = jax.tree.flatten(goal)
    if structure != wanted:  # type: ignore[operator]
        return f"it returns {_tree_text(mine)}, and is to return {_tree_text(goal)}"
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(goal)]
    for path, one, other in zip(paths, ours, asked, strict=True):
        place = f"output{path}" if path else "the output"
        if np.shape(one) != np.shape(other):
            return f"{place} has shape {np.shape(one)}, and is to have {np.shape(other)}"
        a, b = np.asarray(one, np.float64), np.asarray(other, np.float64)
        wrong = ~np.isclose(a, b, rtol=rtol, atol=1e-5, equal_nan=True)
        if wrong.any():
            i = tuple(int(n) for n in np.argwhere(wrong)[0])
            where = f" at {list(i)}" if i else ""
            some = f"; {int(wrong.sum())} of {wrong.size} differ" if wrong.size > 1 else ""
            return f"{place} is {a[i]:.5g}{where}, and is to be {b[i]:.5g}{some}"
    return None


def _tree_text(tree: object) -> str:
    text = str(jax.tree.map(lambda leaf: _Shape(leaf), tree))
    return text if len(text) <= 200 else text[:197] + "..."


class _Shape:
    """Prints as the shape of an array."""

    def __init__(self, leaf: Any) -> None:
        self.text = f"f{list(np.shape(leaf))}" if np.shape(leaf) else "a number"

    def __repr__(self) -> str:
        return self.text
