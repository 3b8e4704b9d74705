"""How much a program works, by XLA's own count, with loops counted as often as they run.

XLA counts the body of a loop once, however often it runs. For a program with scans in it that is
off by the number of layers, so the body of each scan is counted by itself too, and

    work(program) = XLA(program) + sum over scans of (length * work(body) - unroll * XLA(body)).

A `while_loop` has no known length: its body counts once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex

from .. import equations
from ..core.trees import abstract


class Work(NamedTuple):
    """Floating-point operations, and bytes that are read and written."""

    flops: float
    bytes: float

    def plus(self, other: Work, times: float) -> Work:
        """This work and ``times`` another."""
        return Work(self.flops + times * other.flops, self.bytes + times * other.bytes)


def lowered(closed: jex.ClosedJaxpr) -> Any:
    """The program, lowered for its own arguments."""
    return jax.jit(jex.jaxpr_as_fun(closed)).lower(*map(abstract, closed.in_avals))


def counted(analysis: Any) -> Work | None:
    """What XLA's `cost_analysis` says, None where it says nothing."""
    if isinstance(analysis, (list, tuple)):
        analysis = analysis[0] if analysis else None
    if analysis is None:
        return None
    # A count of nothing is left out of it; where one cannot be had it is negative.
    return Work(*(max(analysis.get(name, 0.0), 0.0) for name in ("flops", "bytes accessed")))


def estimated(closed: jex.ClosedJaxpr) -> Work | None:
    """The count before XLA optimises the program: it is not compiled."""
    return counted(lowered(closed).cost_analysis())


def with_loops(
    closed: jex.ClosedJaxpr, once: Work, count: Callable[[jex.ClosedJaxpr], Work | None]
) -> Work:
    """The work of a program, from XLA's count of it.

    Args:
      closed: the program.
      once: its count.
      count: counts a program, each body once.
    """
    total = once
    for scan in _scans(closed):
        body_once = count(scan.body)
        if body_once is not None:
            whole = with_loops(scan.body, body_once, count)
            total = total.plus(whole, scan.length).plus(body_once, -scan.unroll)
    return total


def _scans(program: jex.ClosedJaxpr) -> Iterator[equations.Scan]:
    """The scans of a program, outermost only, through calls but not into other loops."""
    for eqn in program.jaxpr.eqns:
        scan = equations.as_scan(eqn)
        if scan is not None:
            yield scan
        elif equations.name_of(eqn) == "cond" or not equations.is_loop(eqn):
            for called in equations.programs_of(eqn):
                yield from _scans(called)
