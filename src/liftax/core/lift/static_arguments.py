"""Arguments that a lift takes as they are, and not as arrays."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from ...errors import StaticArgumentError
from ...pytrees import Rest, split
from ...words import argument_text, describe
from ..cache_keys import typed
from ..streams import Keyed
from ..types import Function, Group, Placed, Tree
from .crossing import Pure

T = TypeVar("T")


class Inputs(list[Any]):
    """The traced leaves of a call's arguments.

    A pytree of its own: where Python needs the value of one, JAX names it in the error as its
    place in the inputs, and nothing else of a program is called so.
    """


class _Input(NamedTuple):
    number: int

    def __str__(self) -> str:
        return f"<input {self.number} of liftax>"


_NEEDED = re.compile(r"value of the argument \w+<input (\d+) of liftax>")

jax.tree_util.register_pytree_with_keys(
    Inputs,
    lambda inputs: ([(_Input(i), leaf) for i, leaf in enumerate(inputs)], None),
    lambda _, leaves: Inputs(leaves),
    lambda inputs: (tuple(inputs), None),
)


class StaticBody:
    """A pure body with its static arguments, and what Python remembers of its result."""

    def __init__(self, run: Pure, static: Static):
        self.run = run
        self.static = static
        self.rest: Rest  # what the body returned, without what is traced

    def __call__(
        self, variables: Group, keys: Keyed, dynamic: Sequence[object]
    ) -> tuple[list[Any], list[Group]]:
        args, kwargs = self.static.fill(dynamic)
        y, written = self.run([variables], [keys], args, kwargs)
        traced, self.rest = split(y, is_traceable)
        return traced, written

    def outputs(self, traced: Iterable[object]) -> Any:
        """Puts the outputs together: those of the program and those of Python."""
        return self.rest.filled(traced)


def is_traceable(leaf: object) -> bool:
    """Tells whether JAX can trace a value: an array or a number."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


def positional(fn: Function) -> tuple[list[str], float]:
    """Returns the names of the arguments after the scope or module, and how many there may be."""
    parameters = inspect.signature(fn).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    own = names[1:]
    return own, math.inf if any(p.kind is p.VAR_POSITIONAL for p in parameters) else len(own)


def _has_arrays(value: Tree) -> bool:
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
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        argnums: int | Iterable[int],
        argnames: str | Iterable[str],
    ):
        self.at = at
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        names = {argnames} if isinstance(argnames, str) else set(argnames)
        fixed = {number % len(args) for number in numbers if -len(args) <= number < len(args)}
        absent = [number for number in numbers if not -len(args) <= number < len(args)]
        # Reading a signature takes longer than the rest of this; most calls need none.
        if absent or (names and args):
            self._cover(args, kwargs, absent, fixed, names)
        marked = (
            [_Fixed(a) if i in fixed else a for i, a in enumerate(args)],
            {k: _Fixed(v) if k in names else v for k, v in kwargs.items()},
        )
        dynamic, self.rest = split(marked, is_traceable)
        self.dynamic = Inputs(dynamic)

    def _cover(
        self,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        absent: Iterable[int],
        fixed: set[int],
        names: set[str],
    ) -> None:
        """Adds what is named and passed by position to ``fixed``, and the reverse to ``names``."""
        target = getattr(self.at, "target", None)
        # Of a lifted class the method is what the user wrote, and what its numbers count.
        own, limit = positional(getattr(target, "method", target))  # type: ignore[arg-type]
        by_position = [i for i, name in enumerate(own[: len(args)]) if name in names]
        for number in absent:
            if not 0 <= number < limit:
                raise StaticArgumentError(
                    f"{self.at.place}: static_argnums has {number}, the call has {len(args)} "
                    f"positional arguments; expected {-len(args)} to {len(args) - 1} (the scope or "
                    f"module itself is not counted), or static_argnames for keywords"
                )
            # An argument that is left to its default is in neither place.
            name = own[number] if number < len(own) else ""
            if name in kwargs and not _has_arrays(kwargs[name]):
                names.add(name)
        # To be compared by value an array would have to be read, and could not be traced.
        fixed.update(i for i in by_position if not _has_arrays(args[i]))

    def fill(self, dynamic: Iterable[object]) -> tuple[tuple[object, ...], dict[str, object]]:
        """Returns the arguments with other values for the dynamic ones."""
        args, kwargs = self.rest.filled(dynamic)
        args = tuple(a.value if isinstance(a, _Fixed) else a for a in args)
        return args, {k: v.value if isinstance(v, _Fixed) else v for k, v in kwargs.items()}

    def key(self) -> Hashable:
        """Returns what makes one set of static arguments equal to another."""
        leaves, taken, treedef = self.rest
        traced = set(taken)
        # With the types: 1, 1.0 and True would find each other's program else.
        fixed = [None if i in traced else self._typed(i, leaf) for i, leaf in enumerate(leaves)]
        return tuple(fixed), treedef

    def _typed(self, i: int, leaf: object) -> Hashable:
        try:
            return typed(leaf.value if isinstance(leaf, _Fixed) else leaf)
        except StaticArgumentError as error:
            text = f"{self.at.place}: {self._name(i)}: {error}"
            raise StaticArgumentError(text) from error.__cause__

    def _argument(self, leaf: int) -> Any:
        """Returns JAX's key of the argument that a leaf belongs to, among args or kwargs."""
        leaves, _, treedef = self.rest
        marked = jax.tree.unflatten(treedef, range(len(leaves)))
        return jax.tree_util.tree_leaves_with_path(marked)[leaf][0][1]

    def _name(self, leaf: int) -> str:
        """Names the argument that a leaf belongs to."""
        key = self._argument(leaf)
        if not isinstance(key, jax.tree_util.SequenceKey):
            return f"argument {getattr(key, 'key', key)!r}"
        return argument_text(getattr(self.at, "target", None), key.idx + 1)

    def _number(self, leaf: int) -> int | None:
        """Returns the number of the positional argument that a leaf belongs to, as users count."""
        key = self._argument(leaf)
        if not isinstance(key, jax.tree_util.SequenceKey):
            return None
        return key.idx + hasattr(getattr(self.at, "target", None), "method")

    def call(self, program: Callable[..., T], *inputs: object) -> T:
        """Calls what traces a body with these arguments.

        Raises:
          StaticArgumentError: Python needed the value of a traced one.
        """
        try:
            return program(*inputs)
        except TypeError as cause:
            self._check_needed(cause)
            raise

    def _check_needed(self, cause: Exception) -> None:
        found = _NEEDED.search(str(cause))
        if found is None:
            return
        # JAX names the input; the user knows it as an argument.
        input_number = int(found[1])
        i = self.rest.taken[input_number]
        name, number = self._name(i), self._number(i)
        ways = f"static_argnums={number}, or " if number is not None else ""
        if name.endswith("'"):
            ways += f"static_argnames={name.split()[-1]}, or "
        raise StaticArgumentError(
            f"{self.at.place}: Python needs the value of {name}, e.g. in an if or for a "
            f"shape, but it is traced.\n"
            f"found: {describe(jax.typeof(self.dynamic[input_number]))}\n"
            f"expected: {ways}nn.cond or jnp.where to choose by a traced value"
        ) from cause


class _Fixed:
    """A leaf that is not traced."""

    def __init__(self, value: object):
        self.value = value
