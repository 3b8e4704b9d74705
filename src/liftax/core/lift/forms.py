"""Programs in two forms: as Linen's first trace of a loop has them, and as its second.

In the first trace of a loop a body makes what the iterations share, in the second that is there
and comes in. XLA rounds by what it compiles together, so the two can differ in the last bit. A
lift inside such a loop writes both down, and each value that comes out of it is a choice of the
two, which the loop makes: what it runs before its iterations is of the first trace, the rest of
the second. Keys differ too: each trace draws its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import jax

from ... import equations, jax_private
from ..linen_keys import draw_p
from ..types import Tree

if TYPE_CHECKING:
    import jax.extend.core as jex

_choice_p = jax_private.choice("liftax_choice")
_chosen_p = jax_private.identity("liftax_chosen")


def choice(first: Tree, again: Tree, collections: Iterable[str]) -> Any:
    """Returns what a loop outside takes from its first trace, and from its second.

    Args:
      first, again: of one structure.
      collections: which are made in the first and are there in the second.
    """
    names = tuple(sorted(set(collections)))

    def choose(first: object, again: object) -> object:
        # A choice has one type: where the traces differ in it, nobody can take the first.
        if jax.typeof(first) != jax.typeof(again):
            return again
        return _choice_p.bind(first, again, collections=names)

    return jax.tree.map(choose, first, again)


def chosen(jaxpr: jex.Jaxpr, choose: Callable[[tuple[str, ...]], int | None]) -> jex.Jaxpr:
    """Returns the program with its choices made.

    Args:
      jaxpr: the program.
      choose: of the collections of a choice: the first (0), the second (1), or left (None).
    """

    def made(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
        which = choose(eqn.params["collections"])
        if which is None:
            return eqn
        return eqn.replace(primitive=_chosen_p, invars=[eqn.invars[which]], params={})

    return _changed(jaxpr, lambda eqn: eqn.primitive is _choice_p, made)


def of_first_trace(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """Returns the program with the keys that Linen's first trace of it draws."""
    return _changed(
        jaxpr, _draws_again, lambda eqn: eqn.replace(params={"draw": eqn.params["draw"].first})
    )


def draws_again(jaxpr: jex.Jaxpr) -> bool:
    """Tells whether a part of the program draws keys for which a second trace has others."""
    return any(map(_draws_again, equations.all_of(jaxpr)))


def _draws_again(eqn: jex.JaxprEqn) -> bool:
    return eqn.primitive is draw_p and eqn.params["draw"].first is not None


def _changed(
    jaxpr: jex.Jaxpr,
    wanted: Callable[[jex.JaxprEqn], bool],
    change: Callable[[jex.JaxprEqn], jex.JaxprEqn],
) -> jex.Jaxpr:
    """Returns a program with some equations changed, in it and in all that it calls."""

    def visit(eqn: jex.JaxprEqn) -> jex.JaxprEqn:
        if wanted(eqn):
            return change(eqn)
        # JAX knows a program by the object: one in which nothing changes must stay the same.
        if not any(any(map(wanted, equations.all_of(p.jaxpr))) for p in equations.programs_of(eqn)):
            return eqn
        return equations.with_programs(eqn, lambda inner: _changed(inner, wanted, change))

    eqns = list(map(visit, jaxpr.eqns))
    if all(new is old for new, old in zip(eqns, jaxpr.eqns, strict=True)):
        return jaxpr
    return jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=jaxpr.outvars, eqns=eqns)
