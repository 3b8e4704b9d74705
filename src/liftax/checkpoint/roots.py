"""Paths in nested mappings, and the mappings in a pytree in which a stack lies.

A *root* is the tree of one collection, or a tree alike (the moments of an optimizer): a mapping
under which a stacking finds its subtree, in the stacked form or in the layers form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from ..core.boxes import is_axis_metadata
from ..errors import StackingError
from .arrays import is_array
from .stacking import Path, Stacking, Stackings, name_of


class _Missing:
    def __repr__(self) -> str:
        return "MISSING"


MISSING = _Missing()


def get(tree: Any, path: Path) -> Any:
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


def put(tree: Any, path: Path, value: Any) -> Any:
    """A copy of nested mappings with `value` at a path; what is not on the path is shared.

    Example:
      >>> put({"a": {"b": 1}}, ("a", "c"), 2)
      {'a': {'b': 1, 'c': 2}}
    """
    if not path:
        return value
    below = tree.get(path[0], {})
    if not isinstance(below, Mapping):
        below = {}
    return {**tree, path[0]: put(below, path[1:], value)}


def remove(tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A copy without what lies at a path, and without mappings that are empty then.

    Example:
      >>> remove({"a": {"b": 1}, "c": 2}, ("a", "b"))
      {'c': 2}
    """
    if not path:
        return {}
    made = dict(tree)
    below = remove(made[path[0]], path[1:]) if len(path) > 1 else {}
    if below:
        made[path[0]] = below
    else:
        del made[path[0]]
    return made


def put_all(tree: Any, values: Mapping[Path, Any]) -> Any:
    """As `put` of one value after the other, with each mapping copied once.

    Example:
      >>> put_all({"a": {"b": 1}}, {("a", "c"): 2, ("d",): 3})
      {'a': {'b': 1, 'c': 2}, 'd': 3}
    """
    if () in values:
        return values[()]
    made = dict(tree) if isinstance(tree, Mapping) else {}
    below: dict[str, dict[Path, Any]] = {}
    for path, value in values.items():
        below.setdefault(path[0], {})[path[1:]] = value
    for name, part in below.items():
        made[name] = put_all(made.get(name, {}), part)
    return made


def remove_all(tree: Mapping[str, Any], paths: Iterable[Path]) -> dict[str, Any]:
    """As `remove` of one path after the other, with each mapping copied once.

    Example:
      >>> remove_all({"a": {"b": 1, "c": 2}, "d": 3}, [("a", "b"), ("a", "c")])
      {'d': 3}
    """
    below: dict[str, list[Path]] = {}
    for path in paths:
        if not path:
            return {}
        below.setdefault(path[0], []).append(path[1:])
    made = dict(tree)
    for name, rest in below.items():
        made[name] = {} if () in rest else remove_all(made[name], rest)
        if not made[name]:
            del made[name]
    return made


def form_of(stacking: Stacking, tree: Any, collection: str, at: Path = ()) -> str:
    """How a stack lies in the tree of a collection.

    Returns:
      `"stacked"`, `"layers"`, `"shared"` (the collection has no layer axis) or `"absent"`.

    Raises:
      StackingError: both forms at once, a layer missing, or a layer too many.
    """
    whole = get(tree, stacking.path)
    found = [get(tree, path) is not MISSING for path in stacking.layers]
    depth = len(stacking.path)
    inside = [path[depth:] for path in stacking.layers if path[:depth] == stacking.path]
    inside = [path for path in inside if get(whole, path) is not MISSING]
    if inside:
        whole = remove_all(whole, inside) or MISSING
    if whole is MISSING and not any(found):
        return "absent"
    if stacking.axes is not None and not stacking.stacks(collection):
        return "absent" if whole is MISSING else "shared"
    for path in stacking.beyond:
        if get(tree, path) is not MISSING:
            raise StackingError(
                f"{name_of(at + path)} is one more than the layout has: the layout of the stack "
                f"at {name_of(at + stacking.owner)} is that of a smaller model"
            )
    if whole is MISSING:
        if not all(found):
            missing = stacking.layers[found.index(False)]
            there = stacking.layers[found.index(True)]
            raise StackingError(
                f"{name_of(at + missing)} is missing, but there is {name_of(at + there)}: the "
                f"layout has {len(found)} layers there; does it belong to another model?"
            )
        return "layers"
    if any(found):
        there = stacking.layers[found.index(True)]
        raise StackingError(
            f"{name_of(at + there)} is called as a layer of {name_of(at + stacking.path)}, which "
            f"also has variables that are stacked; where that is a name in the block itself, "
            f"give the layers other names (names= of Stacking.of)"
        )
    return "stacked"


@dataclasses.dataclass(frozen=True)
class Root:
    """The tree of one collection somewhere in a pytree.

    Attributes:
      tree: the mapping.
      collection: whose axes hold for it.
      path: where it lies, for messages.
    """

    tree: Mapping[str, Any]
    collection: str
    path: Path


def roots_replaced(
    tree: Any, stackings: Stackings, collection: str | None, change: Callable[[Root], Any]
) -> Any:
    """A pytree with every root changed; what holds no root is the same object.

    Raises:
      StackingError: there are variables and none is in a root, or it cannot be told which
        collection one belongs to.
    """
    search = _Search(stackings, collection, change)
    search.learn(tree)
    made = search.visit(tree, (), {})
    if not search.count and search.variables:
        raise search.nothing_found()
    return made


def find_trees(tree: Any, stackings: Stackings, collection: str | None = None) -> list[Root]:
    """The roots in a pytree, none where there is none."""
    found: list[Root] = []

    def see(root: Root) -> Any:
        found.append(root)
        return root.tree

    search = _Search(stackings, collection, see)
    search.learn(tree)
    search.visit(tree, (), {})
    return found


def find_roots(
    tree: Any, stackings: Stackings, collection: str | None
) -> tuple[bool, dict[str, str], dict[str, Any]]:
    """The collections of a model's variables, or of a tree that is one collection.

    Returns:
      Whether it is only one; for each name under which a stack lies, the collection whose axes
      hold; all trees by name.

    Raises:
      StackingError: there is no stack.
    """
    search = _Search(stackings, collection, lambda root: None)
    search.learn(tree)
    if isinstance(tree, Mapping) and search.is_root(tree):
        name = collection or "params"
        return True, {name: name}, {name: tree}
    names = {}
    if isinstance(tree, Mapping):
        names = {
            name: search.collection_of(part, (name,), tree)
            for name, part in tree.items()
            if isinstance(part, Mapping) and search.is_root(part)
        }
    if not names:
        raise search.nothing_found()
    return False, names, dict(tree)


class _Search:
    """Finds the roots in one pytree."""

    def __init__(self, stackings: Stackings, collection: str | None, change: Callable[[Root], Any]):
        self.stackings = stackings
        self.every = [part for stacking in stackings for part in stacking.walk()]
        self.collection = collection
        self.change = change
        self.count = 0
        # Whether there are trees of arrays at all: some states (sgd's, a schedule's) have none.
        self.variables = False
        # A stack that is the whole model has no path to be known by, but the names under it.
        self.nameless = [s for s in stackings if not s.path]
        self.keys = frozenset[str]().union(*(s.keys or () for s in self.nameless))

    def learn(self, tree: Any) -> None:
        """Takes the names under a stack at the root from the collections that say what they are."""
        if not self.nameless or self.keys:
            return
        if isinstance(tree, Mapping):
            known = {
                "params",
                *(name for s in self.every for name in s.axes or () if name is not True),
            }
            if self.collection is not None and not known & tree.keys():
                self.keys = frozenset(tree)
                return
            for name in known & tree.keys():
                if isinstance(tree[name], Mapping):
                    self.keys |= frozenset(tree[name])
            return
        for _, value in _children(tree):
            self.learn(value)

    def visit(self, node: Any, path: Path, siblings: Mapping[str, Any]) -> Any:
        """The node with the roots in it changed."""
        if isinstance(node, Mapping):
            if self.is_root(node):
                self.count += 1
                return self.change(Root(node, self.collection_of(node, path, siblings), path))
            if any(_masked(node, path) for s in self.stackings for path in (s.path, s.layers[0])):
                self.count += 1
            self.variables |= any(np.ndim(v) > 0 for v in node.values() if is_array(v))
            made = {k: self.visit(v, (*path, str(k)), node) for k, v in node.items()}
            if all(made[k] is v for k, v in node.items()):
                return node
            return made
        children = _children(node)
        if len(children) == 1 and children[0][1] is node:
            return node
        leaves, treedef = jax.tree.flatten(node, is_leaf=_stop(node))
        by_place: dict[Path, dict[str, Any]] = {}
        for names, value in children:
            by_place.setdefault(names[:-1], {})[names[-1]] = value
        visited = [
            self.visit(value, path + names, by_place[names[:-1]]) for names, value in children
        ]
        if all(new is old for new, old in zip(visited, leaves, strict=True)):
            return node
        return jax.tree.unflatten(treedef, visited)

    def nothing_found(self) -> StackingError:
        """The error where there is no root."""
        paths = dict.fromkeys(
            name_of(path) for s in self.stackings for path in (s.path, s.layers[0])
        )
        return StackingError(
            f"no stack found: expected a subtree at {' or '.join([*paths][:4])} in a collection "
            f"or in a tree like one; does the layout belong to another model?"
        )

    def is_root(self, tree: Mapping[str, Any]) -> bool:
        """Whether a stack lies in this mapping."""
        if any(_is_state(get(tree, s.path)) for s in self.stackings if s.path):
            return False  # keys may be labels of optimizers, called as the stacks are
        for stacking in self.stackings:
            if any(get(tree, path) is not MISSING for path in stacking.layers):
                return True
            if stacking.path:
                there = get(tree, stacking.path)
                if there is not MISSING and (isinstance(there, Mapping) or jax.tree.leaves(there)):
                    return True
            elif tree and tree.keys() <= self.keys:
                return True
        return False

    def collection_of(self, tree: Any, path: Path, siblings: Mapping[str, Any]) -> str:
        """The collection whose axes hold for a root, by the name under which it was found."""
        if self.collection is not None:
            return self.collection
        name = path[-1] if path else "params"
        if name == "params" or any(name in (part.axes or ()) for part in self.every):
            return name
        like_params = all(
            part.axis_of(name) == part.axis_of("params")
            for part in self.every
            if part.axes is not None
        )
        params = siblings.get("params", MISSING)
        if params is not MISSING:
            return "params" if _skeleton(params) == _skeleton(tree) else name
        if like_params or len(path) > 1:
            return "params"
        raise StackingError(
            f"is {name!r} a collection, or is it like the parameters, as in the state of an "
            f"optimizer? They are stacked along different axes: say collection={name!r} or "
            f"collection='params'"
        )


def _masked(tree: Any, path: Path) -> bool:
    """Whether something without arrays holds the place of a subtree, as masks leave it."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            break
        tree = tree[name]
    return not isinstance(tree, Mapping) and not jax.tree.leaves(tree)


def _is_state(node: Any) -> bool:
    """Whether a node has arrays in named fields, as no variable has: a state of an optimizer."""
    if isinstance(node, Mapping) or is_array(node) or is_axis_metadata(node):
        return False
    found, _ = jax.tree_util.tree_flatten_with_path(node)
    return any(isinstance(keys[0], jax.tree_util.GetAttrKey) for keys, _ in found if keys)


def _stop(node: Any) -> Callable[[Any], bool]:
    return lambda x: x is not node and (isinstance(x, Mapping) or is_axis_metadata(x))


def _children(node: Any) -> list[tuple[Path, Any]]:
    """The outermost mappings, boxes and leaves of a pytree, each with the names that lead there."""
    found, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=_stop(node))
    return [(names_of(keys), value) for keys, value in found]


def names_of(keys: Iterable[Any]) -> Path:
    """The way to a part of a pytree, as JAX gives it, in names.

    Example:
      >>> names_of(jax.tree_util.tree_leaves_with_path({"a": [1]})[0][0])
      ('a', '0')
    """
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in keys)


def _skeleton(tree: Any) -> Any:
    """The names in nested mappings."""
    if isinstance(tree, Mapping):
        return {name: _skeleton(part) for name, part in tree.items()}
    return None
