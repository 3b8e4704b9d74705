"""The programs of single modules, cut out of the program of a whole model.

While a model is traced, what goes into a module's method and what comes out of it go through marks,
which do nothing. A trace is in order: the equations between the two marks are the module's, in
whatever loop, map or checkpoint they stand, and the loops around them say how often they run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import jax
import jax.extend.core as jex
import numpy as np

from .. import equations, jax_private
from ..core.linen_keys import draw_p
from ..module import intercept_methods
from ..module.state import LIFTED
from ..pytrees import is_array, split
from ..stack.declaration import Declaration

if TYPE_CHECKING:
    from ..core.types import Function
    from ..module.methods import InterceptorContext

_mark_p = jax_private.identity("liftax_call")


@dataclass
class Call:
    """One call of a module's method.

    Attributes:
      path: of the module, with slashes.
      kind: the module's class, and the method unless that is ``__call__``.
      layers: how many layers it has, if it is a `Stack`.
      inner: the calls within.
      program: the equations of the call, as a program of all that they use; None where the call
        has no array to be told by.
      times: how often it runs.
    """

    path: str
    kind: str
    layers: int | None = None
    inner: list[Call] = field(default_factory=list)
    program: jex.ClosedJaxpr | None = None
    times: int = 0

    @property
    def stacks(self) -> Iterator[Call]:
        """The stacks in it, itself included, outermost first."""
        if self.layers is not None:
            yield self
        for call in self.inner:
            yield from call.stacks

    @property
    def parts(self) -> Iterator[Call]:
        """What it is made of: the layers of stacks, and the modules beside the stacks."""
        for call in self.inner:
            if any(call.stacks):
                yield from call.parts
            elif call.program is not None:
                yield call
        if not self.inner and self.program is not None:
            yield self


class _Calls:
    """Hears of every call of a method, and marks its first input and its first output."""

    def __init__(self) -> None:
        self.all: list[Call] = []
        self.roots: list[Call] = []
        self.open: list[Call] = []

    def see(
        self,
        call: Function,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        context: InterceptorContext,
    ) -> object:
        leaves, rest = split((args, kwargs), is_array)
        if context.method_name in ("setup", LIFTED) or not leaves:
            return call(*args, **kwargs)
        module, n = context.module, len(self.all)
        method = "" if context.method_name == "__call__" else f".{context.method_name}"
        made = Call("/".join(module.path), type(module).__name__ + method)
        if isinstance(module, Declaration):
            made.layers = len(module)
        self.all.append(made)
        (self.open[-1].inner if self.open else self.roots).append(made)
        self.open.append(made)
        try:
            args, kwargs = rest.filled([_mark_p.bind(leaves[0], n=n, end=False), *leaves[1:]])
            out = call(*args, **kwargs)
        finally:
            self.open.pop()
        found, rest = split(out, is_array)
        if not found:
            return out
        return rest.filled([_mark_p.bind(found[0], n=n, end=True), *found[1:]])

    def find(self, program: jex.Jaxpr, times: int = 1) -> None:
        """Looks for the marks in a program and in those within."""
        begun: dict[int, int] = {}
        for i, eqn in enumerate(program.eqns):
            if equations.name_of(eqn) == _mark_p.name:
                n = eqn.params["n"]
                if not eqn.params["end"]:
                    begun[n] = i
                elif n in begun:
                    self.all[n].program = _between(program, begun[n], i)
                    self.all[n].times += times
                continue
            scan = equations.as_scan(eqn)
            for inner in equations.programs_of(eqn):
                self.find(inner.jaxpr, times * (1 if scan is None else scan.length))


def calls_in(fn: Callable[..., object], *args: object) -> list[Call]:
    """The outermost calls of modules' methods in a function, each with those within.

    Args:
      fn: calls modules; it is traced once.
      *args: its arguments, arrays or shapes.
    """
    calls = _Calls()
    with intercept_methods(calls.see):
        # A function of its own: what JAX has traced of `fn` before, nobody would hear of.
        closed = jax.make_jaxpr(lambda *args: fn(*args))(*args)
    calls.find(closed.jaxpr)
    return calls.roots


def _between(program: jex.Jaxpr, begin: int, end: int) -> jex.ClosedJaxpr:
    """The equations from one mark to another, as a program of what they use."""
    eqns, rest = program.eqns[begin:end], program.eqns[end:]
    made = {out for eqn in eqns for out in eqn.outvars}
    used = dict.fromkeys(equations.variables(atom for eqn in eqns for atom in eqn.invars))
    later = dict.fromkeys(
        equations.variables([*(a for e in rest for a in e.invars), *program.outvars])
    )
    # A module that returns its input makes nothing; then that is its output.
    outputs = [v for v in later if v in made] or list(equations.variables(program.eqns[end].invars))
    cut = jax_private.rewire(
        program.replace(constvars=()),
        invars=[v for v in used if v not in made],
        outvars=outputs,
        eqns=eqns,
    )
    # Nothing is to be printed, or called back, as often as a program is timed.
    closed = jax_private.as_program(equations.quiet(_bare(cut)))
    assert closed is not None
    return closed


def _bare(program: jex.Jaxpr) -> jex.Jaxpr:
    """A program without marks and paths, so that those of equal modules are equal."""
    same: dict[jex.Var, jex.Var | jex.Literal] = {}

    def behind(atom: jex.Var | jex.Literal) -> jex.Var | jex.Literal:
        return same.get(atom, atom) if jax_private.is_variable(atom) else atom

    eqns = []
    for eqn in program.eqns:
        inputs = [behind(atom) for atom in eqn.invars]
        name = equations.name_of(eqn)
        if name == _mark_p.name:
            same[eqn.outvars[0]] = inputs[0]
        elif name == draw_p.name:
            same[eqn.outvars[0]] = _zero(eqn.outvars[0])
        else:
            # What is folded into a key says where a module stands, and no more.
            if name == "random_fold_in" and not jax_private.is_variable(inputs[1]):
                inputs[1] = _zero(inputs[1])
            eqns.append(equations.with_programs(eqn.replace(invars=inputs), _bare))
    outputs = [behind(atom) for atom in program.outvars]
    return jax_private.rewire(program, invars=program.invars, outvars=outputs, eqns=eqns)


def _zero(atom: jex.Var | jex.Literal) -> jex.Literal:
    return jex.Literal(np.uint32(0), atom.aval)
