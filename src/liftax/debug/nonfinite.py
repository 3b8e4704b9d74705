"""The operation that made a value infinite or NaN first.

How it is found
---------------
The program is gone through level by level. On a level each value gets a grade: finite, infinite or
NaN. From the outputs that are bad one walks back along bad values to the steps that made them of
good ones; the first of those is the origin. If it is a loop, one compiled run of it returns the
grades of all values of all iterations, a byte each, and the same walk through the iterations says
which one it was. Only that iteration is then computed step by step.

NaN comes before infinity: masks and running maxima are infinite by intent, and a walk along NaN
alone passes them by. Where the step that made NaN was given infinity, a second walk looks for what
made that.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from .. import equations, jax_private
from ..core.types import Function
from ..pytrees import is_inexact
from ..words import array_text
from .steps import Leaves, Place, Step, Steps, is_number, traced

if TYPE_CHECKING:
    import jax.extend.core as jex

    Grades = np.ndarray[Any, np.dtype[np.int8]]
    """The grade of each value of a level, by its number."""

FINITE, INFINITE, NAN = 0, 1, 2
_SHOWN = 2  # inputs of an operation in the text
_WORDS = {INFINITE: "infinite", NAN: "NaN"}


@dataclass(frozen=True)
class Range:
    """What the numbers of an array are like.

    Attributes:
      array: dtype and shape.
      low, high: the least and the greatest of those that are finite, None where there are none.
      infinite, nan: how many are infinite, and how many are NaN.
      size: how many there are.
    """

    array: str
    low: float | None
    high: float | None
    infinite: int
    nan: int
    size: int

    def __str__(self) -> str:
        parts = [] if self.low is None else [f"{self.low:.6g} to {self.high:.6g}"]
        for count, word in ((self.infinite, "infinite"), (self.nan, "NaN")):
            if count:
                parts.append(f"{count} of {self.size} {word}")
        return f"{self.array}: {', '.join(parts)}" if parts else self.array


@dataclass(frozen=True)
class NonFinite:
    """What made a value infinite or NaN first; as text, the lines that a person reads.

    Attributes:
      kind: ``"infinite"`` or ``"NaN"``.
      operation: what computed it, in JAX's word; None where it was given in an argument.
      argument: the argument that it was given in, None where an operation made it.
      line: ``file:line`` of the user's call that the operation belongs to.
      module: the path of the module, and of `jax.named_scope`, with the class of the outermost
        module first.
      loops: for each loop around it, outermost first, the iteration, from 0, and how many there
        are; along the axis of the layers, so that forward and backward count alike.
      backward: whether the operation belongs to the backward pass.
      inputs: what the operation was given, or the argument.
      output: what came out.
      became_nan: where infinity was made first, the operation that made NaN of it.

    Example:
      >>> import jax.numpy as jnp, liftax as nn
      >>> found = nn.find_nonfinite(lambda x: jnp.log(x) * x, jnp.zeros(3))
      >>> found.kind, found.operation, found.became_nan.operation
      ('infinite', 'log', 'mul')
    """

    kind: str
    operation: str | None = None
    argument: str | None = None
    line: str | None = None
    module: str = ""
    loops: tuple[tuple[int, int], ...] = ()
    backward: bool = False
    inputs: tuple[Range, ...] = ()
    output: Range | None = None
    became_nan: NonFinite | None = None

    def __str__(self) -> str:
        if self.operation is None:
            return f"{self.kind} in the argument {self.argument}\n  {self.inputs[0]}"
        # A layer can have dozens of inputs: the first ones are what it computes with.
        more = len(self.inputs) - _SHOWN
        turns = [f"iteration {i} of {count}" for i, count in self.loops]
        where = ", ".join([f"module {self.module}"] * bool(self.module) + turns)
        lines = [
            f"{self.kind} first made by {self.operation}, "
            f"{'backward' if self.backward else 'forward'} pass",
            *([f"  {where}"] if where else []),
            *([f"  {self.line}"] if self.line else []),
            *(f"  input  {found}" for found in self.inputs[:_SHOWN]),
            *([f"  and {more} inputs more"] if more > 0 else []),
            f"  output {self.output}",
        ]
        if self.became_nan is not None:
            lines.append(f"then {self.became_nan}")
        return "\n".join(lines)


def find_nonfinite(fn: Function, /, *args: object, **kwargs: object) -> NonFinite | None:
    """Finds the operation that first made infinity or NaN of finite numbers.

    ``fn`` is run for that, in parts and with more outputs, so that rounding may differ from its
    own program. It looks through `jax.jit`, `jax.grad`, scans, while loops, branches,
    checkpoints and custom derivatives, in any nesting. Values that no bad output depends on do
    not count, such as an infinite score that a softmax turns into zero; infinite constants are
    taken for meant, and what computes with them for the origin.

    Args:
      fn: any function of arrays: a loss, a training step, a model's ``apply``. Prints and
        callbacks in it are left out.
      *args: its arguments; what is no array among them is static.
      **kwargs: the same.

    Returns:
      a `NonFinite` that names operation, line, module, layer and direction, or None where all
      outputs are finite.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         scale = self.param("scale", nn.initializers.ones, (4,))
      ...         return x / scale
      >>> stack = nn.Stack(Block(), depth=8)
      >>> x = jnp.ones((2, 4))
      >>> variables = stack.init(jax.random.key(0), x)
      >>> scale = variables["params"]["block_0"]["scale"].at[5, 2].set(0.0)
      >>> bad = {"params": {"block_0": {"scale": scale}}}
      >>> found = nn.find_nonfinite(stack.apply, bad, x)
      >>> found.operation, found.module, found.loops, found.backward
      ('div', 'Stack/block_0', ((5, 8),), False)
      >>> found.inputs[1].low, found.output.infinite
      (0.0, 2)
    """
    program = traced(fn, args, kwargs)
    return origin(program.program, program.arrays, program.names)


def origin(
    program: jex.ClosedJaxpr, arrays: Sequence[jax.Array], names: Sequence[str]
) -> NonFinite | None:
    """Finds the operation that first made infinity or NaN in a program.

    Args:
      program: the program.
      arrays: its inputs.
      names: what each input is called.
    """
    # Grades stay on the device until all are there: to fetch each would wait for each.
    level = Steps(program)
    found: dict[int, ArrayLike] = {}

    def note(number: int, value: jax.Array) -> None:
        found[number] = _grade(value)

    level.run(arrays, note)
    grades = _gathered(found, level.count)
    outputs = [n for n in level.outputs if is_number(n)]
    worst = max((int(grades[n]) for n in outputs), default=FINITE)
    if worst == FINITE:
        return None

    def search(limit: int) -> NonFinite | None:
        wanted = {n for n in outputs if grades[n] >= limit}
        return _locate(level, arrays, grades, wanted, limit, Place())

    first = search(worst)
    # Infinity that NaN was made of is the fault, and not what came of it.
    if worst == NAN and (first is None or any(r.infinite for r in first.inputs)):
        before = search(INFINITE)
        if before is not None and before != first:
            return before if first is None else _with_nan(before, first)
    if first is not None:
        return first
    # No step made it, so it was given.
    at, name, array = next(
        (n, name, array)
        for n, name, array in zip(level.inputs, names, arrays, strict=True)
        if grades[n] >= worst
    )
    return NonFinite(_WORDS[int(grades[at])], argument=name, inputs=(_range(array),))


def _with_nan(before: NonFinite, first: NonFinite) -> NonFinite:
    return NonFinite(**{**vars(before), "became_nan": first})


# --- grades -------------------------------------------------------------------


def _graded(value: jax.Array) -> jax.Array:
    if not is_inexact(value):
        return jnp.int8(FINITE)
    nan, infinite = jnp.isnan(value).any(), jnp.isinf(value).any()
    return jnp.where(nan, NAN, jnp.where(infinite, INFINITE, FINITE)).astype(jnp.int8)


_compiled_grade = jax.jit(_graded)


def _grade(value: jax.Array) -> ArrayLike:
    """Grades a value; what has no infinity is not sent to a device for that."""
    dtype = getattr(value, "dtype", None)
    if dtype is None or not jnp.issubdtype(dtype, jnp.inexact):
        return FINITE
    return _compiled_grade(value)


def _gathered(found: dict[int, ArrayLike], count: int) -> Grades:
    grades = np.zeros(count, np.int8)
    for number, grade in jax.device_get(found).items():
        grades[number] = grade
    return grades


def _walk(
    level: Steps, grades: Grades, wanted: set[int], limit: int
) -> tuple[int | None, set[int]]:
    """Goes back from bad values along bad values.

    Returns:
      the first step that made a bad value of good ones, None if there is none; and the inputs
      that are bad and lead to what is wanted.
    """
    reached, first, meant = set(wanted), None, _meant(level, grades, limit)
    # Backwards, and only along what is wanted: bad values that nothing uses are no fault.
    for n in reversed(range(len(level.steps))):
        step = level.steps[n]
        if reached.isdisjoint(step.outputs):
            continue
        bad = {i for i in step.inputs if is_number(i) and i not in meant and grades[i] >= limit}
        reached |= bad
        if not bad:
            first = n
    return first, reached.intersection(level.inputs)


def _meant(level: Steps, grades: Grades, limit: int) -> set[int]:
    """Returns the values that the program has in itself, or makes of such bad ones alone."""
    # An infinity that is written in the program, as of a mask, was written on purpose, and so is
    # what is computed of nothing else.
    meant = set(level.constants)
    for step in level.steps:
        if meant.issuperset(filter(is_number, step.inputs)):
            inputs = (
                grades[i] if isinstance(i, int) else _of_literal(i.value) for i in step.inputs
            )
            if any(grade >= limit for grade in inputs):
                meant.update(step.outputs)
    return meant


def _of_literal(value: ArrayLike) -> int:
    number = np.asarray(value)
    if number.dtype.kind not in "fc" or np.isfinite(number).all():
        return FINITE
    return NAN if np.isnan(number).any() else INFINITE


# --- level by level -----------------------------------------------------------


def _locate(
    level: Steps,
    given: Sequence[jax.Array],
    grades: Grades,
    wanted: set[int],
    limit: int,
    place: Place,
) -> NonFinite | None:
    """Finds the origin of bad values on a level, and inside of the step that it is."""
    number, _ = _walk(level, grades, wanted, limit)
    if number is None:
        return None
    step = level.steps[number]
    here = place.at(step)
    # Run a second time for these few values: to keep all of the first run would hold every
    # activation of the model at once.
    numbers = [i for i in step.inputs if is_number(i)]
    values = dict(zip(numbers, level.run(given, _unseen, numbers), strict=True))
    inputs = [values[i] if isinstance(i, int) else i.value for i in step.inputs]
    bad = [k for k, n in enumerate(step.outputs) if grades[n] >= limit]
    return _inside(step.eqn, inputs, bad, limit, here) or _report(step, inputs, bad, limit, here)


def _unseen(number: int, value: jax.Array) -> None:
    pass


def _inside(
    eqn: jex.JaxprEqn, inputs: Leaves, bad: list[int], limit: int, place: Place
) -> NonFinite | None:
    """Finds the origin inside of a loop or branch; None where the equation is neither."""
    scan = equations.as_scan(eqn)
    if scan is not None:
        shared, rest = inputs[: scan.shared], inputs[scan.shared :]
        carry, slices = rest[: scan.carried], rest[scan.carried :]
        # A scan in reverse is the backward pass of one, in which layer 5 is still layer 5.
        order = range(scan.length)
        loop = _Loop(Steps(scan.body), shared, carry, slices, order[:: -1 if scan.reverse else 1])
        return loop.locate(bad, limit, place)
    turns = equations.as_while(eqn)
    if turns is not None:
        tested, rest = inputs[: turns.tested], inputs[turns.tested :]
        shared, carry = rest[: turns.shared], rest[turns.shared :]
        count = _turns(Steps(turns.condition), Steps(turns.body), tested, shared, carry)
        return _Loop(Steps(turns.body), shared, carry, [], range(count)).locate(bad, limit, place)
    branches = equations.branches_of(eqn)
    if branches:
        chosen = Steps(branches[min(max(int(inputs[0]), 0), len(branches) - 1)])
        found: dict[int, ArrayLike] = {}
        chosen.run(inputs[1:], lambda number, value: found.update({number: _grade(value)}))
        grades = _gathered(found, chosen.count)
        wanted = _numbers(chosen, bad)
        return _locate(chosen, inputs[1:], grades, wanted, limit, place)
    return None


def _numbers(level: Steps, outputs: Iterable[int]) -> set[int]:
    return {n for n in (level.outputs[k] for k in outputs) if is_number(n)}


def _turns(condition: Steps, body: Steps, tested: Leaves, shared: Leaves, carry: Leaves) -> int:
    """Counts the iterations of a while loop."""

    # Compiled, since a while loop may run for very long, and only its length is wanted.
    @jax.jit
    def count(tested: Leaves, shared: Leaves, carry: Leaves) -> ArrayLike:
        def goes_on(state: tuple[Any, Leaves]) -> jax.Array:
            return condition.run([*tested, *state[1]], _unseen)[0]

        def turn(state: tuple[Any, Leaves]) -> tuple[Any, Leaves]:
            return state[0] + 1, body.run([*shared, *state[1]], _unseen)

        start: tuple[Any, Leaves] = 0, carry
        return jax.lax.while_loop(goes_on, turn, start)[0]

    return int(count(tested, shared, carry))


@dataclass(frozen=True)
class _Loop:
    """A loop of known length, and all that goes into it.

    Attributes:
      body: one iteration.
      shared, carry, slices: its inputs by kind.
      order: the numbers of the iterations in the order in which they run.
    """

    body: Steps
    shared: Leaves
    carry: Leaves
    slices: Leaves
    order: range

    def locate(self, bad: list[int], limit: int, place: Place) -> NonFinite | None:
        """Finds the origin of those outputs of the loop that are bad."""
        table = np.asarray(self._grades())
        found = self._first(table, bad, limit)
        if found is None:
            return None
        turn, wanted = found
        # Computed again rather than kept: the carries of all iterations would be as much memory as
        # the backward pass of the model takes.
        carry = self._carry_at(turn)
        index = self.order[turn]
        given = [*self.shared, *carry, *(x[index] for x in self.slices)]
        inside = place.turn(index, len(self.order))
        return _locate(self.body, given, table[turn], wanted, limit, inside)

    def _first(self, table: Grades, bad: list[int], limit: int) -> tuple[int, set[int]] | None:
        """Goes back through the iterations to the first that made a bad value of good ones."""
        carried, body = len(self.carry), self.body
        wanted = {k for k in bad if k < carried}
        stacked = [k for k in bad if k >= carried]
        first = self.body.inputs[len(self.shared) : len(self.shared) + carried]
        place = {number: k for k, number in enumerate(first)}
        found = None
        for turn in reversed(range(len(table))):
            grades = table[turn]
            reached = _numbers(body, [*wanted, *stacked])
            reached = {n for n in reached if grades[n] >= limit}
            # Good again: what was bad in later iterations began later.
            if not reached:
                wanted = set()
                continue
            step, inputs = _walk(body, grades, reached, limit)
            if step is not None:
                found = turn, reached
            wanted = {place[n] for n in inputs if n in place}
        return found

    def _grades(self) -> jax.Array:
        """Returns the grades of all values of all iterations, in the order in which they run."""
        body, carried = self.body, len(self.carry)

        @jax.jit
        def run(shared: Leaves, carry: Leaves, slices: Leaves) -> jax.Array:
            def turn(carry: Leaves, slices: Leaves) -> tuple[Leaves, jax.Array]:
                # A byte for each value of each iteration is all that leaves the loop.
                grades = [jnp.int8(FINITE)] * body.count

                def note(number: int, value: jax.Array) -> None:
                    grades[number] = _graded(value)

                outputs = body.run([*shared, *carry, *slices], note)
                return outputs[:carried], jnp.stack(grades)

            length, reverse = len(self.order), self.order.step < 0
            return jax.lax.scan(turn, carry, slices, length=length, reverse=reverse)[1]

        table = run(self.shared, self.carry, self.slices)
        return table[:: self.order.step]

    def _carry_at(self, turn: int) -> Leaves:
        """Returns what goes into an iteration from the one before."""
        body, order, carried = self.body, self.order, len(self.carry)

        @jax.jit
        def run(shared: Leaves, carry: Leaves, slices: Leaves, turn: ArrayLike) -> Leaves:
            # The body as often as it takes to get there; the number is an argument, so one program
            # serves for every iteration.
            def one(n: jax.Array, carry: Leaves) -> Leaves:
                at = order.start + n * order.step
                now = [jax.lax.dynamic_index_in_dim(x, at, keepdims=False) for x in slices]
                return body.run([*shared, *carry, *now], _unseen)[:carried]

            return jax.lax.fori_loop(0, turn, one, carry)

        return list(run(self.shared, self.carry, self.slices, turn))


# --- what is said -------------------------------------------------------------


def _report(step: Step, inputs: Leaves, bad: list[int], limit: int, place: Place) -> NonFinite:
    output = jax_private.run_equation(step.eqn, inputs)[bad[0]]
    return NonFinite(
        kind=_WORDS[limit],
        operation=equations.name_of(step.eqn),
        line=place.line,
        module=place.module,
        loops=place.loops,
        backward=place.backward,
        inputs=tuple(map(_range, inputs)),
        output=_range(output),
    )


def _range(value: Any) -> Range:
    array = jnp.asarray(value)
    text, size = array_text(array) or "", array.size
    if not jnp.issubdtype(array.dtype, jnp.number):  # keys and bools
        return Range(text, None, None, 0, 0, size)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        array = jnp.abs(array)
    # NumPy compares neither bfloat16 nor what is smaller with what it finds itself.
    numbers = np.asarray(array).astype(np.float64)
    finite = numbers[np.isfinite(numbers)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (None, None)
    infinite, nan = int(np.isinf(numbers).sum()), int(np.isnan(numbers).sum())
    return Range(text, low, high, infinite, nan, size)
