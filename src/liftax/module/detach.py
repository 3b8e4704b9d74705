"""Modules and their arguments as scopes, and as modules again inside a lift.

One traversal finds every module that a call can reach: the modules themselves,
those in the arguments, and those that they hold in fields. What comes back is a
list of scopes, for the core, and a function that rebuilds the same modules on
other scopes. A module that is met twice is rebuilt once, so ties stay ties.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import jax
from jax.tree_util import all_leaves

from ..core.cache_keys import typed
from ..core.scope import Scope, Variable
from .attach import Held, is_held, is_module
from .bound import Variables
from .fields import ARRAYS, ATOMS, field_names, leaves, opened, replaced
from .state import Standing, State, state_of

Inputs = tuple[tuple[object, ...], dict[str, object]]
"""The positional and the keyword arguments of a call."""
Memory = tuple[tuple[tuple[str, int], ...], ...]
"""For each module, the classes of the submodules that it named, and how many."""


def _is_bound(value: object) -> TypeGuard[Held]:
    """Tells whether a value has a scope that a lift must know of."""
    return isinstance(value, Variable) or (isinstance(value, Variables) and value.scope is not None)


def _within(module: Variables, top: Variables) -> bool:
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

    def __init__(self, values: Sequence[object], cls: type | None = None, branches: bool = False):
        self.values = values
        self.cls = cls
        self.numbers: dict[int, dict[str, int]] | None = {} if branches else None
        self.scopes: list[Scope] = []
        self.found: dict[int, Held] = {}
        self.standings: dict[int, Standing] = {}
        self.own = 1
        for value in values:
            self._visit(value)
            if value is values[0] and not _is_bound(value):
                self.own = len(self.scopes)

    def _visit(self, value: object) -> None:
        if _is_bound(value):
            self._meet(value)
            return
        for found in leaves(value, _is_bound):
            self._meet(found)

    def _meet(self, found: Held) -> None:
        if id(found) in self.found:
            return
        assert found.scope is not None  # as `_is_bound` has found
        self.found[id(found)] = found
        self.scopes.append(found.scope)
        if isinstance(found, Variables):
            self.standings[id(found)] = state_of(found).standing()
            self._visit_fields(found, found)

    def _visit_fields(self, module: Variables, top: Variables) -> None:
        """Visits what a module, itself ``top`` or within it, holds but does not own.

        One in fields of two modules within ``top`` is owned by the first of them: it is rebuilt
        with that, and needs no scope of its own.
        """
        for name in _held(module):
            for found in leaves(module.__dict__.get(name), is_held):
                if isinstance(found, Variables) and (found.parent is module or _within(found, top)):
                    self._visit_fields(found, top)
                else:
                    self._visit(found)

    def rebuild(self, scopes: Iterable[Scope], built: dict[int, Held] | None = None) -> list[Any]:
        """Returns the values with their modules rebuilt on other scopes.

        Args:
          scopes: as many as in ``scopes``.
          built: takes the rebuilt modules, by the identity of those that they stand for.
        """
        first = self.values[0] if self.cls is not None else None
        at = dict(zip(self.found, scopes, strict=True))
        new = _Rebuilding(at, self.standings, first, self.cls, {} if built is None else built)
        return [
            new(self.found[id(value)]) if id(value) in self.found else replaced(value, new.has, new)
            for value in self.values
        ]

    def take_back(self, built: Mapping[int, Held]) -> None:
        """Lets the modules go on naming where their clones left off."""
        for key in self.standings:
            state = state_of(built[key])
            state_of(self.found[key]).cursors = state.cursors
            if self.numbers is not None:
                # As in Linen the last body decides, unless that gave the name of a module with
                # variables, which another body made alone, to the next module of the class.
                numbers = self.numbers.setdefault(key, {})
                _add_numbers(numbers, state)
                for prefix, number in numbers.items():
                    state.cursors[prefix] = max(number, state.cursors.get(prefix, 0))
            state.forget()

    def fingerprint(self) -> Hashable:
        """Returns a key: equal for values that are rebuilt alike, whatever their names."""
        order = {key: i for i, key in enumerate(self.found)}
        return tuple(fingerprint(value, order) for value in self.values)

    def memory(self) -> Memory:
        """Returns what the modules remember that a lift must hand on."""
        # Plain data: it leaves a compiled program as a part of what its output is.
        return tuple(tuple(state_of(self.found[key]).cursors.items()) for key in self.standings)

    def remember(self, memory: Memory) -> None:
        """Lets the modules remember what ``memory`` returned."""
        for key, cursors in zip(self.standings, memory, strict=True):
            state_of(self.found[key]).cursors = dict(cursors)


def _add_numbers(numbers: dict[str, int], state: State) -> None:
    """Notes how many names of each class modules with variables have, of those made unnamed."""
    for name, child in state.children.items():
        prefix, _, digits = name.rpartition("_")
        number = int(digits) if digits.isdigit() else -1
        scope = child.scope if isinstance(child, Variables) else None
        if scope is not None and numbers.get(prefix, 0) <= number < state.cursors.get(prefix, 0):
            if any(map(scope.node, scope.collections())):
                numbers[prefix] = number + 1


def fingerprint(value: object, order: Mapping[int, int]) -> Hashable:
    """Returns a key of a cache: equal for values that a body computes alike with.

    By value and type, and not by identity: a model is made anew for each call, and finds what was
    compiled for an equal one. Names are left out, which say only where a module's variables are.

    Args:
      value: a module, or anything that its fields may hold.
      order: the identities of bound modules and Variables, numbered. Those have no value to
        compare: which of the scopes is meant is what must agree.
    """
    if is_module(value):
        state = value.__dict__.get("_state")
        held = value.__dict__
        fields = tuple(fingerprint(held.get(name), order) for name in field_names(value))
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
    if type(value) in ATOMS or isinstance(value, ARRAYS) or all_leaves((value,)):
        return typed(value)
    tree = jax.tree.structure(value, is_leaf=lambda part: part is not value)
    return tree, tuple(fingerprint(part, order) for part in opened(value)[1])


@dataclasses.dataclass(eq=False)
class _Rebuilding:
    """Rebuilds modules and Variables on other scopes, each once.

    An object, since a function that calls itself is a cycle, which keeps all that it has seen
    until the garbage collector comes.

    Attributes:
      at: the new scopes, by the identity of what stands on them.
      standings: as in `Detached`.
      first: what is rebuilt as an instance of another class, `cls`.
      built: what is rebuilt already, by the identity of what it stands for.
    """

    at: dict[int, Scope]
    standings: dict[int, Standing]
    first: object
    cls: type | None
    built: dict[int, Held]

    def has(self, value: object) -> TypeGuard[Held]:
        return id(value) in self.at

    def __call__(self, old: Held) -> Held:
        if id(old) in self.built:
            return self.built[id(old)]
        made: Held
        scope = self.at.get(id(old))
        if isinstance(old, Variable):
            made = Variable(self.at[id(old)], old.collection, old.name, old.unbox)
        else:
            # What it holds comes first, so that two that hold one module hold one again.
            changes: dict[str, Any] = {}
            for name in _held(old):
                value = old.__dict__.get(name)
                part = replaced(value, is_held, self)
                if part is not value:
                    changes[name] = part
            if scope is not None:
                cls = self.cls or type(old) if old is self.first else type(old)
                made = old._rebound(cls, scope, changes, self.standings[id(old)])
            else:
                # Owned by a module that is rebuilt: it is named again by attachment.
                made = old.clone(**changes) if old.scope is not None else old
        self.built[id(old)] = made
        return made


def _held(module: Variables) -> Sequence[str]:
    """Returns the names of the fields that may have modules in them."""
    # Known once the module is bound. Before, any field may; one whose class left out
    # `super().__post_init__()` remembers nothing.
    state = module.__dict__.get("_state")
    held: list[str] | None = None if state is None else state.held
    return field_names(module) if held is None else held


def without_modules(
    args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[Inputs, Callable[[Inputs, Sequence[object]], Inputs], list[Held]]:
    """Takes the bound modules and Variables out of arguments.

    Returns:
      the arguments with None in their places, a function that puts rebuilt ones
      back, and the ones taken out, in order.
    """
    taken: list[Held] = []
    both = args, kwargs
    # Most calls: arrays alone, seen at a glance.
    for value in (*args, *kwargs.values()):
        if not (type(value) in ATOMS or isinstance(value, ARRAYS)):
            break
    else:
        return both, _as_they_are, taken

    def take(value: Held) -> _Hole:
        taken.append(value)
        return _Hole(len(taken) - 1)

    holed = replaced(both, _is_bound, take)
    if not taken:
        return both, _as_they_are, taken
    emptied = replaced(holed, _is_hole, lambda hole: None)
    # None is an empty pytree, so it goes through any transformation unseen; the
    # places are found again by walking both trees side by side.
    return emptied, functools.partial(_filled, holed), taken


def _as_they_are(values: Inputs, rebuilt: Sequence[object]) -> Inputs:
    return values


@dataclasses.dataclass(eq=False)
class _Hole:
    """Where a module was; no tuple, which would be opened as a container."""

    index: int


def _is_hole(value: object) -> TypeGuard[_Hole]:
    return isinstance(value, _Hole)


def _filled(holed: object, values: Any, rebuilt: Sequence[object]) -> Any:
    if isinstance(holed, _Hole):
        return rebuilt[holed.index]
    if type(holed) in ATOMS or isinstance(holed, ARRAYS):
        return values
    keys, parts, _ = opened(holed)
    if not parts:
        return values
    # By key: a transformation returns dicts in the order of their keys.
    at = dict(zip(keys, parts, strict=True))
    keys, parts, like = opened(values)
    return like([_filled(at[key], part, rebuilt) for key, part in zip(keys, parts, strict=True)])
