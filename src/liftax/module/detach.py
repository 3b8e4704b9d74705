"""Modules and their arguments as scopes, and as modules again inside a lift.

One traversal finds every module that a call can reach: the modules themselves,
those in the arguments, and those that they hold in fields. What comes back is a
list of scopes, for the core, and a function that rebuilds the same modules on
other scopes. A module that is met twice is rebuilt once, so ties stay ties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.tree_util import all_leaves

from ..core.cache_keys import typed
from ..core.scope import Scope, Variable
from .attach import is_held, is_module
from .fields import ARRAYS, is_atom, leaves, opened, replaced
from .state import Standing, State


def _is_bound(value: Any) -> bool:
    """Tells whether a value has a scope that a lift must know of."""
    return (is_module(value) and value.scope is not None) or isinstance(value, Variable)


def _within(module: Any, top: Any) -> bool:
    owner = module.parent
    while is_module(owner) and owner is not top:
        owner = owner.parent
    return owner is top


class Detached:
    """Modules, and values with modules in them, taken off their scopes.

    Args:
      values: modules, or pytrees that may hold modules and Variables.
      cls: the class to rebuild the first value as, where it is not its own.
      branches: whether more than one body gets them, each from where they stand now.

    Attributes:
      found: the modules and Variables, by identity.
      scopes: theirs, in the same order.
      standings: where the modules among them stand.
      own: how many of the scopes, from the first, are the first value's itself.
    """

    def __init__(self, values: Sequence[Any], cls: type | None = None, branches: bool = False):
        self.values = values
        self.cls = cls
        self.numbers: dict[int, dict[str, int]] | None = {} if branches else None
        self.scopes: list[Scope] = []
        self.found: dict[int, Any] = {}
        self.standings: dict[int, Standing] = {}
        self.own = 1
        for value in values:
            self._visit(value)
            if value is values[0] and not _is_bound(value):
                self.own = len(self.scopes)

    def _visit(self, value: Any) -> None:
        if _is_bound(value):
            self._meet(value)
            return
        for found in leaves(value, _is_bound):
            self._meet(found)

    def _meet(self, found: Any) -> None:
        if id(found) in self.found:
            return
        self.found[id(found)] = found
        self.scopes.append(found.scope)
        if is_module(found):
            self.standings[id(found)] = found._state.standing()
            self._visit_fields(found, found)

    def _visit_fields(self, module: Any, top: Any) -> None:
        """Visits what a module, itself `top` or within it, holds but does not own.

        One in fields of two modules within `top` is owned by the first of them: it is rebuilt
        with that, and needs no scope of its own.
        """
        for name in _held(module):
            for found in leaves(module.__dict__.get(name), is_held):
                if is_module(found) and (found.parent is module or _within(found, top)):
                    self._visit_fields(found, top)
                else:
                    self._visit(found)

    def rebuild(self, scopes: Sequence[Scope], built: dict[int, Any] | None = None) -> list[Any]:
        """Returns the values with their modules rebuilt on other scopes.

        Args:
          scopes: as many as in `scopes`.
          built: takes the rebuilt modules, by the identity of those that they stand for.
        """
        first = self.values[0] if self.cls is not None else None
        at = dict(zip(self.found, scopes, strict=True))
        new = _Rebuilding(at, self.standings, first, self.cls, {} if built is None else built)
        return [
            new(value) if id(value) in self.found else replaced(value, new.has, new)
            for value in self.values
        ]

    def take_back(self, built: Mapping[int, Any]) -> None:
        """Lets the modules go on naming where their clones left off."""
        for key in self.standings:
            state = built[key]._state
            self.found[key]._state.cursors = state.cursors
            if self.numbers is not None:
                # As in Linen the last body decides, unless that gave the name of a module with
                # variables, which another body made alone, to the next module of the class.
                numbers = self.numbers.setdefault(key, {})
                _add_numbers(numbers, state)
                for prefix, number in numbers.items():
                    state.cursors[prefix] = max(number, state.cursors.get(prefix, 0))
            state.forget()

    def fingerprint(self) -> Any:
        """Returns a key: equal for values that are rebuilt alike, whatever their names."""
        order = {key: i for i, key in enumerate(self.found)}
        return tuple(fingerprint(value, order) for value in self.values)

    def memory(self) -> Any:
        """Returns what the modules remember that a lift must hand on."""
        return tuple(tuple(self.found[key]._state.cursors.items()) for key in self.standings)

    def remember(self, memory: Any) -> None:
        """Lets the modules remember what `memory` returned."""
        for key, cursors in zip(self.standings, memory, strict=True):
            self.found[key]._state.cursors = dict(cursors)


def _add_numbers(numbers: dict[str, int], state: State) -> None:
    """Notes how many names of each class modules with variables have, of those made unnamed."""
    for name, child in state.children.items():
        prefix, _, digits = name.rpartition("_")
        number = int(digits) if child is not None and digits.isdigit() else -1
        if numbers.get(prefix, 0) <= number < state.cursors.get(prefix, 0):
            if any(map(child.scope.node, child.scope.collections())):
                numbers[prefix] = number + 1


def fingerprint(value: Any, order: dict[int, int]) -> Any:
    if is_module(value):
        state = value.__dict__.get("_state")
        fields = tuple(fingerprint(value.__dict__.get(name), order) for name in value._field_names)
        place = order.get(id(value))
        if state is None:  # __post_init__ without super: the call that follows says so
            return type(value), fields
        remembered = (state.in_compact, tuple(state.cursors.items()))
        return type(value), place, fields, remembered
    if isinstance(value, Variable):
        return Variable, order.get(id(value)), value.collection, value.name, value.unbox
    if isinstance(value, (list, tuple)):
        return type(value), tuple(fingerprint(v, order) for v in value)
    if isinstance(value, dict):
        return dict, frozenset((k, fingerprint(v, order)) for k, v in value.items())
    if is_atom(value) or isinstance(value, ARRAYS) or all_leaves((value,)):
        return typed(value)
    tree = jax.tree.structure(value, is_leaf=lambda part: part is not value)
    return tree, tuple(fingerprint(part, order) for part in opened(value)[1])


class _Rebuilding:
    """Rebuilds modules and Variables on other scopes, each once.

    An object, since a function that calls itself is a cycle, which keeps all that it has seen
    until the garbage collector comes.
    """

    def __init__(
        self,
        at: dict[int, Scope],
        standings: dict[int, Standing],
        first: Any,
        cls: type | None,
        built: dict[int, Any],
    ):
        self.at = at  # the new scopes, by the identity of what stands on them
        self.standings = standings
        self.built = built
        self.first = first  # rebuilt as an instance of cls
        self.cls: Any = cls

    def has(self, value: Any) -> bool:
        return id(value) in self.at

    def __call__(self, old: Any) -> Any:
        if id(old) in self.built:
            return self.built[id(old)]
        scope = self.at.get(id(old))
        if isinstance(old, Variable):
            made: Any = Variable(self.at[id(old)], old.collection, old.name, old.unbox)
        else:
            changes = {}
            for name in _held(old):
                value = old.__dict__.get(name)
                part = replaced(value, is_held, self)
                if part is not value:
                    changes[name] = part
            if scope is not None:
                cls = self.cls if old is self.first else type(old)
                made = old._rebound(cls, scope, changes, self.standings[id(old)])
            else:
                # Owned by a module that is rebuilt: it is named again by attachment.
                made = old.clone(**changes) if old.scope is not None else old
        self.built[id(old)] = made
        return made


def _held(module: Any) -> Sequence[str]:
    """Returns the names of the fields that may have modules in them."""
    state = module.__dict__.get("_state")
    held = None if state is None else state.held
    return module._field_names if held is None else held


def without_modules(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, Callable[[Any, Sequence[Any]], Any], list[Any]]:
    """Takes the bound modules and Variables out of arguments.

    Returns:
      the arguments with None in their places, a function that puts rebuilt ones
      back, and the ones taken out, in order.
    """
    taken: list[Any] = []
    both = args, kwargs
    if not kwargs:
        for value in args:
            if not (is_atom(value) or isinstance(value, ARRAYS)):
                break
        else:
            return both, _as_they_are, taken

    def take(value: Any) -> Any:
        taken.append(value)
        return _Hole(len(taken) - 1)

    holed = replaced(both, _is_bound, take)
    if not taken:
        return both, _as_they_are, taken
    emptied = replaced(holed, _is_hole, lambda hole: None)
    # None is an empty pytree, so it goes through any transformation unseen; the
    # places are found again by walking both trees side by side.
    return emptied, lambda values, rebuilt: _filled(holed, values, rebuilt), taken


def _as_they_are(values: Any, rebuilt: Sequence[Any]) -> Any:
    return values


class _Hole:
    """Where a module was."""

    def __init__(self, index: int):
        self.index = index


def _is_hole(value: Any) -> bool:
    return isinstance(value, _Hole)


def _filled(holed: Any, values: Any, rebuilt: Sequence[Any]) -> Any:
    if isinstance(holed, _Hole):
        return rebuilt[holed.index]
    if is_atom(holed) or isinstance(holed, ARRAYS):
        return values
    keys, parts, _ = opened(holed)
    if not parts:
        return values
    # By key: a transformation returns dicts in the order of their keys.
    at = dict(zip(keys, parts, strict=True))
    keys, parts, like = opened(values)
    return like([_filled(at[key], part, rebuilt) for key, part in zip(keys, parts, strict=True)])
