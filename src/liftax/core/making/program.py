"""Making variables without running the model: init, traced and cut down.

The function is traced each time, so that what it reads is what is there now; the program is
cut down to what makes the variables, and run. It runs as JAX would run the function: what
stands outside of every transformation operation by operation, what is inside of `jax.jit` or a
loop as one compiled program. So the numbers are those of the function itself, to the last bit,
and what one call compiled the next one finds in JAX's caches, or among the loops that are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from ... import equations, jax_private
from ...errors import LazyInitError
from ...pytrees import is_array, split_by
from ..streams import Rngs, Stream, as_streams
from ..types import Tree
from . import alike
from .kept import KeptLoops

if TYPE_CHECKING:
    import jax.extend.core as jex

Initialise = Callable[..., tuple[object, Tree]]
"""``(rngs, *args, **kwargs) -> (y, variables)``."""

_CANNOT_STAGE = (
    jax.errors.ConcretizationTypeError,
    jax.errors.NonConcreteBooleanIndexError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerBoolConversionError,
    jax.errors.TracerIntegerConversionError,
)

_TRACED = object()  # stands for an array that the program makes


def staged(initialise: Initialise, kept: KeptLoops | None = None) -> Callable[..., Any]:
    """Returns ``initialise`` without its output and without the work that it needs.

    A function that looks at values while it runs cannot be traced; it is run as
    it is.

    Args:
      initialise: ``(rngs, *args, **kwargs) -> (y, variables)``.
      kept: the loops of earlier calls; None keeps those of the function returned.

    Returns:
      ``(rngs, *args, **kwargs) -> variables``.
    """
    loops = KeptLoops() if kept is None else kept

    def run(rngs: Rngs, *args: object, **kwargs: object) -> Tree:
        call = _Init(initialise, rngs, args, kwargs)
        if jax_private.jit_is_disabled() and not any(call.abstract):
            return call.as_it_is()
        return call.variables(loops)

    return run


class _Init:
    """One call of init: its inputs, and what its function leaves besides arrays."""

    def __init__(
        self,
        initialise: Initialise,
        rngs: Rngs,
        args: tuple[Tree, ...],
        kwargs: dict[str, Tree],
    ):
        self.initialise = initialise
        self.streams = as_streams(rngs)
        keys = {name: stream.key for name, stream in self.streams.items()}
        # Keys are what they are: what is made of them alone is made while the rest is traced.
        wanted = [
            is_array(leaf) if i >= len(keys) else isinstance(leaf, jax.ShapeDtypeStruct)
            for i, leaf in enumerate(jax.tree.leaves((keys, args, kwargs)))
        ]
        self.inputs, self.rest = split_by((keys, args, kwargs), wanted)
        self.abstract = [isinstance(leaf, jax.ShapeDtypeStruct) for leaf in self.inputs]

    def filled(
        self, arrays: Sequence[object]
    ) -> tuple[dict[str, Stream], tuple[Tree, ...], dict[str, Tree]]:
        keys, args, kwargs = self.rest.filled(arrays)
        return {n: s._replace(key=keys[n]) for n, s in self.streams.items()}, args, kwargs

    def as_it_is(self) -> Tree:
        """Returns the variables that the function itself makes."""
        rngs, args, kwargs = self.filled(self.inputs)
        return self.initialise(rngs, *args, **kwargs)[1]

    def trace(self) -> tuple[jex.ClosedJaxpr, Tree]:
        """Returns the function as a program, and what it made, `_TRACED` in place of arrays."""
        made: Tree = None

        def arrays_of(arrays: list[jax.Array]) -> list[jax.Array]:
            nonlocal made
            rngs, args, kwargs = self.filled(arrays)
            variables = self.initialise(rngs, *args, **kwargs)[1]
            leaves = jax.tree.leaves(variables)
            traced = [isinstance(x, jax.core.Tracer) for x in leaves]
            # What is not traced is a value already: a Python number stays one.
            made = _filled(
                variables, [_TRACED if t else x for x, t in zip(leaves, traced, strict=True)]
            )
            return [x for x, t in zip(leaves, traced, strict=True) if t]

        compiled = jax_private.is_compiled()
        run = arrays_of if compiled else jax_private.to_run(arrays_of)
        return jax.make_jaxpr(run)(self.inputs), made

    def variables(self, loops: KeptLoops) -> Tree:
        """Returns the variables, computed without the rest.

        Raises:
          LazyInitError: a variable needs an input of which only the shape is known.
        """
        try:
            closed, made = self.trace()
        except _CANNOT_STAGE:
            if any(self.abstract):
                raise
            made = None
        if made is None:  # out of the try: what the code raises now comes from no other error
            return self.as_it_is()
        jaxpr = jax_private.consts_as_inputs(closed)
        if any(self.abstract):  # nothing to print of an input that has no value
            jaxpr = equations.quiet(jaxpr)
        eager = jax_private.current_trace() is jax_private.EAGER
        small, used = _cut(jaxpr, whole=eager and not any(self.abstract))
        unknown = [False] * len(closed.consts) + self.abstract
        if any(u and a for u, a in zip(used, unknown, strict=True)):
            raise LazyInitError(
                f"lazy_init: the initial value of {', '.join(_needy(made, jaxpr, unknown)[:4])} "
                f"depends on an input of which only the shape is given; pass that input as an "
                f"array"
            )
        if eager:
            small = loops.put_into(small)
        inputs = zip([*closed.consts, *self.inputs], used, strict=True)
        compiled = jax_private.is_compiled()
        evaluate = alike.evaluate if compiled else jax_private.evaluate
        arrays = iter(evaluate(small, [value for value, used in inputs if used]))
        return _filled(made, [next(arrays) if x is _TRACED else x for x in jax.tree.leaves(made)])


def _cut(jaxpr: jex.Jaxpr, whole: bool) -> tuple[jex.Jaxpr, list[bool]]:
    """Cuts a program down to what its outputs need.

    Args:
      jaxpr: the program.
      whole: whether what is compiled by itself, as a loop, stays as it is where its numbers hang
        on that: how XLA adds up depends on how much else the compiled program does, and a loop
        that is cut down may fall below the size from which on it calls other kernels.

    Returns:
      the smaller program and one bool per input: whether it is still an input.
    """
    outvars = list(jaxpr.outvars)
    if not whole:
        return jax_private.prune(jaxpr, [True] * len(outvars))
    while True:
        more = jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=outvars, eqns=jaxpr.eqns)
        small, used = jax_private.prune(more, [True] * len(outvars))
        summing = {v for eqn in small.eqns if equations.sums(eqn) for v in eqn.outvars}
        units = [eqn for eqn in jaxpr.eqns if not summing.isdisjoint(eqn.outvars)]
        wanted = [v for eqn in units for v in eqn.outvars if v not in outvars]
        if not wanted:
            break
        outvars += wanted  # what makes its inputs may be such a part in turn
    outvars = small.outvars[: len(jaxpr.outvars)]
    return jax_private.rewire(small, invars=small.invars, outvars=outvars, eqns=small.eqns), used


def _filled(tree: Tree, leaves: list[object]) -> Tree:
    """Returns a tree with other leaves."""
    return _in_order(tree, jax.tree.unflatten(jax.tree.structure(tree), leaves))


def _in_order(like: Tree, tree: Any) -> Tree:
    """Returns a tree with the keys of its dicts in the order of another's; JAX sorts them."""
    if type(like) is not dict:
        return tree
    return {key: _in_order(part, tree[key]) for key, part in like.items()}


def _needy(made: Tree, jaxpr: jex.Jaxpr, unknown: list[bool]) -> list[str]:
    """Names the variables that depend on any of the ``unknown`` inputs."""
    leaves = jax.tree_util.tree_leaves_with_path(made)
    paths = [path for path, x in leaves if x is _TRACED]
    found = []
    for output, path in enumerate(paths):
        _, used = jax_private.prune(jaxpr, [i == output for i in range(len(paths))])
        if any(u and a for u, a in zip(used, unknown, strict=True)):
            found.append(jax.tree_util.keystr(path))
    return found
