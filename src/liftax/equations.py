"""Reading the equations of a traced program: the one place that knows what JAX calls things.

Vocabulary
  program   a jaxpr with its constants; what an equation calls, a loop's body too
  hijax     primitives that share one name and are told apart by an object in the
            equation: JAX moves ``scan``, ``checkpoint`` and ``checkpoint_name`` there

Releases differ in how they write a loop down: up to 0.10 its equation counts constants
and carries, from 0.11 it holds the inputs' tree, and a program is one object with its
constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from . import jax_private

if TYPE_CHECKING:
    import jax.extend.core as jex

_LOOPS = frozenset({"scan", "Scan3", "while", "cond"})
NAMING = frozenset({"name", "CheckpointName", "CheckpointNameFwd"})
"""What `jax.ad_checkpoint.checkpoint_name` is called."""


class Scan(NamedTuple):
    """What the equation of a `jax.lax.scan` says.

    Attributes:
      body: one iteration, a program of the shared inputs, the carry and a slice.
      length: the number of iterations.
      unroll: how many are written out in one turn of the compiled loop.
      shared: how many of its inputs are the same in each iteration; they come first.
      carried: how many are the carry; they come next.
    """

    body: jex.ClosedJaxpr
    length: int
    unroll: int
    shared: int
    carried: int


def name_of(eqn: Any) -> str:
    """Returns the name of what an equation does."""
    prim = eqn.params.get("_prim")
    return eqn.primitive.name if prim is None else type(prim).__name__


def params_of(eqn: Any) -> Mapping[str, Any]:
    """Returns the parameters of what an equation does."""
    prim = eqn.params.get("_prim")
    return eqn.params if prim is None else getattr(prim, "params", {})


def is_loop(eqn: Any) -> bool:
    """Tells whether an equation runs programs as often, or as far, as values say."""
    return name_of(eqn) in _LOOPS


def as_scan(eqn: Any) -> Scan | None:
    """Returns what a scan's equation says; None for another one.

    A scan whose carry lies in references counts as another: it has no body of values.
    """
    if eqn.primitive.name != "scan":
        return None
    params = eqn.params
    if "ft_in" in params:
        shared, carried, _ = map(len, params["ft_in"].unpack())
    else:
        shared, carried = params["num_consts"], params["num_carry"]
    length = params["length"]
    unroll = min(int(params["unroll"]) or length, length)
    return Scan(params["jaxpr"], length, unroll, shared, carried)


def programs_of(eqn: Any) -> Iterator[jex.ClosedJaxpr]:
    """Yields the programs that an equation calls."""
    for value in params_of(eqn).values():
        for part in value if isinstance(value, (list, tuple)) else (value,):
            program = jax_private.as_program(part)
            if program is not None:
                yield program


def given_name(eqn: Any) -> str | None:
    """Returns the name that `jax.ad_checkpoint.checkpoint_name` gives here, if it does."""
    return params_of(eqn)["name"] if name_of(eqn) in NAMING else None
