"""A program as a few compiled parts, each with the numbers of its equations run one by one.

Models repeat themselves: the initial values of twelve equal layers are one computation on
twelve keys. A program is cut where little goes through, equal parts are compiled once, and
loops, which JAX compiles as they are, stand alone.
"""

from __future__ import annotations

import graphlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from .. import compat, equations
from .batched import is_batch

if TYPE_CHECKING:
    import jax.extend.core as jex

_LITTLE = 16  # elements: a key, or a few numbers


class _Step(NamedTuple):
    """One part and where it stands: the variables or values that go in, what comes out."""

    run: Callable[..., list[Any]]
    given: list[Any]
    made: list[Any]


class Parts:
    """A program in parts.

    Args:
      jaxpr: the program, without constvars.
    """

    def __init__(self, jaxpr: jex.Jaxpr):
        self.jaxpr = jaxpr
        compiled: dict[Hashable, Callable[..., list[Any]]] = {}
        self.steps = [_step(part, compiled) for part in _joined(_cut(jaxpr))]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        values: dict[Any, Any] = dict(zip(self.jaxpr.invars, inputs, strict=True))

        def read(atom: Any) -> Any:
            return values[atom] if compat.is_variable(atom) else atom

        for step in self.steps:
            found = step.run([read(atom) for atom in step.given])
            values.update(zip(step.made, found, strict=True))
        found = [read(getattr(atom, "val", atom)) for atom in self.jaxpr.outvars]
        return [x if isinstance(x, jax.Array) else jax.numpy.asarray(x) for x in found]


def _is_loop(eqn: Any) -> bool:
    return equations.is_loop(eqn) or is_batch(eqn)


def _cut(jaxpr: jex.Jaxpr) -> list[jex.Jaxpr]:
    """Returns the parts in an order in which they can run."""
    eqns = jaxpr.eqns
    numbers = _together(jaxpr)
    order = _ordered(jaxpr, numbers)
    if order is None or any(eqn.effects for eqn in eqns):
        numbers = order = list(range(len(eqns)))
    groups: dict[int, list[Any]] = {number: [] for number in order}
    users: dict[Any, set[int]] = {}
    for number, eqn in zip(numbers, eqns, strict=True):
        groups[number].append(eqn)
        for v in _inputs(eqn):
            users.setdefault(v, set()).add(number)
    wanted = {v for v in jaxpr.outvars if compat.is_variable(v)}
    parts = []
    for number, group in groups.items():
        inside = dict.fromkeys(v for eqn in group for v in eqn.outvars)
        given = dict.fromkeys(v for eqn in group for v in _inputs(eqn) if v not in inside)
        made = [v for v in inside if v in wanted or users.get(v, set()) - {number}]
        parts.append(compat.rewire(jaxpr, invars=list(given), outvars=made, eqns=group))
    return parts


def _joined(parts: list[jex.Jaxpr]) -> list[jex.Jaxpr]:
    """Returns the parts with all those in one that need nothing: zeros and ones, mostly."""
    alone = [part for part in parts if not part.invars and not any(map(_is_loop, part.eqns))]
    if len(alone) < 2:
        return parts
    outvars = [v for part in alone for v in part.outvars]
    eqns = [eqn for part in alone for eqn in part.eqns]
    one = compat.rewire(alone[0], invars=[], outvars=outvars, eqns=eqns)
    return [one, *(part for part in parts if part not in alone)]


def _inputs(eqn: Any) -> list[Any]:
    return [atom for atom in eqn.invars if compat.is_variable(atom)]


def _together(jaxpr: jex.Jaxpr) -> list[int]:
    """Returns a number for each equation: those of equal numbers belong together.

    What one equation makes for one other, or much that it makes, is not worth a cut.
    """
    eqns = jaxpr.eqns
    makers = {v: i for i, eqn in enumerate(eqns) for v in eqn.outvars}
    uses = Counter(v for eqn in eqns for v in set(_inputs(eqn)))
    leader = list(range(len(eqns)))

    def find(i: int) -> int:
        while leader[i] != i:
            i = leader[i] = leader[leader[i]]
        return i

    for i, eqn in enumerate(eqns):
        for v in _inputs(eqn):
            maker = makers.get(v)
            if maker is None or _is_loop(eqn) or _is_loop(eqns[maker]):
                continue
            if uses[v] == 1 or v.aval.size > _LITTLE:
                leader[find(i)] = find(maker)
    return [find(i) for i in range(len(eqns))]


def _ordered(jaxpr: jex.Jaxpr, numbers: Sequence[int]) -> list[int] | None:
    """Returns the numbers, each after those whose results it needs; None if two need each other."""
    makers = {v: n for n, eqn in zip(numbers, jaxpr.eqns, strict=True) for v in eqn.outvars}
    needs: dict[int, set[int]] = {number: set() for number in numbers}
    for number, eqn in zip(numbers, jaxpr.eqns, strict=True):
        needs[number] |= {makers[v] for v in _inputs(eqn) if v in makers} - {number}
    try:
        return list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError:
        return None


def _step(part: jex.Jaxpr, compiled: dict[Hashable, Callable[..., list[Any]]]) -> _Step:
    made = list(part.outvars)
    if any(map(_is_loop, part.eqns)):
        return _Step(lambda values: compat.evaluate(part, values), list(part.invars), made)
    open_part, literals = compat.literals_as_inputs(part)
    key = _structure(open_part)
    if key not in compiled:
        program = jax.jit(lambda values, zero: compat.evaluate_apart(open_part, values, zero))
        compiled[key] = lambda values: program(values, np.uint32(0))
    # Arrays, which are handed over faster than numbers.
    return _Step(compiled[key], [*part.invars, *map(jax.numpy.asarray, literals)], made)


def _structure(part: jex.Jaxpr) -> Hashable:
    """Returns a key: equal for programs that compute alike."""
    numbers: dict[Any, int] = {}

    def number(v: Any) -> int:
        return numbers.setdefault(v, len(numbers))

    def atom(a: Any) -> Hashable:
        return number(a) if compat.is_variable(a) else (a.aval, type(a.val), repr(a.val))

    return (
        tuple((number(v), v.aval) for v in part.invars),
        tuple(
            (
                eqn.primitive,
                tuple((name, _constant(value)) for name, value in sorted(eqn.params.items())),
                tuple(map(atom, eqn.invars)),
                tuple((number(v), v.aval) for v in eqn.outvars),
            )
            for eqn in part.eqns
        ),
        tuple(map(number, part.outvars)),
    )


def _constant(value: Any) -> Hashable:
    """A key for a parameter of an equation, which lives as long as the program does."""
    try:
        hash(value)
    except TypeError:
        return type(value), id(value)
    return type(value), value
