"""One trace for a loop whose body makes values that do not belong to the loop.

Two kinds of value leave a loop body by another door than the carry and the
stacked outputs:

  invariant   the same in every iteration: a broadcast variable that the body
              makes, or an output declared ``broadcast``
  birth       a carried variable that the body makes: the loop needs its first
              value before the first iteration

The body is traced once to a jaxpr in which the places where such values are
made are marked. What the invariants need is cut out by dependency and run once,
before the loop; what the births need is run once on the first iteration's
inputs; the loop runs the rest, with both as inputs. An invariant that needs the
carry or a scanned value is an error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import compat
from ..core.rngs import describe
from ..errors import LoopDependentError, SplitSharedError

if TYPE_CHECKING:
    import jax.extend.core as jex


# Our own, and not `checkpoint_name`: what that gives is the user's to save or to offload, and
# JAX changes how it is written down.
_mark_p = compat.identity("liftax_mark")


class Birth(NamedTuple):
    """A variable that the body made: its marks, one per leaf of its value.

    ``first`` is its marked value. ``late`` says that a lift inside the body made it: the
    value is what that lift left of it, not its first one.
    """

    carried: bool
    top: int
    col: str
    path: tuple[str, ...]
    marks: list[str]
    treedef: Any
    first: Any
    late: bool


class Marks:
    """The marks that one trace of a body leaves in its jaxpr."""

    def __init__(self) -> None:
        self.births: list[Birth] = []
        self._number = itertools.count()
        self._marked: dict[int, Any] = {}

    def birth(
        self,
        carried: bool,
        top: int,
        col: str,
        path: tuple[str, ...],
        value: Any,
        late: bool = False,
    ) -> Any:
        """Marks the initial value of a variable; returns the marked value."""
        leaves, treedef = jax.tree.flatten(value)
        # A nested loop leaves its own marks in the same jaxpr: tell them apart.
        names = [f"{id(self)}:{next(self._number)}" for _ in leaves]
        marked = [_mark_p.bind(jnp.asarray(x), mark=n) for x, n in zip(leaves, names, strict=True)]
        value = jax.tree.unflatten(treedef, marked)
        self.births.append(Birth(carried, top, col, path, names, treedef, value, late))
        self._marked |= {id(x): x for x in (value, *marked)}
        return value

    def stands_on(self, value: Any) -> bool:
        """Tells whether ``value`` is, unchanged, what `birth` returned."""
        return id(value) in self._marked

    def clear(self) -> None:
        """Forgets the marks of a trace that another one replaces."""
        self.births.clear()
        self._marked.clear()


class Loop(NamedTuple):
    """A traced loop body, cut in three.

    Attributes:
      step: ``(shared, carry, births, x) -> (carry, births, ys)``, lists of leaves.
      invariants: the values of the invariants, made before the loop.
      shared: the values of the shared births, in the order of the marks.
      first: ``(carry, x) -> births``: the initial values of the carried births.
      carry_avals: the shapes and dtypes of the carry that the body returns.
    """

    step: Callable[..., Any]
    invariants: list[Any]
    shared: list[Any]
    first: Callable[..., list[Any]]
    carry_avals: list[Any]


def trace_loop(
    body: Callable[..., tuple[list[Any], list[Any], list[Any], list[Any]]],
    carry: Sequence[Any],
    x: Sequence[Any],
    marks: Marks,
    name_of: Callable[[int], str],
    place: str,
    split: bool = False,
) -> Loop:
    """Traces ``body`` once and cuts it.

    Args:
      body: ``(carry, x) -> (carry, births, ys, invariants)``, lists of leaves;
        ``births`` are the final values of the carried births, in marked order.
      carry: the carry's leaves, or their shapes.
      x: shapes of one iteration's scanned leaves.
      marks: what ``body`` marks.
      name_of: names an invariant for messages; after the invariants come the
        leaves of the shared births.
      place: where the lift stands.
      split: whether the stream ``params`` is split, for messages.

    Raises:
      SplitSharedError: a shared parameter is made from a split stream.
      LoopDependentError: an invariant needs the carry or a scanned value.
    """
    closed, shapes = jax.make_jaxpr(body, return_shape=True)(list(carry), list(x))
    n_carry, n_births, n_ys, n_inv = map(len, shapes)
    jaxpr = compat.consts_as_inputs(closed)
    consts = closed.consts
    shared = {m: None for b in marks.births if not b.carried for m in b.marks}
    carried = {m: None for b in marks.births if b.carried for m in b.marks}
    variables = _marked(jaxpr, {**shared, **carried})
    shared_vars = [variables[m] for m in shared]
    carried_vars = [variables[m] for m in carried]
    looped = jaxpr.outvars[: n_carry + n_births + n_ys]
    invariant = jaxpr.outvars[n_carry + n_births + n_ys :]

    outside = compat.rewire(
        jaxpr, invars=jaxpr.invars, outvars=[*invariant, *shared_vars], eqns=jaxpr.eqns
    )
    values = _before(outside, consts, name_of, place, split)

    first_jaxpr = compat.rewire(jaxpr, invars=jaxpr.invars, outvars=carried_vars, eqns=jaxpr.eqns)

    def first(carry: Sequence[Any], x: Sequence[Any]) -> list[Any]:
        return _run(first_jaxpr, [*consts, *carry, *x]) if carried_vars else []

    cut = {*shared, *carried}
    rest = compat.rewire(
        jaxpr,
        invars=[*jaxpr.invars, *shared_vars, *carried_vars],
        outvars=looped,
        eqns=[eqn for eqn in jaxpr.eqns if _mark_of(eqn) not in cut],
    )
    rest, used = compat.prune(rest, [True] * len(looped))

    def step(
        made: Sequence[Any], carry: Sequence[Any], births: Sequence[Any], x: Sequence[Any]
    ) -> Any:
        given = [*consts, *carry, *x, *made, *births]
        out = compat.evaluate(rest, [v for v, u in zip(given, used, strict=True) if u])
        split = n_carry + n_births
        return out[:n_carry], out[n_carry:split], out[split:]

    return Loop(step, values[:n_inv], values[n_inv:], first, shapes[0])


def _mark_of(eqn: Any) -> str | None:
    return eqn.params["mark"] if eqn.primitive is _mark_p else None


def _marked(jaxpr: jex.Jaxpr, wanted: dict[str, None]) -> dict[str, Any]:
    """Finds the variable that each mark stands on."""
    found = {}
    for eqn in jaxpr.eqns:
        mark = _mark_of(eqn)
        if mark in wanted:
            found[mark] = eqn.outvars[0]
    return found


def _run(jaxpr: jex.Jaxpr, inputs: Sequence[Any]) -> list[Any]:
    small, used = compat.prune(jaxpr, [True] * len(jaxpr.outvars))
    return compat.evaluate(small, [v for v, u in zip(inputs, used, strict=True) if u])


def _before(
    jaxpr: jex.Jaxpr,
    consts: Sequence[Any],
    name_of: Callable[[int], str],
    place: str,
    split: bool,
) -> list[Any]:
    """Runs what needs nothing of the loop."""
    small, used = compat.prune(jaxpr, [True] * len(jaxpr.outvars))
    if any(used[len(consts) :]):
        for i, var in enumerate(jaxpr.outvars):
            _, needs = compat.prune(jaxpr, [j == i for j in range(len(jaxpr.outvars))])
            if any(needs[len(consts) :]):
                if split and name_of(i).startswith("variable params/"):
                    raise split_shared(place, name_of(i))
                raise LoopDependentError(
                    f"{place}: {name_of(i)} is declared broadcast but depends on the loop.\n"
                    f"found: {describe(var.aval)}, computed from the carry or a scanned value\n"
                    f"expected: a value that is the same in each iteration; otherwise stack it "
                    f"(variable_axes, out_axes=0) or carry it (variable_carry)"
                )
    return compat.evaluate(small, [c for c, u in zip(consts, used, strict=False) if u])


def split_shared(place: str, name: str) -> SplitSharedError:
    """A shared parameter that each iteration would initialise differently."""
    return SplitSharedError(
        f"{place}: {name} is shared along the axis, but stream 'params' is split, so each "
        f"iteration would initialise it differently.\n"
        f"expected: split_rngs={{'params': False}} to share it, or "
        f"variable_axes={{'params': 0}} for one of its own in each iteration"
    )
