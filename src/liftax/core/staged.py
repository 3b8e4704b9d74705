"""Making variables without running the model: init, traced and cut down.

The function is traced, cut down to what makes the variables, and run. The first
time it is run equation by equation, so that a model that is initialised once
costs no compilation of its own. The program is kept; when a function of the same
key comes again it is run in compiled parts, whose equations are kept apart, so that
the numbers are those of the first time to the last bit. A program that is a batch of
layers and their keys (see batched.py) is compiled as one, the first time already.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import compat
from ..errors import LazyInitError, LiftWarning, StaticArgumentError
from .batched import batched, is_whole
from .keys import typed
from .parts import Parts
from .record import recorder
from .rngs import as_streams, is_key

if TYPE_CHECKING:
    import jax.extend.core as jex

_CANNOT_STAGE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)


class Programs:
    """What was traced, by key, a few at a time."""

    def __init__(self, size: int = 8):
        self.size = size
        self.kept: dict[Hashable, _Program] = {}

    def __reduce__(self) -> Any:
        return Programs, (self.size,)  # programs stay behind

    def find(self, key: Hashable, make: Callable[[], _Program | None]) -> _Program | None:
        """Returns the program of a key, made now if it is not there."""
        program = self.kept.pop(key, None) or make()
        if program is not None and not program.warned:
            self.kept[key] = program
            for old in list(self.kept)[: -self.size]:
                self.kept.pop(old, None)
        return program


context_keys: list[Callable[[], Hashable]] = []
"""What else a program depends on besides its key: rules that a thread has set."""


def staged(
    initialise: Callable[..., Any],
    programs: Callable[[], Programs | None] = lambda: None,
    identity: Callable[[], Hashable] = lambda: None,
) -> Callable[..., Any]:
    """Returns ``initialise`` without its output and without the work that it needs.

    A function that looks at values while it runs cannot be traced; it is run as
    it is.

    Args:
      initialise: ``(rngs, *args, **kwargs) -> (y, variables)``.
      programs: where compiled programs are kept, None to keep none.
      identity: a key for ``initialise``: functions of equal keys make equal
        variables of equal inputs.

    Returns:
      ``(rngs, *args, **kwargs) -> variables``.
    """

    def run(rngs: Any, *args: Any, **kwargs: Any) -> Any:
        call = _Init(initialise, rngs, args, kwargs)
        cache = programs() if call.plain else None
        if cache is None:
            program = call.program()
        else:
            try:
                settings = (compat.settings(), *(k() for k in context_keys))
                program = cache.find((identity(), call.key(), settings), call.program)
            except StaticArgumentError:
                program = call.program()
        if program is None:
            rngs, args, kwargs = call.filled(call.inputs)
            return initialise(rngs, *args, **kwargs)[1]
        return program(call.inputs)

    return run


class _Init:
    """One call of init: its inputs, and what its function leaves besides arrays."""

    def __init__(self, initialise: Callable[..., Any], rngs: Any, args: Any, kwargs: Any):
        self.initialise = initialise
        self.streams = as_streams(rngs)
        keys = {name: stream.key for name, stream in self.streams.items()}
        self.leaves, self.treedef = jax.tree.flatten((keys, args, kwargs))
        self.where = [i for i, leaf in enumerate(self.leaves) if _is_array(leaf)]
        self.inputs = [self.leaves[i] for i in self.where]
        self.abstract = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.inputs]

    @property
    def plain(self) -> bool:
        """Whether the call stands outside all transformations, with nobody listening."""
        return (
            compat.current_trace() is compat.EAGER
            and recorder.get() is None
            and not any(self.abstract)
        )

    def key(self) -> Hashable:
        """Returns what makes one call's inputs stand for another's."""
        where = set(self.where)
        rest = tuple(typed(x) for i, x in enumerate(self.leaves) if i not in where)
        arrays = tuple(
            (x.shape, x.dtype, getattr(x, "weak_type", False), type(x) is np.ndarray)
            for x in self.inputs
        )
        paths = tuple((name, stream.path) for name, stream in self.streams.items())
        return rest, arrays, paths, self.treedef

    def filled(self, arrays: list[Any]) -> tuple[Any, Any, Any]:
        leaves = list(self.leaves)
        for i, array in zip(self.where, arrays, strict=True):
            leaves[i] = array
        keys, args, kwargs = jax.tree.unflatten(self.treedef, leaves)
        return {n: s._replace(key=keys[n]) for n, s in self.streams.items()}, args, kwargs

    def trace(self, inputs: list[Any]) -> tuple[jex.ClosedJaxpr, _Made]:
        """Traces the function; returns the program and what is no part of it."""
        side: list[_Made] = []

        def variables_of(arrays: list[Any]) -> Any:
            rngs, args, kwargs = self.filled(arrays)
            leaves, treedef = jax.tree.flatten(self.initialise(rngs, *args, **kwargs)[1])
            # What is not traced is a value already: a Python number stays one.
            traced = [i for i, x in enumerate(leaves) if isinstance(x, jax.core.Tracer)]
            fixed = [None if isinstance(x, jax.core.Tracer) else x for x in leaves]
            side.append(_Made(fixed, traced, treedef))
            return [leaves[i] for i in traced]

        closed = jax.make_jaxpr(variables_of)(inputs)
        return closed, side[-1]

    def program(self) -> _Program | None:
        """Returns what makes the variables, None if the function looks at values.

        Raises:
          LazyInitError: a variable needs an input of which only the shape is known.
        """
        before = LiftWarning.made
        try:
            closed, made = self.trace(self.inputs)
        except _CANNOT_STAGE:
            if any(self.abstract):
                raise
            return None
        jaxpr = compat.consts_as_inputs(closed)
        small, used = compat.prune(jaxpr, [True] * len(jaxpr.outvars))
        unknown = [False] * len(closed.consts) + self.abstract
        if any(u and a for u, a in zip(used, unknown, strict=True)):
            raise LazyInitError(
                f"lazy_init: the initial value of {', '.join(made.needy(jaxpr, unknown)[:4])} "
                f"depends on an input of which only the shape is given; pass that input as an "
                f"array"
            )
        return _Program(batched(small), list(closed.consts), used, made, LiftWarning.made != before)


class _Program:
    """What makes the variables, traced and cut down.

    Args:
      jaxpr: maps those of the constants and inputs that are used to the arrays.
      consts: what the function closed over.
      used: for each of the constants and inputs, whether it is used.
      made: the variables but for the arrays.
      warned: whether the trace gave warning. It is to do so each time.
    """

    def __init__(
        self, jaxpr: jex.Jaxpr, consts: list[Any], used: list[bool], made: _Made, warned: bool
    ):
        self.jaxpr = jaxpr
        self.consts = consts
        self.used = used
        self.made = made
        self.warned = warned
        self.run: Callable[[list[Any]], list[Any]] | None = None
        self.first = True
        if is_whole(jaxpr):
            self.first, self.run = False, jax.jit(lambda kept: compat.evaluate(jaxpr, kept))

    def __call__(self, inputs: list[Any]) -> Any:
        both = zip([*self.consts, *inputs], self.used, strict=True)
        kept = [value for value, used in both if used]
        if self.first:
            self.first = False
            return self.made.variables(compat.evaluate(self.jaxpr, kept))
        if self.run is None:
            self.run = Parts(self.jaxpr)
        return self.made.variables(self.run(kept))


class _Made:
    """The variables but for their arrays: where those go, and what else there is."""

    def __init__(self, fixed: list[Any], traced: list[int], treedef: Any):
        self.fixed = fixed
        self.traced = traced
        self.treedef = treedef

    def variables(self, arrays: list[Any]) -> Any:
        """Returns the variables with ``arrays`` in their places."""
        leaves = list(self.fixed)
        for i, array in zip(self.traced, arrays, strict=True):
            leaves[i] = array
        return jax.tree.unflatten(self.treedef, leaves)

    def needy(self, jaxpr: jex.Jaxpr, unknown: list[bool]) -> list[str]:
        """Names the variables that depend on any of the ``unknown`` inputs."""
        named = jax.tree.unflatten(self.treedef, range(len(self.fixed)))
        paths = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(named)]
        found = []
        for output, leaf in enumerate(self.traced):
            wanted = [i == output for i in range(len(self.traced))]
            _, used = compat.prune(jaxpr, wanted)
            if any(u and a for u, a in zip(used, unknown, strict=True)):
                found.append(paths[leaf])
        return found


def _is_array(leaf: Any) -> bool:
    return is_key(leaf) or (hasattr(leaf, "shape") and hasattr(leaf, "dtype"))
