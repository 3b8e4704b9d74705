"""What the core's functions hand to each other, as types.

Much of what goes through a lift is the user's: the engine hands it on, to JAX or back, and looks
at none of it. Such a value is an ``object`` (here and there called a `Tree`, where JAX takes it
apart), and not ``Any``, so the type checker holds the engine to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import jax

Path = tuple[str, ...]
"""Names, from the root of a model or from a scope, down to a scope or a variable."""

Key = jax.Array
"""One random key: typed, or an array of uint32 words."""

Tree = object
"""A pytree: arrays in containers, taken apart by JAX's tree functions and nothing else."""

Node = dict[str, object]
"""Variables by name, and dicts of variables: what a collection has at one path. A variable may be
any pytree, so only a ``dict`` is told apart from it."""

Collections = dict[str, Node]
"""The variables of one scope: collection -> what it has there."""

Group = tuple[Collections, ...]
"""For each opened scope, in their order, the variables that play one role."""

Function = Callable[..., object]
"""What is lifted, a function whose first argument is scopes or modules, or what came of it."""

Fn = TypeVar("Fn", bound=Function)
"""A function whose lifted twin is called alike: arrays for arrays, one axis more or less."""

Metadata = Mapping[Any, Any]
"""What a user says of an axis to the boxes of variables: ``{nn.PARTITION_NAME: 'layers'}``."""


class Placed(Protocol):
    """What knows its place in the model; asked only for messages."""

    @property
    def place(self) -> str: ...
