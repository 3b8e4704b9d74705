"""What one forward pass costs, from the analysis of the compiled program.

XLA counts the body of a loop once, however often it runs. For a program with scans in it that is
off by the number of layers, so the body of each scan is analysed by itself too, and

    cost(program) = XLA(program) + sum over scans of (length * cost(body) - unroll * XLA(body)).

A `while_loop` has no known length: its body counts once. Memory needs no correction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex

from .. import equations
from ..core.trees import abstract
from .data import Cost


class _Work(NamedTuple):
    flops: float
    bytes: float

    def plus(self, other: _Work, times: float) -> _Work:
        return _Work(self.flops + times * other.flops, self.bytes + times * other.bytes)


def forward_cost(fn: Callable[..., Any], *args: Any) -> Cost:
    """Compiles `fn` for abstract arguments and reads what the compiler says of it."""
    closed = jax.make_jaxpr(fn)(*args)
    compiled = _compile(closed)
    once = _analysis(compiled)
    memory = compiled.memory_analysis()
    work = None if once is None else _with_loops(closed, once)
    return Cost(
        backend=jax.default_backend(),
        flops=None if work is None else work.flops,
        bytes_accessed=None if work is None else work.bytes,
        peak_temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
        argument_bytes=getattr(memory, "argument_size_in_bytes", None),
        output_bytes=getattr(memory, "output_size_in_bytes", None),
    )


def _compile(closed: jex.ClosedJaxpr) -> Any:
    return jax.jit(jex.jaxpr_as_fun(closed)).lower(*map(abstract, closed.in_avals)).compile()


def _analysis(compiled: Any) -> _Work | None:
    found = compiled.cost_analysis()
    if isinstance(found, (list, tuple)):
        found = found[0] if found else None
    if not found or "flops" not in found:
        return None
    return _Work(max(found["flops"], 0.0), max(found.get("bytes accessed", 0.0), 0.0))


def _with_loops(closed: jex.ClosedJaxpr, once: _Work) -> _Work:
    total = once
    for scan in _scans(closed):
        body_once = _analysis(_compile(scan.body))
        if body_once is not None:
            whole = _with_loops(scan.body, body_once)
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
