"""Names and places: how a module finds its parent, its name and its scope."""

from __future__ import annotations

import inspect
from typing import Any

from ..core.scope import Scope, Variable
from ..errors import AssignSubModuleError, InvalidParentError, NameInUseError
from .bound import Variables
from .fields import freeze, is_atom, leaves, named_leaves, replaced


def is_module(value: Any) -> bool:
    """Tells whether a value is a module instance."""
    return isinstance(value, Variables)


def is_held(value: Any) -> bool:
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
    if is_module(parent):
        state = parent._state
        if module.name is None:
            if state.in_setup:
                return  # named when it is assigned to an attribute
            if not state.in_compact:
                raise AssignSubModuleError(
                    f"{_whose(parent)}: submodule {type(module).__name__} was made outside "
                    f"setup and outside a compact method; define it in setup, or decorate the "
                    f"method with @nn.compact"
                )
            prefix = type(module).__name__
            number = state.cursors.get(prefix, 0)
            state.cursors[prefix] = number + 1
            _set(module, "name", f"{prefix}_{number}")
        settle(module, state.in_setup and state.again)
    elif isinstance(parent, Scope):
        _set(module, "scope", parent)
    else:
        raise InvalidParentError(
            f"{type(module).__name__}: parent= expected a module, a scope or None; found "
            f"{type(parent).__name__}"
        )


def settle(module: Variables, again: bool = False) -> None:
    """Takes the name in the parent and, where the parent has one, the scope.

    Args:
      again: whether it may be taken: the parent is a clone inside a lift, where the same
        module may stand already, as an argument of the lifted function.
    """
    parent, name = module.parent, module.name
    scope = parent.scope
    if scope is not None:
        scope = parent._state.within or scope
        if not again and scope.name_reserved(name):
            raise NameInUseError(
                f"{_whose(parent)}: the name {name!r} is in use and cannot also be submodule "
                f"{type(module).__name__}; pass another name="
            )
        _set(module, "scope", scope.push(name, reuse=again))
    parent._state.children[name] = module


def register(owner: Variables, name: str, value: Any) -> tuple[Any, bool]:
    """Takes the modules in ``value``, assigned to attribute ``name``, as submodules.

    A module without a name becomes a submodule of ``owner``, named by the
    attribute and its place in containers. One made outside any model is cloned
    first, without its name unless the class has ``preserve_adopted_names = True``; the same
    module met twice gives the same clone, so it stays shared.

    Returns:
      the value as it must be stored, and whether it has modules or Variables in it.
    """
    if is_atom(value):
        return value, False
    value = freeze(value)
    held = list(leaves(value, is_held))
    if all(map(_has_place, held)):
        return value, bool(held)
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
            _set(mine, "parent", owner)
            _set(mine, "name", mine.name or spelled)
            adopted.append(mine)
    stored = replaced(value, is_module, lambda m: found[id(m)])
    state = owner._state
    again = state.again if state.in_setup else _is_clone_in_lift(owner)
    for module in adopted:
        settle(module, again)
        module._adopt_fields()
    return stored, True


def _has_place(value: Any) -> bool:
    """Whether a Variable, or a module that has a parent and its name there."""
    return isinstance(value, Variable) or not (value.parent is None or value.name is None)


def _is_clone_in_lift(module: Variables) -> bool:
    return isinstance(module.parent, Scope) and module.parent.call.outside is not None


def _set(module: Any, name: str, value: Any) -> None:
    module.__dict__[name] = value


def _whose(module: Variables) -> str:
    scope = module.scope
    path = "/" + "/".join(scope.path) if scope is not None else "(unbound)"
    return f"module {path} ({type(module).__name__})"
