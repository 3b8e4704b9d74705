"""A variable's handle."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import metadata

if TYPE_CHECKING:
    from .scope import Scope

_UNSET = object()


class Variable:
    """A named value in a collection, read and written through ``value``.

    Example:
      >>> from liftax.core import apply
      >>> def count(scope):
      ...     calls = scope.variable('state', 'calls', lambda: 0)
      ...     calls.value += 1
      ...     return calls.value
      >>> apply(count, mutable='state')({'state': {'calls': 4}})
      (5, {'state': {'calls': 5}})
    """

    __slots__ = ("collection", "name", "scope", "unbox")

    def __init__(self, scope: Scope, collection: str, name: str, unbox: bool = True):
        self.scope = scope
        self.collection = collection
        self.name = name
        self.unbox = unbox

    @property
    def value(self) -> Any:
        """The value, without its metadata box unless ``unbox`` is False."""
        value = self.scope.get_variable(self.collection, self.name)
        return metadata.unbox(value) if self.unbox else value

    @value.setter
    def value(self, value: Any) -> None:
        if self.unbox:
            current = self.scope.get_variable(self.collection, self.name, _UNSET)
            # Without a box in it the old value says nothing of the new one's structure.
            if current is not _UNSET and metadata.holds_boxes(current):
                value = metadata.replace_boxed(current, value)
        self.scope.put_variable(self.collection, self.name, value)

    def is_mutable(self) -> bool:
        """Tells whether the collection may be written in this call."""
        return self.scope.is_mutable_collection(self.collection)
