"""Names and places: how a module finds its parent, its name and its scope.

A module is told none of them. Made while a method runs, it belongs to the module whose method that
is (`local.stack`). In a compact method it is named at once, by its class and a number; in ``setup``
by the attribute that it is assigned to; given to a field, by the field. Its scope is that name
below the parent's scope.
"""

from __future__ import annotations

import inspect
from typing import TypeGuard

from ..core.scope import Scope, Variable
from ..errors import AssignSubModuleError, InvalidParentError, NameInUseError
from .bound import Variables, whose
from .fields import ATOMS, freeze, leaves, named_leaves, replaced
from .state import state_of

Held = Variables | Variable


def is_module(value: object) -> TypeGuard[Variables]:
    """Tells whether a value is a module instance."""
    return isinstance(value, Variables)


def is_held(value: object) -> TypeGuard[Held]:
    """Tells whether a value is one that a lift takes along with the module that holds it."""
    return isinstance(value, (Variables, Variable))


def own_methods(cls: type) -> list[str]:
    """Returns the names of the methods that a module class has beyond what every module has."""
    (base,) = [c for c in cls.__mro__ if "_liftax_module" in c.__dict__]
    common = {name for c in base.__mro__ for name in c.__dict__}
    return [
        name
        for name, _ in inspect.getmembers(cls, inspect.isfunction)
        if (not name.startswith("_") or name == "__call__") and name not in common
    ]


def place(module: Variables) -> None:
    """Finds the name and the scope of a module whose ``parent`` is known.

    Raises:
      AssignSubModuleError: the parent is neither in ``setup`` nor in a compact
        method.
      NameInUseError: the parent has something else of that name.
      InvalidParentError: the parent is something else.
    """
    parent = module.parent
    if isinstance(parent, Variables):
        state = state_of(parent)
        if module.name is None:
            if state.in_setup:
                return  # named when it is assigned to an attribute
            if not state.in_compact:
                raise AssignSubModuleError(
                    f"{whose(parent)}: submodule {type(module).__name__} was made outside "
                    f"setup and outside a compact method; define it in setup, or decorate the "
                    f"method with @nn.compact"
                )
            prefix = type(module).__name__
            number = state.cursors.get(prefix, 0)
            state.cursors[prefix] = number + 1
            module.__dict__["name"] = f"{prefix}_{number}"
        settle(module, parent, state.in_setup and state.again)
    elif isinstance(parent, Scope):
        module.__dict__["scope"] = parent
    else:
        raise InvalidParentError(
            f"{type(module).__name__}: parent= expected a module, a scope or None; found "
            f"{type(parent).__name__}"
        )


def settle(module: Variables, parent: Variables, again: bool) -> None:
    """Takes the name in the parent and, where the parent has one, the scope.

    Args:
      parent: the module's parent.
      again: whether it may be taken: the parent is a clone inside a lift, where the same
        module may stand already, as an argument of the lifted function.
    """
    name, scope, state = str(module.name), parent.scope, state_of(parent)
    if scope is not None:
        scope = state.within or scope
        if not again and scope.name_reserved(name):
            raise NameInUseError(
                f"{whose(parent)}: the name {name!r} is in use and cannot also be submodule "
                f"{type(module).__name__}; pass another name="
            )
        module.__dict__["scope"] = scope.push(name, reuse=again)
    state.children[name] = module


def register(owner: Variables, name: str, value: object) -> tuple[object, bool]:
    """Takes the modules in ``value``, assigned to attribute ``name``, as submodules.

    A module without a name becomes a submodule of ``owner``, named by the
    attribute and its place in containers. One made outside any model is cloned
    first, without its name unless the class has ``preserve_adopted_names = True``; the same
    module met twice gives the same clone, so it stays shared.

    Returns:
      the value as it must be stored, and whether it has modules or Variables in it.
    """
    if type(value) in ATOMS:
        return value, False
    value = freeze(value)
    held = list(leaves(value, is_held))
    if all(map(_has_place, held)):
        return value, bool(held)

    # One module in two places is one here too: within the value by `found`, and from one field or
    # module of this call to the next by what the call has adopted. The original is held beside its
    # clone, since its identity is the key.
    adopted: list[Variables] = []
    found: dict[int, Variables] = {}
    root = owner.scope.call if owner.scope is not None else None
    for spelled, module in named_leaves(value, is_module, name):
        if id(module) in found:
            continue
        mine = module
        if module.parent is None:
            known = root.adopted.get(id(module)) if root is not None else None
            if known is None:
                mine = module.clone(name=module.name if owner.preserve_adopted_names else None)
                if root is not None:
                    root.adopted[id(module)] = (module, mine)
            else:
                mine = known[1]
        found[id(module)] = mine
        if not _has_place(mine):
            mine.__dict__.update(parent=owner, name=mine.name or spelled)
            adopted.append(mine)
    stored = replaced(value, is_module, lambda m: found[id(m)])

    # All have their names before the first takes its scope: their own fields may hold each other.
    state = state_of(owner)
    again = state.again if state.in_setup else _is_clone_in_lift(owner)
    for module in adopted:
        settle(module, owner, again)
        module._adopt_fields()
    return stored, True


def _has_place(value: Held) -> bool:
    """Whether a Variable, or a module that has a parent and its name there."""
    return isinstance(value, Variable) or not (value.parent is None or value.name is None)


def _is_clone_in_lift(module: Variables) -> bool:
    return isinstance(module.parent, Scope) and module.parent.call.outside is not None
