"""Pytrees as paths and leaves: what lies where in nested mappings, and any node one level deep."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import jax

from ..core.types import Path
from ..words import names_on
from .arrays import Array, is_array

T = TypeVar("T")


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


# None is a leaf that some trees have, so it cannot say that there is none.
MISSING = _Missing()


def get(tree: object, path: Path) -> object:
    """What lies at a path of nested mappings, `MISSING` where nothing does.

    Example:
      >>> get({"a": {"b": 1}}, ("a", "b")), get({"a": 1}, ("a", "b"))
      (1, MISSING)
    """
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            return MISSING
        tree = tree[name]
    return tree


def has(tree: object, path: Path) -> bool:
    """Whether something lies at a path."""
    return get(tree, path) is not MISSING


def put(tree: object, values: Mapping[Path, object]) -> object:
    """A copy of nested mappings with values at their paths; what is on no path is shared.

    Example:
      >>> put({"a": {"b": 1}}, {("a", "c"): 2, ("d",): 3})
      {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    if () in values:  # the tree itself
        return values[()]
    made = dict(tree) if isinstance(tree, Mapping) else {}
    # All values below one name at once: each mapping is copied once, however many layers it has.
    for name, part in _by_first_name(values).items():
        made[name] = put(made.get(name), part)
    return made


def remove(tree: object, paths: Collection[Path]) -> dict[str, object]:
    """A copy without what lies at the paths, and without mappings that are empty then.

    Example:
      >>> remove({"a": {"b": 1, "c": 2}, "d": 3}, [("a", "b"), ("a", "c")])
      {'d': 3}
    """
    if () in paths or not isinstance(tree, Mapping):
        return {}
    made = dict(tree)
    for name, rest in _by_first_name(dict.fromkeys(paths)).items():
        made[name] = remove(made[name], rest)
        if not made[name]:
            del made[name]
    return made


def _by_first_name(values: Mapping[Path, T]) -> dict[str, dict[Path, T]]:
    below: dict[str, dict[Path, T]] = {}
    for path, value in values.items():
        below.setdefault(path[0], {})[path[1:]] = value
    return below


class Level(NamedTuple):
    """One node of a pytree: its parts by name, and what makes such a node of other parts.

    `kind` is equal for nodes that differ in their parts alone; mappings are all of one kind.
    """

    kind: object
    parts: list[tuple[str, object]]
    rebuilt: Callable[[Iterable[object]], object]


def opened(node: object) -> Level | None:
    """A node one level deep, None for a leaf; what is made of a mapping is a plain dict.

    Example:
      >>> opened({"a": 1, "b": [2]}).parts, opened((3,)).rebuilt([4]), opened("label")
      ([('a', 1), ('b', [2])], (4,), None)
    """
    if isinstance(node, Mapping):
        names = list(node)  # in their own order, which JAX would sort
        return Level(
            Mapping,
            [(str(name), node[name]) for name in names],
            lambda parts: dict(zip(names, parts, strict=True)),
        )
    if is_array(node):
        return None
    # JAX knows all other nodes, and goes on into all that it does not take for a leaf.
    found, treedef = jax.tree_util.tree_flatten_with_path(node, is_leaf=lambda x: x is not node)
    if len(found) == 1 and found[0][1] is node:
        return None
    parts = [(names_on(keys[-1:])[0], part) for keys, part in found]
    return Level(treedef, parts, lambda parts: jax.tree.unflatten(treedef, parts))


def leaves(tree: object, at: Path = ()) -> Iterator[tuple[Path, object]]:
    """The leaves of a tree with their paths; boxes and other nodes are gone into."""
    level = opened(tree)
    if level is None:
        yield at, tree
    else:
        for name, part in level.parts:
            yield from leaves(part, (*at, name))


def arrays_in(tree: object, at: Path = ()) -> Iterator[tuple[Path, Array]]:
    """The leaves that have a shape, with their paths."""
    return ((path, leaf) for path, leaf in leaves(tree, at) if is_array(leaf))


def mapped(fn: Callable[[object], object], tree: object) -> object:
    """A tree with ``fn`` of each leaf.

    Example:
      >>> mapped(str, {"b": 1, "a": (2,)})
      {'b': '1', 'a': ('2',)}
    """
    level = opened(tree)
    if level is None:
        return fn(tree)
    return level.rebuilt([mapped(fn, part) for _, part in level.parts])
