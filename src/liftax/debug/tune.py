"""Which way to run a model's stacks takes the least time, within a memory budget."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax

from ..errors import StackError
from ..layout.columns import Column, Segment, table, text_of
from ..layout.wording import human_bytes, human_seconds
from ..module import Module
from ..module.attach import own_methods
from ..module.fields import remake
from ..module.shapes import init_shapes
from ..module.work import lowered
from ..pytrees import is_array, split
from ..stack.declaration import Declaration
from ..stack.options import Options, Remat, override_stacks
from .cut import calls_in
from .measure import Clock, Meter, made_up, with_gradient

M = TypeVar("M", bound=Module)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run the stacks of a model.

    Attributes:
      options: the way, as for `override_stacks`.
      compile: the seconds that compiling a step took.
      step: the seconds of a step; None where it was not run, being over the budget.
      peak: the bytes that a step holds: arguments, outputs and what it makes on the way.
      refused: why the model cannot run so; empty where it can.
    """

    options: Options
    compile: float | None = None
    step: float | None = None
    peak: int | None = None
    refused: str = ""


@dataclasses.dataclass(frozen=True)
class Tuned:
    """What `tune_stack` tried; as text a table.

    Attributes:
      rows: in the order in which they were tried.
      best: the fastest that fits; of equal ones the smallest, then the first.
      memory: the budget in bytes, None for any.

    Example:
      >>> import jax, liftax as nn
      >>> stack, x = nn.Stack(nn.Dense(4), depth=3), jax.numpy.ones((2, 4))
      >>> shapes, tried = jax.eval_shape(stack.init, jax.random.key(0), x), []
      >>> best = nn.tune_stack(stack, shapes, x, runs=["loop"], remats=["off"], show=tried.append)
      >>> tried[0].best.options.run, tried[0].best.peak > 0
      ('loop', True)
    """

    rows: tuple[Candidate, ...]
    best: Candidate
    memory: int | None

    def __str__(self) -> str:
        return self.text()

    def text(self, width: int | None = None) -> str:
        """The table, in the width of the terminal or in another one, from 60 columns on."""
        width = width or max(60, shutil.get_terminal_size((100, 24)).columns)
        columns = (
            *(Column(name) for name in ("run", "unroll")),
            Column("remat", path=True),
            *(Column(name, right=True) for name in ("compile", "step", "peak")),
            Column("", below=True),
        )
        cells = [_cells(row, row is self.best) for row in self.rows]
        lines = table(columns, [[[Segment(cell)] for cell in row] for row in cells], width)
        return "\n".join(text_of(line).rstrip() for line in lines)


def _cells(row: Candidate, is_best: bool) -> list[str]:
    way, over = row.options, row.step is None and row.compile is not None
    return [
        str(way.run),
        "" if way.unroll is None else str(way.unroll),
        str(way.remat),
        "" if row.compile is None else human_seconds(row.compile),
        "" if row.step is None else human_seconds(row.step),
        "" if row.peak is None else human_bytes(row.peak),
        row.refused or ("best" if is_best else "over the budget" if over else ""),
    ]


Runs = Sequence[str]
Remats = Sequence[Remat | str]
_REMATS: Remats = ("auto", "off", Remat())


def tune_stack(
    model: M,
    variables: object,
    *args: object,
    runs: Runs = ("scan", "scan of sqrt", "loop"),
    unrolls: Sequence[int] = (1, 2),
    remats: Remats = _REMATS,
    memory: int | None = None,
    loss: Callable[..., jax.Array] | None = None,
    repeats: int = 3,
    clock: Clock = time.perf_counter,
    show: Callable[[Tuned], object] = print,
    **kwargs: object,
) -> M:
    """Finds the way to run a model's stacks that takes the least time, within a memory budget.

    Every way is compiled: a forward pass and the gradient by the parameters. What fits is run on
    made-up numbers of the model's shapes. No way changes variables, keys or, but for rounding,
    results, so the one that is returned takes the variables that there are.

    Args:
      model: a `Stack`, or a model with stacks in it, not bound; all its stacks run alike.
      variables: its variables, or shapes of them, a mapping by collection. May be left out where
        the first argument is no mapping: ``nn.tune_stack(model, batch)`` takes those of `init`.
      *args: arguments of the model, a batch of the size that is to be trained; shapes will do.
      runs: the candidates of ``run=``.
      unrolls: those of ``unroll=``, for scans.
      remats: those of ``remat=``: each a `Remat`, ``"auto"``, or ``"off"`` for none; without them
        both words and ``Remat()``.
      memory: the most bytes that a step may hold, arguments and outputs among them. What is over
        that is not run.
      loss: from what `Module.apply` returns to one number; the sum of the outputs, if not given.
      repeats: how often each step is run; the fastest counts.
      clock: where the seconds come from.
      show: gets the table.
      **kwargs: for `Module.apply`: ``rngs``, ``mutable``, ``method`` and the model's own.

    Returns:
      the model with the same fields and the best way to run. A stack has it as its ``run``,
      ``unroll`` and ``remat``; of another model, every method runs the stacks in it so.

    Raises:
      StackError: the model has no stack, or no candidate fits into ``memory``.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x + nn.Dense(4)(nn.relu(x))
      >>> stack = nn.Stack(Block(), depth=4)
      >>> x = jax.numpy.ones((2, 4))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> tried = []
      >>> best = nn.tune_stack(
      ...     stack, variables, x, runs=["scan", "loop"], remats=["off"], show=tried.append)
      >>> [(row.options.run, row.options.unroll) for row in tried[0].rows]
      [('scan', 1), ('scan', 2), ('loop', None)]
      >>> bool(jax.numpy.allclose(best.apply(variables, x), stack.apply(variables, x)))
      True
    """
    if not isinstance(variables, Mapping):
        args = (variables, *args)
        own = {name: value for name, value in kwargs.items() if name not in ("rngs", "mutable")}
        variables = init_shapes(model, jax.random.key(0), args, own)
    tree = (dict(variables), args, kwargs)
    arrays, rest = split(tree, is_array)
    by = [_is_parameter(path) for path, leaf in jax.tree.leaves_with_path(tree) if is_array(leaf)]

    def apply(arrays: list[jax.Array]) -> object:
        variables, args, kwargs = rest.filled(arrays)
        out = model.apply(variables, *args, **kwargs)
        return jax.tree.leaves(out) if loss is None else loss(out)

    stacks = [stack for call in calls_in(apply, arrays) for stack in call.stacks]
    if not stacks:
        raise StackError(
            f"tune_stack: {type(model).__name__} runs no Stack here.\n"
            f"found: no nn.Stack in this call; expected at least one whose run= can be chosen"
        )
    meter, rows = Meter(clock, repeats), []
    for options in _candidates(runs, unrolls, remats):
        try:
            rows.append(_tried(options, apply, arrays, by, meter, memory))
        except StackError as error:
            rows.append(Candidate(options, refused=str(error).splitlines()[0]))
    ran = [row for row in rows if row.step is not None]
    if not ran:
        raise _none_fits(rows, memory)
    # The whole order is in the key, so that one clock chooses one candidate.
    best = min(ran, key=lambda row: (row.step, row.peak or 0))
    show(Tuned(tuple(rows), best, memory))
    return _run_by(model, best.options, alone=len(stacks) == 1)


def _is_parameter(path: tuple[object, ...]) -> bool:
    """Whether a leaf of ``(variables, args, kwargs)`` is a parameter."""
    which, key = path[0], path[1] if len(path) > 1 else None
    return getattr(which, "idx", None) == 0 and getattr(key, "key", None) == "params"


def _candidates(runs: Runs, unrolls: Sequence[int], remats: Remats) -> Iterator[Options]:
    """The ways that differ: what is written out has no unroll, and nothing that is automatic."""
    known = set()
    for run, unroll, remat in itertools.product(runs, unrolls, remats):
        written_out = run.strip() == "loop"
        again = "off" if written_out and remat == "auto" else remat
        way = Options(run, None if written_out else unroll, again)
        if way not in known:
            known.add(way)
            yield way


def _tried(
    options: Options,
    apply: Callable[[list[jax.Array]], object],
    arrays: list[jax.Array],
    by: Sequence[bool],
    meter: Meter,
    memory: int | None,
) -> Candidate:
    """Compiles a step, and runs it if it fits."""
    with override_stacks(options.run, options.unroll, options.remat):
        # A function of its own: JAX would find what it traced of `apply` for other options.
        closed = jax.make_jaxpr(lambda arrays: apply(arrays))(arrays)
        step = with_gradient(closed, by) or closed
        # Tracing is left out: it is the same for all but what is written out.
        begin = meter.clock()
        compiled = lowered(step).compile()
        took = meter.clock() - begin
    sizes = compiled.memory_analysis()
    peak = None
    if sizes is not None:
        held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes
        peak = int(held + sizes.temp_size_in_bytes - sizes.alias_size_in_bytes)
    if memory is not None and peak is not None and peak > memory:
        return Candidate(options, took, None, peak)
    seconds = meter.timed(compiled, [made_up(aval) for aval in step.in_avals])
    return Candidate(options, took, seconds, peak)


def _none_fits(rows: Sequence[Candidate], memory: int | None) -> StackError:
    peaks = [row.peak for row in rows if row.peak is not None]
    if not peaks:
        return StackError(
            f"tune_stack: no candidate can be run; the first of {len(rows)} is refused:\n"
            + "".join(row.refused for row in rows[:1])
        )
    return StackError(
        f"tune_stack: none of {len(rows)} candidates fits.\n"
        f"found: the smallest holds {min(peaks):,} bytes\n"
        f"expected: at most memory={memory:,}; other remats=, or a smaller batch"
    )


# A class and its ways: models that are tuned or unpickled alike are equal, and jit finds them so.
_MADE: weakref.WeakValueDictionary[tuple[type, Options], type[Any]] = weakref.WeakValueDictionary()


def _run_by(model: M, options: Options, alone: bool) -> M:
    """The model with other options for its stacks."""
    if alone and isinstance(model, Declaration):
        remat = None if options.remat == "off" else options.remat
        return model.clone(run=options.run, unroll=options.unroll or 1, remat=remat)
    cls = type(model)
    made: type[M] = _MADE.get((cls, options)) or _class_under(cls, options)
    _MADE[cls, options] = made
    return _as_class(model, made)


def _class_under(cls: type[M], options: Options) -> type[M]:
    """The class with the options in force around its methods."""

    # Where a model makes its stacks is its own affair. Nothing else of the class changes, its name
    # and its fields included.
    def under(method: Callable[..., object]) -> Callable[..., object]:
        @functools.wraps(method)
        def run(self: object, *args: object, **kwargs: object) -> object:
            with override_stacks(options.run, options.unroll, options.remat):
                return method(self, *args, **kwargs)

        return run

    # By its name, pickle would find the class that this one is made of.
    def reduced(self: M) -> tuple[Callable[..., M], tuple[M, Options, bool]]:
        return _run_by, (_as_class(self, cls), options, False)

    members: dict[str, object] = {name: under(getattr(cls, name)) for name in own_methods(cls)}
    members.update(__doc__=cls.__doc__, __module__=cls.__module__, __qualname__=cls.__qualname__)
    meta: Callable[..., type[M]] = type(cls)
    return meta(cls.__name__, (cls,), {**members, "__reduce__": reduced}, _as_base=True)


def _as_class(model: M, cls: type[M]) -> M:
    """The model as one of another class with the same fields."""
    fields = {name: getattr(model, name) for name in model._clone_names}
    return remake(cls, {**fields, "parent": None})
