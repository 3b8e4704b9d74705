"""What the compiler is given and what it makes of it: operations, FLOPs and bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import jax

from benchmarks.checks import Ready, columns, prepare
from benchmarks.peers.common import gradient
from benchmarks.table import Table
from benchmarks.timing import Settings
from benchmarks.trace_time import STACKS

FIGURES = ("equations", "StableHLO operations", "optimised operations", "FLOPs", "bytes")

# One instruction of an HLO module: `%name = shape opcode(operands)`, `ROOT` in front of the last.
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = [^=]*? ([a-z][\w\-]*)\(", re.MULTILINE)
_NOT_WORK = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}


def run(settings: Settings) -> list[Table]:
    """The 12-layer transformer stack, forward and gradient."""
    tables = []
    for grad in (False, True):
        what = "gradient" if grad else "forward"
        table = Table(
            f"programs-{what}",
            f"size of the {what} program, 12-layer transformer",
            columns(settings),
        )
        for name, config in STACKS.items():
            measured = {
                peer: figures(ready, grad=grad)
                for peer, ready in prepare(config, settings, table).items()
            }
            for figure in FIGURES:
                row = f"{name}, {figure}"
                counts = {peer: found[figure] for peer, found in measured.items()}
                table.put_counts(row, {peer: n for peer, n in counts.items() if n is not None})
                if figure != "equations":
                    table.targets[row] = "<= 1.00x"
        tables.append(table)
    return tables


def figures(ready: Ready, *, grad: bool) -> dict[str, float | None]:
    function = gradient(ready.model) if grad else ready.model.forward
    traced = jax.jit(lambda v, x: function(v, x)).trace(ready.variables, ready.x)
    lowered = traced.lower()
    compiled = lowered.compile()
    cost = compiled.cost_analysis() or {}
    if isinstance(cost, list):
        cost = cost[0]
    return {
        "equations": sum(1 for _ in equations(traced.jaxpr)),
        "StableHLO operations": stablehlo_operations(lowered),
        "optimised operations": optimised_operations(compiled.as_text() or ""),
        "FLOPs": cost.get("flops"),
        "bytes": cost.get("bytes accessed"),
    }


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a jaxpr and of the jaxprs inside them; a closed one is opened."""
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        yield equation
        for value in equation.params.values():
            for part in value if isinstance(value, (tuple, list)) else (value,):
                if hasattr(part, "eqns") or hasattr(part, "jaxpr"):
                    yield from equations(part)


def stablehlo_operations(lowered: Any) -> int:
    """Operations of the StableHLO dialect in the lowered module, regions and functions included;
    returns are not counted."""
    return count_operations(
        lowered.compiler_ir("stablehlo").operation,
        lambda name: name.startswith("stablehlo.") and name != "stablehlo.return",
    )


def count_operations(operation: Any, counts: Callable[[str], bool]) -> int:
    total = int(counts(operation.name))
    for region in operation.regions:
        for block in region:
            for inner in block:
                total += count_operations(inner.operation, counts)
    return total


def optimised_operations(text: str) -> int:
    """Instructions of the optimised HLO that do something, those inside fusions included."""
    return sum(1 for match in _INSTRUCTION.finditer(text) if match.group(1) not in _NOT_WORK)
