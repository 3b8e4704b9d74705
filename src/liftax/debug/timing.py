"""What each layer of a model costs, and what the loop around the layers adds."""

from __future__ import annotations

import dataclasses
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import jax

from ..layout.columns import Column, Line, Segment, table, text_of
from ..layout.wording import human_bytes, human_count, human_seconds
from ..module import Module
from ..pytrees import is_array, split
from ..stack.options import override_stacks
from .cut import Call, calls_in
from .measure import Clock, Meter, Pass, with_gradient


@dataclass(frozen=True)
class LayerTime:
    """A layer, or several that are equal, timed once.

    Attributes:
      module: the path of the first of them.
      kind: its class, and the method unless that is ``__call__``.
      times: how often such a layer runs in one pass through the model.
      forward: its forward pass.
      both: forward pass and gradient, by its variables and its inputs; None where there is none.
    """

    module: str
    kind: str
    times: int
    forward: Pass
    both: Pass | None


@dataclass(frozen=True)
class StackTime:
    """A stack as a whole, run in one way.

    Attributes:
      module: its path.
      run: how it runs.
      layers: how many layers it has.
      forward: its forward pass.
      both: forward pass and gradient, with what its ``remat`` computes again; None where there is
        no gradient.
      adds: the seconds that it takes over those of its layers, one by one, in each of the two
        passes; less than nothing where the compiler makes more of them together.
    """

    module: str
    run: str
    layers: int
    forward: Pass
    both: Pass | None
    adds: tuple[float | None, float | None]


@dataclass(frozen=True)
class LayerTimes:
    """What the layers of a model cost; as text two tables.

    Attributes:
      layers: those that differ, in the order in which they run.
      stacks: each stack, for each way to run it.

    Example:
      >>> import jax, liftax as nn
      >>> stack, x = nn.Stack(nn.Dense(4), depth=3), jax.numpy.ones((2, 4))
      >>> shapes = jax.eval_shape(stack.init, jax.random.key(0), x)
      >>> found = nn.time_layers(stack, shapes, x, runs=[], backward=False, repeats=0)
      >>> found.text(60).splitlines()[2].split()[:3]
      ['block_0', '×3', 'forward']
    """

    layers: tuple[LayerTime, ...]
    stacks: tuple[StackTime, ...]

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """The tables, in the width of the terminal or in another one, from 60 columns on."""
        width = width or max(60, shutil.get_terminal_size((100, 24)).columns)
        lines = _layers(self.layers, width)
        if self.stacks:
            lines += [[], *_stacks(self.stacks, width)]
        return "\n".join(text_of(line).rstrip() for line in lines)


def _layers(rows: Sequence[LayerTime], width: int) -> list[Line]:
    columns = (
        Column("layer", path=True),
        Column("pass"),
        *(Column(name, right=True) for name in ("time", "FLOPs", "bytes", "memory")),
    )
    cells = []
    for row in rows:
        times = f"  ×{row.times:,}" if row.times != 1 else ""
        cells.append([(row.module or "/") + times, "forward", *_passed(row.forward)])
        if row.both is None:
            continue
        cells.append([f"  {row.kind}", "gradient", *_passed(row.both)])
    return table(columns, [[[Segment(cell)] for cell in row] for row in cells], width)


def _passed(found: Pass) -> tuple[str, str, str, str]:
    cost = found.cost
    return (
        _said(human_seconds, found.seconds),
        _said(human_count, cost.flops),
        _said(human_bytes, cost.bytes_accessed),
        _said(human_bytes, cost.peak_temporary_bytes),
    )


def _stacks(rows: Sequence[StackTime], width: int) -> list[Line]:
    columns = (
        Column("stack", path=True),
        Column("pass"),
        *(Column(name, right=True) for name in ("time", "loop adds", "memory")),
    )
    cells = []
    for row in rows:
        # How it runs stands below its name, where a layer has its class: no column of its own.
        names = (f"{row.module or '/'}  ×{row.layers:,}", f"  {row.run}")
        for k, found in enumerate((row.forward, row.both)):
            if found is not None:
                time, _, _, memory = _passed(found)
                added = _said(human_seconds, row.adds[k])
                cells.append([names[k], ("forward", "gradient")[k], time, added, memory])
    return table(columns, [[[Segment(cell)] for cell in row] for row in cells], width)


def _said(words: Callable[[float], str], number: float | None) -> str:
    return "" if number is None else words(number)


def time_layers(
    model: Module,
    variables: Mapping[str, object],
    *args: object,
    runs: Sequence[str] = ("scan", "scan of sqrt", "loop"),
    backward: bool = True,
    repeats: int = 10,
    clock: Clock = time.perf_counter,
    **kwargs: object,
) -> LayerTimes:
    """What each layer of a model costs, and what the loop around the layers adds.

    The model is traced, and the program of each layer cut out of it: the layers of stacks, and the
    modules beside them; in a model without a stack, what stands directly in it. Layers whose
    programs are equal are compiled and timed once. Each stack is then compiled as a whole, in each
    way to run it. Numbers are made up; only shapes and dtypes are the model's. A layer within a map
    is timed for the whole of the map. Seconds have the launch of a program in them, which a stack
    has once and each layer alone: where they are tens of microseconds, look at FLOPs and bytes.

    Args:
      model: a model, not bound.
      variables: its variables; shapes will do.
      *args: arguments of the model; shapes will do.
      runs: the ways to run stacks, as their ``run=``. Of each all layers are compiled, which takes
        long where they are written out.
      backward: whether to take gradients too.
      repeats: how often each program runs; the fastest run counts. With 0 nothing runs, and no
        row has seconds.
      clock: where the seconds come from.
      **kwargs: for `Module.apply`: ``rngs``, ``mutable``, ``method`` and the model's own.

    Returns:
      `LayerTimes`; print them for tables.

    Raises:
      ValueError: no module of the model takes and gives an array.
      StackError: one of ``runs`` is no way to run a stack.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x + nn.Dense(4)(nn.relu(x))
      >>> stack = nn.Stack([Block(), nn.LayerNorm()], repeats=6)
      >>> x = jax.numpy.ones((2, 4))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> found = nn.time_layers(stack, variables, x, runs=["scan"], repeats=1)
      >>> [(layer.module, layer.kind, layer.times) for layer in found.layers]
      [('block_0', 'Block', 6), ('block_1', 'LayerNorm', 6)]
      >>> found.layers[0].forward.cost.flops > 2 * 2 * 4 * 4
      True
      >>> [(stack.run, stack.adds[0] is None) for stack in found.stacks]
      [('scan', False)]
    """
    arrays, rest = split((dict(variables), args, kwargs), is_array)

    def apply(arrays: list[jax.Array]) -> object:
        variables, args, kwargs = rest.filled(arrays)
        return jax.tree.leaves(model.apply(variables, *args, **kwargs))

    def traced(run: str, remat: str | None) -> list[Call]:
        with override_stacks(run=run, remat=remat):
            return calls_in(apply, arrays)

    meter = Meter(clock, repeats)
    # By their programs: a layer is told by what it computes, wherever it stands.
    timed: dict[str, LayerTime] = {}
    # Layer by layer: what `remat` of a stack computes again is what the stack adds.
    roots = traced("scan", "off")
    for part in (part for root in roots for part in root.parts):
        key = _text(part)
        if key in timed:
            timed[key] = dataclasses.replace(timed[key], times=timed[key].times + part.times)
            continue
        passes = _passes(part, meter, backward)
        timed[key] = LayerTime(part.path, part.kind, part.times, *passes)
    if not timed:
        raise ValueError(
            f"time_layers: found no module in {type(model).__name__} that takes and gives an array"
        )
    stacks = [stack for root in roots for stack in root.stacks]
    # What is compiled last is what takes longest.
    found: dict[str, list[Call]] = {
        run: [stack for root in traced(run, None) for stack in root.stacks] if stacks else []
        for run in runs
    }
    rows = []
    for n, stack in enumerate(stacks):
        alone = [(part.times / stack.times, timed[_text(part)]) for part in stack.parts]
        for run in runs:
            passes = _passes(found[run][n], meter, backward)
            adds = (
                _adds(passes[0], [(times, layer.forward) for times, layer in alone]),
                _adds(passes[1], [(times, layer.both) for times, layer in alone]),
            )
            rows.append(StackTime(stack.path, run, stack.layers or 0, *passes, adds))
    return LayerTimes(tuple(timed.values()), tuple(rows))


def _passes(call: Call, meter: Meter, backward: bool) -> tuple[Pass, Pass | None]:
    assert call.program is not None
    both = with_gradient(call.program) if backward else None
    return meter.measured(call.program), None if both is None else meter.measured(both)


def _adds(whole: Pass | None, layers: Sequence[tuple[float, Pass | None]]) -> float | None:
    """The seconds of a stack over those of its layers."""
    if whole is None or whole.seconds is None:
        return None
    alone = [(times, one.seconds) for times, one in layers if one is not None]
    return whole.seconds - sum(times * (seconds or 0.0) for times, seconds in alone)


def _text(call: Call) -> str:
    """A program in JAX's words: equal for equal ones, whatever objects their rules are."""
    assert call.program is not None
    return call.kind + re.sub(r"0x[0-9a-f]+", "", str(call.program))
