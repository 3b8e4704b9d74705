"""The layers that a stack is made of: templates become modules of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..core.scope import Scope
from ..errors import StackError
from ..module.attach import is_module
from ..module.bound import Variables
from ..module.detach import Detached
from ..module.fields import ATOMS, field_names, named_leaves
from ..module.state import DONE, state_of
from ..words import class_or_type
from .declaration import Declaration

FIELDS = ("before", "block", "after")


def own_layers(stack: Declaration) -> None:
    """Gives each place of a stack a layer of its own, unbound.

    A layer that was made for the stack inside another module's method gives the name
    back that it took there. One instance at many places is copied; modules in
    ``shared`` are not.

    Raises:
      StackError: something is no layer; a layer is in use elsewhere, or holds a module
        that is and that ``shared`` does not name.
    """
    own = stack.__dict__
    own["shared"] = tuple(own["shared"]) if not is_module(own["shared"]) else (own["shared"],)
    shared = {id(module): module for module in own["shared"]}
    seen: dict[int, Variables] = {}
    taken: list[Variables] = []
    for field in FIELDS:
        layers = []
        for layer in _listed(own[field], field):
            if not is_module(layer):
                raise StackError(f"Stack: {field} expected modules; found {_found(layer)}")
            # A shared module stays the one it is; of all else the stack has its own.
            if id(layer) not in shared:
                _check_fields(layer, shared)
                if layer.parent is not None and layer.scope is not None:
                    taken.append(layer)
                if id(layer) in seen or layer.parent is not None:
                    memo = {key: (module, module) for key, module in shared.items()}
                    layer = layer.clone(name=None, _deep_clone=memo)
                seen[id(layer)] = layer
            layers.append(layer)
        own[field] = tuple(layers)
    # Last made, first given back: automatic names count up, and are taken back one by one.
    for layer in reversed(list({id(layer): layer for layer in taken}.values())):
        _give_back(layer)


def _listed(given: Any, field: str) -> Sequence[Any]:
    if is_module(given):
        return (given,)
    if isinstance(given, (list, tuple)):
        return given
    raise StackError(f"Stack: {field} expected a module or a list of them; found {_found(given)}")


def _found(given: object) -> str:
    hint = f"; make an instance of it: {given.__name__}(...)" if isinstance(given, type) else ""
    return class_or_type(given) + hint


def _held(module: Variables) -> Iterator[tuple[str, Variables]]:
    for name in field_names(module):
        value = module.__dict__.get(name)
        if type(value) not in ATOMS:
            yield from named_leaves(value, is_module, name)


def _check_fields(layer: Variables, shared: dict[int, Variables]) -> None:
    """Raises StackError where a layer holds a module that belongs elsewhere."""
    for name, found in _held(layer):
        if id(found) in shared:
            continue
        if found.scope is None or found.parent is layer:
            _check_fields(found, shared)
            continue
        where = found.scope.path_text
        raise StackError(
            f"Stack: {name} of the layer {type(layer).__name__} is {where}, which lies outside "
            f"the stack.\n"
            f"found: a {type(found).__name__} bound to the module around the stack\n"
            f"expected: shared=[...] with that module, to use one in all layers; or, for one in "
            f"each layer, make it with parent=None, or make the stack in setup"
        )


def _give_back(layer: Variables) -> None:
    """Takes a layer off the place that it took when it was made in a method."""
    parent, name, own = layer.parent, layer.name, state_of(layer)
    if not is_module(parent) or name is None or layer.scope is None or parent.scope is None:
        return
    state = state_of(parent)
    if state.children.get(name) is not layer:
        return
    # Whatever has been called has variables under its name, or will have.
    used = any(child is not None for child in own.children.values())
    if used or own.setup == DONE or layer.scope.reservations:
        raise StackError(
            f"Stack: the layer {layer.scope.path_text} is used outside the stack as well; hand "
            f"the stack one of its own, {type(layer).__name__}(..., parent=None), or name it in "
            f"shared=[...] to use one in all places"
        )
    del state.children[name]
    parent.scope.reservations.pop(name, None)
    prefix, _, number = name.rpartition("_")
    if number.isdigit() and state.cursors.get(prefix) == int(number) + 1:
        state.cursors[prefix] = int(number)
    # It is a template now: calling it by itself is an error, and no second set of weights.
    object.__setattr__(layer, "scope", None)


def shared_outside(stack: Declaration, detached: Detached, taken: Sequence[Any]) -> list[Scope]:
    """Returns the scopes that the layers of a pattern share.

    Raises:
      StackError: a layer holds a module that ``shared`` does not name.
    """
    given = {id(module) for module in (*stack.shared, *taken)}
    found = []
    for module, scope in zip(detached.found.values(), detached.scopes, strict=True):
        if id(module) in given:
            found.append(scope)
    return found
