"""Making variables without running the model: init, traced and cut down.

The function is traced, cut down to what makes the variables, and run. The first
time it is run equation by equation, so that a model that is initialised once
costs no compilation of its own; a function of the same key that comes again is
compiled as one program, in which the equations are kept apart, so that the
numbers are those of the first time to the last bit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import compat
from ..errors import LazyInitError, StaticArgumentError
from .keys import typed
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
    """Compiled programs by key, a few at a time, of keys that came more than once."""

    def __init__(self, size: int = 8, remembered: int = 64):
        self.size = size
        self.remembered = remembered
        self.seen: dict[Hashable, Any] = {}

    def __reduce__(self) -> Any:
        return Programs, (self.size, self.remembered)  # programs stay behind

    def find(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the program of a key, None the first time that the key comes."""
        if key not in self.seen:
            self.seen[key] = None
            _shorten(self.seen, self.remembered)
            return None
        program = self.seen.pop(key, None) or make()
        self.seen[key] = program
        compiled = [k for k, p in list(self.seen.items()) if p is not None]
        for old in compiled[: -self.size]:
            self.seen[old] = None
        return program


def _shorten(cache: dict[Any, Any], size: int) -> None:
    while len(cache) > size:
        cache.pop(next(iter(cache)), None)


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
        if cache is not None:
            try:
                key = (identity(), call.key(), *(k() for k in context_keys))
                program = cache.find(key, call.program)
            except StaticArgumentError:
                program = None
            if program is not None:
                return call.compiled(program)
        return call.eager()

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

    def eager(self) -> Any:
        """Runs what makes variables equation by equation."""
        try:
            closed, made = self.trace(self.inputs)
        except _CANNOT_STAGE:
            if any(self.abstract):
                raise
            rngs, args, kwargs = self.filled(self.inputs)
            return self.initialise(rngs, *args, **kwargs)[1]
        jaxpr = compat.consts_as_inputs(closed)
        small, used = compat.prune(jaxpr, [True] * len(jaxpr.outvars))
        values = [*closed.consts, *self.inputs]
        unknown = [False] * len(closed.consts) + self.abstract
        if any(u and a for u, a in zip(used, unknown, strict=True)):
            raise LazyInitError(
                f"lazy_init: the initial value of {', '.join(made.needy(jaxpr, unknown)[:4])} "
                f"depends on an input of which only the shape is given; pass that input as an "
                f"array"
            )
        kept = [v for v, u in zip(values, used, strict=True) if u]
        return made.variables(compat.evaluate(small, kept))

    def program(self) -> Any:
        """Returns the compiled counterpart of `eager`: inputs -> (arrays, what else)."""

        def run(inputs: list[Any], zero: Any) -> Any:
            closed, made = self.trace(inputs)
            jaxpr = compat.consts_as_inputs(closed)
            small, used = compat.prune(jaxpr, [True] * len(jaxpr.outvars))
            values = [*closed.consts, *inputs]
            kept = [v for v, u in zip(values, used, strict=True) if u]
            return compat.evaluate_apart(small, kept, zero), made

        return jax.jit(run)

    def compiled(self, program: Any) -> Any:
        """Runs a program that `program` made for a call of the same key."""
        try:
            arrays, made = program(self.inputs, np.uint32(0))
        except _CANNOT_STAGE:
            return self.eager()
        return made.variables(arrays)


@jax.tree_util.register_static
class _Made:
    """The variables but for their arrays: where those go, and what else there is."""

    def __init__(self, fixed: list[Any], traced: list[int], treedef: Any):
        self.fixed = fixed
        self.traced = traced
        self.treedef = treedef

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

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
