"""Nested dicts of variables: copied, made plain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def copy_dicts(tree: Any) -> Any:
    """Copies the mappings of a tree as plain dicts; the leaves stay what they are."""
    if not isinstance(tree, Mapping):
        return tree
    return {key: copy_dicts(value) for key, value in tree.items()}


def plain_dicts(tree: Any) -> Any:
    """Returns a tree whose mappings are plain dicts, itself where they are already."""
    if type(tree) is dict:
        changed = {}
        for key, value in tree.items():
            if isinstance(value, Mapping):
                plain = plain_dicts(value)
                if plain is not value:
                    changed[key] = plain
        return {**tree, **changed} if changed else tree
    return copy_dicts(tree)
