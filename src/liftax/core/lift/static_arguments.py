"""Arguments that a lift takes as they are, and not as arrays."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ...errors import StaticArgumentError
from ...words import describe
from ..cache_keys import typed
from .axes import Placed
from .crossing import Opening

# How JAX names the argument that Python needed, by the names of the functions it traces here.
_NEEDED = re.compile(r"value of the argument (?:kept|dynamic)\[(\d+)\]")


_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD


class _Body:
    """A pure body with its static arguments, and what Python remembers of its result."""

    def __init__(self, run: Callable[..., Any], static: Static):
        self.run = run
        self.static = static
        self.leaves: list[Any] = []
        self.treedef: Any = None
        self.traced: list[int] = []

    def __call__(self, variables: Any, keys: Any, dynamic: list[Any]) -> Any:
        args, kwargs = self.static.fill(dynamic)
        y, written = self.run([variables], [keys], args, kwargs)
        leaves, self.treedef = jax.tree.flatten(y)
        self.traced = [i for i, leaf in enumerate(leaves) if is_traceable(leaf)]
        # JAX holds on to what it traced: of the trace nothing may stay in here.
        self.leaves = [None if is_traceable(leaf) else leaf for leaf in leaves]
        return [leaves[i] for i in self.traced], written

    def outputs(self, traced: list[Any]) -> Any:
        """Puts the outputs together: those of the program and those of Python."""
        leaves = list(self.leaves)
        for i, value in zip(self.traced, traced, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self.treedef, leaves)


def is_traceable(leaf: Any) -> bool:
    """Tells whether JAX can trace a value: an array or a number."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


class _Positional(NamedTuple):
    """The positional parameters of a function after the scope or module.

    Attributes:
      names: theirs.
      more: whether it takes any number.
    """

    names: list[str]
    more: bool


def _positional_names(fn: Any) -> _Positional:
    parameters = inspect.signature(fn).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return _Positional(names[1:], any(p.kind is p.VAR_POSITIONAL for p in parameters))


def positional(fn: Any) -> float:
    """Returns how many positional arguments a function takes, the scope or module among them."""
    own = _positional_names(fn)
    return math.inf if own.more else len(own.names) + 1


def _has_arrays(value: Any) -> bool:
    return any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(value))


class Static:
    """The arguments of a staged call, static ones set apart.

    What is neither an array nor a number is static by itself.

    As in `jax.jit`, an argument named or numbered is static whichever way the call passes it.
    Passed the other way, an array stays traced, as in Linen, where it always is.

    Args:
      at: what knows where the lift stands.
      args, kwargs: of the call.
      argnums: positions of static arguments, negative ones from the end.
      argnames: names of static arguments.

    Raises:
      StaticArgumentError: a position is out of range.
    """

    def __init__(
        self,
        at: Placed,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        argnums: int | Iterable[int],
        argnames: str | Iterable[str],
    ):
        self.at = at
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        names = {argnames} if isinstance(argnames, str) else set(argnames)
        fixed = {number % len(args) for number in numbers if -len(args) <= number < len(args)}
        absent = [number for number in numbers if not -len(args) <= number < len(args)]
        if absent or (names and args):
            self._cover(args, kwargs, absent, fixed, names)
        marked = (
            [_Fixed(a) if i in fixed else a for i, a in enumerate(args)],
            {k: _Fixed(v) if k in names else v for k, v in kwargs.items()},
        )
        self.leaves, self.treedef = jax.tree.flatten(marked)
        self.where = [i for i, leaf in enumerate(self.leaves) if is_traceable(leaf)]
        self.dynamic = [self.leaves[i] for i in self.where]

    def _cover(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        absent: Iterable[int],
        fixed: set[int],
        names: set[str],
    ) -> None:
        """Adds what is named and passed by position to ``fixed``, and the reverse to ``names``."""
        target = getattr(self.at, "target", None)
        own = _positional_names(getattr(target, "method", target))
        limit = len(own.names) if not own.more else math.inf
        by_position = [i for i, name in enumerate(own.names[: len(args)]) if name in names]
        for number in absent:
            if not 0 <= number < limit:
                raise StaticArgumentError(
                    f"{self.at.place}: static_argnums has {number}, the call has {len(args)} "
                    f"positional arguments; expected {-len(args)} to {len(args) - 1} (the scope or "
                    f"module itself is not counted), or static_argnames for keywords"
                )
            # An argument that is left to its default is in neither place.
            name = own.names[number] if number < len(own.names) else ""
            if name in kwargs and not _has_arrays(kwargs[name]):
                names.add(name)
        fixed.update(i for i in by_position if not _has_arrays(args[i]))

    def fill(self, dynamic: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments with other values for the dynamic ones."""
        leaves = list(self.leaves)
        for i, value in zip(self.where, dynamic, strict=True):
            leaves[i] = value
        args, kwargs = jax.tree.unflatten(self.treedef, leaves)
        args = tuple(a.value if isinstance(a, _Fixed) else a for a in args)
        return args, {k: v.value if isinstance(v, _Fixed) else v for k, v in kwargs.items()}

    def key(self) -> Any:
        """Returns what makes one set of static arguments equal to another."""
        fixed = [
            None if i in set(self.where) else self._typed(i, leaf)
            for i, leaf in enumerate(self.leaves)
        ]
        return tuple(fixed), self.treedef

    def _typed(self, i: int, leaf: Any) -> Any:
        try:
            return typed(leaf.value if isinstance(leaf, _Fixed) else leaf)
        except StaticArgumentError as error:
            text = f"{self.at.place}: {self._name(i)}: {error}"
            raise StaticArgumentError(text) from error.__cause__

    def _name(self, leaf: int) -> str:
        """Names the argument that a leaf belongs to."""
        marked = jax.tree.unflatten(self.treedef, range(len(self.leaves)))
        path = jax.tree_util.tree_leaves_with_path(marked)[leaf][0]
        key = path[1]
        if not isinstance(key, jax.tree_util.SequenceKey):
            return f"argument {getattr(key, 'key', key)!r}"
        method = getattr(getattr(self.at, "target", None), "method", None)
        names = list(inspect.signature(method).parameters.values()) if method else []
        # The first one is the module.
        if key.idx + 1 < len(names) and names[key.idx + 1].kind is _POSITIONAL:
            return f"argument {names[key.idx + 1].name!r}"
        return f"argument {key.idx + 1}"

    def _number(self, leaf: int) -> int | None:
        """Returns the number of the positional argument that a leaf belongs to, as users count."""
        marked = jax.tree.unflatten(self.treedef, range(len(self.leaves)))
        key = jax.tree_util.tree_leaves_with_path(marked)[leaf][0][1]
        if not isinstance(key, jax.tree_util.SequenceKey):
            return None
        return key.idx + hasattr(getattr(self.at, "target", None), "method")

    def check_needed(self, opening: Opening, cause: Exception) -> None:
        """Raises StaticArgumentError where Python needed the value of a traced argument."""
        found = _NEEDED.search(str(cause))
        if found is None or int(found[1]) >= len(self.where):
            return
        i = self.where[int(found[1])]
        name, number = self._name(i), self._number(i)
        ways = f"static_argnums={number}, or " if number is not None else ""
        if name.endswith("'"):
            ways += f"static_argnames={name.split()[-1]}, or "
        raise StaticArgumentError(
            f"{opening.place}: Python needs the value of {name}, e.g. in an if or for a "
            f"shape, but it is traced.\n"
            f"found: {describe(jax.typeof(self.leaves[i]))}\n"
            f"expected: {ways}nn.cond or jnp.where to choose by a traced value"
        ) from cause


class _Fixed:
    """A leaf that is not traced."""

    def __init__(self, value: Any):
        self.value = value
