"""What one forward pass costs, from the analysis of the compiled program; loops are counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax

from ..core.types import Function, Tree
from ..module.work import counted, lowered, with_loops
from .data import Cost

if TYPE_CHECKING:
    import jax.extend.core as jex


def forward_cost(fn: Function, *args: Tree) -> Cost:
    """Compiles ``fn`` for abstract arguments and reads what the compiler says of it."""
    # Traced once for both: the whole program, and each loop's body by itself, which the compiler's
    # count takes for one iteration.
    closed = jax.make_jaxpr(fn)(*args)
    return cost_of(closed, lowered(closed).compile())


def cost_of(closed: jex.ClosedJaxpr, compiled: jax.stages.Compiled) -> Cost:
    """What the compiler says of a program, with loops counted as often as they run."""
    once = counted(compiled.cost_analysis())
    memory = compiled.memory_analysis()
    work = None
    if once is not None:
        work = with_loops(
            closed, once, lambda body: counted(lowered(body).compile().cost_analysis())
        )
    return Cost(
        backend=jax.default_backend(),
        flops=None if work is None else work.flops,
        bytes_accessed=None if work is None else work.bytes,
        # A backend may say nothing, or not all of it.
        peak_temporary_bytes=getattr(memory, "temp_size_in_bytes", None),
        argument_bytes=getattr(memory, "argument_size_in_bytes", None),
        output_bytes=getattr(memory, "output_size_in_bytes", None),
    )
