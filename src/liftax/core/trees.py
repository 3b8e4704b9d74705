"""Nested dicts of variables: copied, made plain; values as types and as messages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

from .types import Tree


def copy_dicts(tree: Tree) -> Any:
    """Copies the mappings of a tree as plain dicts; the leaves stay what they are."""
    if not isinstance(tree, Mapping):
        return tree
    if not _nests(tree):
        return dict(tree)
    return {key: copy_dicts(value) for key, value in tree.items()}


def plain_dicts(tree: Tree) -> Any:
    """Returns a tree whose mappings are plain dicts, itself where they are already."""
    if type(tree) is dict:
        if not _nests(tree):
            return tree
        changed = {}
        for key, value in tree.items():
            if isinstance(value, Mapping):
                plain = plain_dicts(value)
                if plain is not value:
                    changed[key] = plain
        return {**tree, **changed} if changed else tree
    return copy_dicts(tree)


def _nests(tree: Mapping[Any, Any]) -> bool:
    """Tells whether any value is a mapping; most dicts of variables hold arrays of one class."""
    # A plain loop: a generator would be a call more at each dict of each lift.
    for kind in set(map(type, tree.values())):
        if issubclass(kind, Mapping):
            return True
    return False


def sorted_dicts(tree: Tree) -> Any:
    """Copies the dicts of a tree with their keys in order, as JAX hands them out."""
    if type(tree) is not dict:
        return tree
    return {key: sorted_dicts(tree[key]) for key in sorted(tree)}


def tracers(tree: Tree) -> list[jax.core.Tracer]:
    """Returns the leaves that are traced; where none is, no leaf is looked at in Python."""
    leaves = jax.tree.leaves(tree)
    # By class: leaves are many, and of few classes.
    kinds = [kind for kind in set(map(type, leaves)) if issubclass(kind, jax.core.Tracer)]
    return [leaf for leaf in leaves if type(leaf) in kinds] if kinds else []


def abstract(value: object) -> jax.ShapeDtypeStruct:
    """Returns what stands for an array where none is computed: all that JAX knows of its type.

    Besides shape and dtype that is a weak type, varying axes and an explicit sharding.

    Example:
      >>> import jax
      >>> abstract(jax.numpy.asarray(2.0))
      ShapeDtypeStruct(shape=(), dtype=float32, weak_type=True)
    """
    shape: jax.ShapeDtypeStruct = jax.eval_shape(lambda x: x, value)
    return shape


def alike(a: Tree, b: Tree) -> bool:
    """Tells whether one program takes either of two values."""
    structures: list[jax.tree_util.PyTreeDef] = [jax.tree.structure(tree) for tree in (a, b)]
    kinds = [
        [(x.shape, x.dtype, x.weak_type) for x in map(jax.typeof, jax.tree.leaves(tree))]
        for tree in (a, b)
    ]
    return bool(structures[0] == structures[1]) and kinds[0] == kinds[1]
