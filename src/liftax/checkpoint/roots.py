"""The mappings in a pytree in which a stack lies.

A *root* is the tree of one collection, or a tree alike (the moments of an optimizer): a mapping
under which a stacking finds its subtree, in the stacked form or in the layers form.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax

from ..core.boxes import is_axis_metadata
from ..core.types import Path
from ..errors import StackingError
from ..stack.arrays import is_array
from ..stack.stacking import Stackings, name_of
from ..stack.trees import MISSING, get, has
from ..words import names_on


@dataclasses.dataclass(frozen=True)
class Root:
    """The tree of one collection somewhere in a pytree.

    Attributes:
      tree: the mapping.
      collection: whose axes hold for it.
      path: where it lies, for messages.
    """

    tree: object
    collection: str
    path: Path


def roots_replaced(
    tree: object, stackings: Stackings, collection: str | None, change: Callable[[Root], object]
) -> object:
    """A pytree with every root changed; what holds no root is the same object.

    Raises:
      StackingError: there are variables and none is in a root, or it cannot be told which
        collection one belongs to.
    """
    search = _Search(tree, stackings, collection, change)
    made = search.visit(tree, (), {})
    # A tree without arrays has nothing to convert, which is no mistake.
    if not search.count and search.variables:
        raise search.nothing_found()
    return made


def find_trees(tree: object, stackings: Stackings, collection: str | None = None) -> list[Root]:
    """The roots in a pytree, none where there is none."""
    found: list[Root] = []

    def see(root: Root) -> object:
        found.append(root)
        return root.tree

    _Search(tree, stackings, collection, see).visit(tree, (), {})
    return found


def find_roots(
    tree: object, stackings: Stackings, collection: str | None
) -> tuple[bool, dict[str, str], dict[str, object]]:
    """The collections of a model's variables, or of a tree that is one collection.

    Returns:
      Whether it is only one; for each name under which a stack lies, the collection whose axes
      hold; all trees by name.

    Raises:
      StackingError: there is no stack.
    """
    search = _Search(tree, stackings, collection, lambda root: None)
    if not isinstance(tree, Mapping):
        raise search.nothing_found()
    if search.is_root(tree):
        name = collection or "params"
        return True, {name: name}, {name: tree}
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

    def __init__(
        self,
        tree: object,
        stackings: Stackings,
        collection: str | None,
        change: Callable[[Root], object],
    ):
        self.stackings = stackings
        self.every = [part for stacking in stackings for part in stacking.walk()]
        self.collection = collection
        self.change = change
        self.count = 0
        # Whether there are trees of arrays at all: some states (sgd's, a schedule's) have none.
        self.variables = False
        # A stack that is the whole model has no path to be known by, but the names under it.
        nameless = [s for s in stackings if not s.path]
        self.keys = frozenset[str]().union(*(s.keys or () for s in nameless))
        # Those are learnt beforehand: a state may come before the parameters that tell them.
        if nameless and not self.keys:
            self.learn(tree)

    def learn(self, tree: object) -> None:
        """Takes the names under a stack at the root from the collections that say what they are."""
        if isinstance(tree, Mapping):
            told = {name for s in self.every for name in s.axes or () if isinstance(name, str)}
            known = [tree[name] for name in told | {"params"} if name in tree]
            if self.collection is not None and not known:
                known = [tree]
            self.keys = self.keys.union(*(part for part in known if isinstance(part, Mapping)))
            return
        for _, value in _outermost(tree):
            if value is not tree and not self.keys:
                self.learn(value)

    def visit(self, node: object, path: Path, siblings: Mapping[str, object]) -> object:
        """The node with the roots in it changed."""
        if isinstance(node, Mapping):
            if self.is_root(node):
                self.count += 1
                return self.change(Root(node, self.collection_of(node, path, siblings), path))
            # A mask in the place of a stack is as good as finding it: there is nothing to convert.
            if any(_masked(node, place) for s in self.stackings for place in (s.path, s.layers[0])):
                self.count += 1
            self.variables |= any(len(v.shape) > 0 for v in node.values() if is_array(v))
            made = {k: self.visit(v, (*path, str(k)), node) for k, v in node.items()}
            return node if all(made[k] is v for k, v in node.items()) else made
        found = _outermost(node)
        if len(found) == 1 and found[0][1] is node:
            return node
        # Fields side by side are siblings, as the moments of an optimizer beside its parameters.
        by_place: dict[Path, dict[str, object]] = {}
        for names, value in found:
            by_place.setdefault(names[:-1], {})[names[-1]] = value
        visited = [self.visit(value, path + at, by_place[at[:-1]]) for at, value in found]
        if all(new is old for new, (_, old) in zip(visited, found, strict=True)):
            return node
        treedef = jax.tree.structure(node, is_leaf=_stop(node))
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

    def is_root(self, tree: Mapping[str, object]) -> bool:
        """Whether a stack lies in this mapping."""
        if any(_is_state(get(tree, s.path)) for s in self.stackings if s.path):
            return False  # keys may be labels of optimizers, called as the stacks are
        for stacking in self.stackings:
            if any(has(tree, path) for path in stacking.layers):
                return True
            if stacking.path:
                there = get(tree, stacking.path)
                if there is not MISSING and (isinstance(there, Mapping) or jax.tree.leaves(there)):
                    return True
            elif tree and tree.keys() <= self.keys:
                return True
        return False

    def collection_of(self, tree: object, path: Path, siblings: Mapping[str, object]) -> str:
        """The collection whose axes hold for a root, by the name under which it was found."""
        if self.collection is not None:
            return self.collection
        name = path[-1] if path else "params"
        if name == "params" or any(name in (part.axes or ()) for part in self.every):
            return name
        # A tree by an unknown name is the parameters' if it stands beside them and is like them.
        if "params" in siblings:
            return "params" if _skeleton(siblings["params"]) == _skeleton(tree) else name
        stacked = [part for part in self.every if part.axes is not None]
        if len(path) > 1 or all(s.axis_of(name) == s.axis_of("params") for s in stacked):
            return "params"
        raise StackingError(
            f"is {name!r} a collection, or is it like the parameters, as in the state of an "
            f"optimizer? They are stacked along different axes: say collection={name!r} or "
            f"collection='params'"
        )


def _masked(tree: object, path: Path) -> bool:
    """Whether something without arrays holds the place of a subtree, as masks leave it."""
    for name in path:
        if not isinstance(tree, Mapping) or name not in tree:
            break
        tree = tree[name]
    return not isinstance(tree, Mapping) and not jax.tree.leaves(tree)


def _is_state(node: object) -> bool:
    """Whether a node has arrays in named fields, as no variable has: a state of an optimizer."""
    if isinstance(node, Mapping) or is_array(node) or is_axis_metadata(node):
        return False
    found, _ = jax.tree_util.tree_flatten_with_path(node)
    return any(isinstance(keys[0], jax.tree_util.GetAttrKey) for keys, _ in found if keys)


def _stop(node: object) -> Callable[[object], bool]:
    return lambda x: x is not node and (isinstance(x, Mapping) or is_axis_metadata(x))


def _outermost(node: object) -> list[tuple[Path, object]]:
    """The outermost mappings, boxes and leaves of a pytree, each with the names that lead there."""
    found, _ = jax.tree_util.tree_flatten_with_path(node, is_leaf=_stop(node))
    return [(names_on(keys), value) for keys, value in found]


def _skeleton(tree: object) -> object:
    """The names in nested mappings."""
    if isinstance(tree, Mapping):
        return {name: _skeleton(part) for name, part in tree.items()}
    return None
