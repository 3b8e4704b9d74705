"""A traced program as one list of steps: calls are written out, loops and branches are not.

Vocabulary
  step    an equation that computes something, with numbers for the values that it takes and makes
  place   where a step stands: the calls, loops and iterations around it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import jax
from jax.typing import ArrayLike, DTypeLike

from .. import equations, jax_private
from ..core.events import is_users
from ..pytrees import is_array, split

if TYPE_CHECKING:
    import jax.extend.core as jex


class Literal(NamedTuple):
    """A value that stands in an equation itself."""

    value: Any
    dtype: DTypeLike


Leaves = list[jax.Array]

Atom = int | Literal
"""The number of a value, or the value."""


class Step(NamedTuple):
    """One equation.

    Attributes:
      eqn: the equation.
      inputs: the values that it takes.
      outputs: the values that it makes.
      calls: the equations of the calls that it stands in, outermost first.
    """

    eqn: jex.JaxprEqn
    inputs: tuple[Atom, ...]
    outputs: tuple[int, ...]
    calls: tuple[jex.JaxprEqn, ...]


def is_number(atom: Atom) -> TypeGuard[int]:
    """Tells whether an atom is the number of a value that is computed or given."""
    return isinstance(atom, int)


class Steps:
    """A program, written out.

    Attributes:
      steps: what it computes, in order.
      inputs: the numbers of what is given to it.
      outputs: what it returns.
      constants: number -> value of what it has in itself.
      count: how many numbers there are.
    """

    def __init__(self, program: jex.ClosedJaxpr) -> None:
        self.steps: list[Step] = []
        self.constants: dict[int, jax.Array] = {}
        self.count = 0
        # Numbers and not JAX's variables, which are the same objects wherever a program is called.
        self.inputs = tuple(self._new() for _ in program.jaxpr.invars)
        self.outputs = self._add(program, self.inputs, ())

    def _new(self) -> int:
        self.count += 1
        return self.count - 1

    def _add(
        self, program: jex.ClosedJaxpr, given: Sequence[Atom], calls: tuple[jex.JaxprEqn, ...]
    ) -> tuple[Atom, ...]:
        # One program may be called at two places, so its variables are numbered at each anew.
        number: dict[jex.Var, Atom] = dict(zip(program.jaxpr.invars, given, strict=True))
        for variable, value in zip(program.jaxpr.constvars, program.consts, strict=True):
            number[variable] = made = self._new()
            self.constants[made] = value

        def read(atom: Any) -> Atom:
            if jax_private.is_variable(atom):
                return number[atom]
            return Literal(atom.val, atom.aval.dtype)

        for eqn in program.jaxpr.eqns:
            inputs = tuple(map(read, eqn.invars))
            # A jit or a checkpoint has no meaning of its own for who looks at values: written out,
            # a walk along values never has to enter or leave it.
            called = equations.called_by(eqn)
            if called is not None:
                number.update(
                    zip(eqn.outvars, self._add(called, inputs, (*calls, eqn)), strict=True)
                )
                continue
            outputs = tuple(self._new() for _ in eqn.outvars)
            number.update(zip(eqn.outvars, outputs, strict=True))
            self.steps.append(Step(eqn, inputs, outputs, calls))
        return tuple(map(read, program.jaxpr.outvars))

    def run(
        self,
        given: Sequence[jax.Array],
        see: Callable[[int, jax.Array], object],
        needed: Sequence[Atom] | None = None,
    ) -> Leaves:
        """Computes step by step, so what is traced around it becomes part of that.

        Args:
          given: the values of the inputs.
          see: is told the number and the value of all that is given and made.
          needed: what to return, the outputs where nothing is said; what that does not need is
            not computed.

        Returns:
          the values of ``needed``.
        """
        # What is not asked for is not run at all: with `needed` this is also a cut of the program.
        wanted = self.outputs if needed is None else needed
        last: dict[int, int] = {}
        live = set(filter(is_number, wanted))
        chosen = []
        for n in reversed(range(len(self.steps))):
            step = self.steps[n]
            if needed is None or not live.isdisjoint(step.outputs):
                chosen.append(step)
                live.update(filter(is_number, step.inputs))
                for atom in filter(is_number, step.inputs):
                    last.setdefault(atom, n)
        values = {**self.constants, **dict(zip(self.inputs, given, strict=True))}
        for number, value in values.items():
            see(number, value)
        # The caller's own, which must outlive their last use.
        kept = set(filter(is_number, wanted))

        def read(atom: Atom) -> ArrayLike:
            return values[atom] if isinstance(atom, int) else atom.value

        ends: dict[int, list[int]] = {}
        for number, n in last.items():
            ends.setdefault(n, []).append(number)
        position = {id(step): n for n, step in enumerate(self.steps)}
        for step in reversed(chosen):
            found = jax_private.run_equation(step.eqn, list(map(read, step.inputs)))
            for number, value in zip(step.outputs, found, strict=True):
                values[number] = value
                see(number, value)
            # A level holds the activations of a whole model: those that were used up go.
            for number in ends.get(position[id(step)], ()):
                if number not in kept:
                    del values[number]
        return [
            values[a] if isinstance(a, int) else jax.numpy.asarray(a.value, a.dtype) for a in wanted
        ]


@dataclass(frozen=True)
class Place:
    """Where a step stands.

    Attributes:
      eqns: the equations around it and it itself, outermost first.
      loops: iteration and number of iterations of each loop around it, outermost first.
    """

    eqns: tuple[jex.JaxprEqn, ...] = ()
    loops: tuple[tuple[int, int], ...] = ()

    def at(self, step: Step) -> Place:
        """Returns the place of a step of the program that this place is around."""
        return Place((*self.eqns, *step.calls, step.eqn), self.loops)

    def turn(self, iteration: int, count: int) -> Place:
        """Returns the place inside one iteration of the loop that stands here."""
        return Place(self.eqns, (*self.loops, (iteration, count)))

    @property
    def module(self) -> str:
        """The names of the scopes around it, as modules and `jax.named_scope` give them."""
        names = (name for eqn in self.eqns for name in equations.place_of(eqn).split("/"))
        return "/".join(name for name in names if name and name != equations.REMADE)

    @property
    def backward(self) -> bool:
        """Whether it belongs to a derivative in reverse."""
        return any(map(equations.is_backward, self.eqns))

    @property
    def line(self) -> str | None:
        """`file:line` of the user's innermost call that wrote it."""
        # Innermost first: what stands around it was written by whoever called the layer.
        for eqn in reversed(self.eqns):
            for file, line in jax_private.lines_of(eqn):
                if is_users(file):
                    return f"{file}:{line}"
        return None


@dataclass(frozen=True)
class Traced:
    """A function's program on some arguments.

    Attributes:
      program: what it computes of its arrays.
      arrays: those, in order.
      names: where each array stands among the arguments.
    """

    program: jex.ClosedJaxpr
    arrays: Leaves = field(repr=False)
    names: tuple[str, ...]


def traced(fn: Callable[..., Any], args: Sequence[object], kwargs: Mapping[str, object]) -> Traced:
    """Traces a function on its arguments; what is no array among them is static."""
    arrays, rest = split((tuple(args), dict(kwargs)), is_array)

    def call(*given: jax.Array) -> object:
        args, kwargs = rest.filled(given)
        return fn(*args, **kwargs)

    # Without prints and callbacks: the program is run several times, and they are the user's to be
    # heard once.
    program = jax_private.with_program(jax.make_jaxpr(call)(*arrays), equations.quiet)
    closed = jax_private.as_program(program)
    assert closed is not None
    return Traced(closed, arrays, tuple(_names(args, kwargs)))


def _names(args: Sequence[object], kwargs: Mapping[str, object]) -> Iterator[str]:
    for path, leaf in jax.tree.leaves_with_path((tuple(args), dict(kwargs))):
        if is_array(leaf):
            kind, first, *below = path
            root = f"args[{first.idx}]" if kind.idx == 0 else first.key
            yield root + jax.tree_util.keystr(tuple(below))
