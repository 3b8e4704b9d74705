"""Initial values that are alike, compiled once: the kernels of equal layers in a compiled init.

Under `jax.jit` an init is part of a program that is compiled as a whole. Layers that are written
out make keys, draw and scale by as many copies of one program, and a GPU's compiler takes seconds
for each. Here the copies become turns of a loop over their keys. A turn computes what a copy did,
by itself, so the bits stay whatever the kind of key; what adds numbers up is left as it is, since
how it adds may hang on what is compiled with it.

Vocabulary
  chain   equations that end in a value which more than one other needs, or the program returns
  row     what a chain takes: one value for each input that is not made in it, numbers too
  level   how many draws were made one after the other for a value; those of one go together
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
import numpy as np

from ... import equations, jax_private
from ...pytrees import is_inexact, joined, parted
from .kept import Unequalled, key_of

if TYPE_CHECKING:
    import jax.extend.core as jex

    Atom = jex.Var | jex.Literal

_FEWEST = 3  # two copies compile about as fast as a loop


def evaluate(jaxpr: jex.Jaxpr, inputs: Sequence[object]) -> list[jax.Array]:
    """Runs a program without constvars, with a loop for what it makes alike.

    Args:
      jaxpr: the program; it becomes part of the one that is being traced.
      inputs: its inputs.
    """
    if jaxpr.effects:  # in the order in which they stand
        return jax_private.evaluate(jaxpr, inputs)
    values: dict[jex.Var, object] = dict(zip(jaxpr.invars, inputs, strict=True))

    read = functools.partial(equations.value_of, values)
    constants: dict[Hashable, list[jax.Array]] = {}
    for chains in _in_order(jaxpr):
        rows = [[read(atom) for atom in chain.inputs] for chain in chains]
        if len(chains) >= _FEWEST:
            made = list(_turns(chains[0], rows))
        else:
            made = [_once(constants, chain, row) for chain, row in zip(chains, rows, strict=True)]
        for chain, found in zip(chains, made, strict=True):
            values.update(zip(chain.eqns[-1].outvars, found, strict=True))
    return [jnp.asarray(read(atom)) for atom in jaxpr.outvars]


@dataclass(frozen=True)
class _Chain:
    """Equations of which only the last one's results are needed by others.

    Attributes:
      eqns: in order.
      inputs: the inputs of all that are made by none of them, as often as they are read.
      key: what is equal for chains that compute alike, where they are made together or once.
      draws: whether it makes random numbers or keys, and adds nothing up.
    """

    eqns: list[jex.JaxprEqn]
    inputs: list[Atom]
    key: Hashable | None
    draws: bool

    @classmethod
    def of(cls, eqns: list[jex.JaxprEqn]) -> _Chain:
        numbers: dict[Atom, int] = {}
        inputs: list[Atom] = []
        wires: list[Hashable] = []
        for eqn in eqns:
            for atom in eqn.invars:
                if jax_private.is_variable(atom) and atom in numbers:
                    wires.append(numbers[atom])
                else:
                    inputs.append(atom)
                    # Whole numbers tell keys apart. A rounded one is part of what is compiled: as
                    # an input it might be divided by in another way.
                    wires.append(None if _may_differ(atom) else repr(atom))
            numbers.update((v, len(numbers)) for v in eqn.outvars)
        draws = any(map(_draws, eqns)) and not any(map(equations.sums, eqns))
        key: Hashable | None = None
        # Of all else, a whole loop perhaps, nobody asks whether there is another.
        if draws or not any(equations.variables(inputs)):
            with contextlib.suppress(Unequalled):
                key = (*map(key_of, eqns), *wires)
        return cls(eqns, inputs, key, draws)

    def run(self, row: Sequence[object]) -> list[jax.Array]:
        """Computes the last equation's results from a row."""
        left, made = iter(row), dict[object, object]()
        for eqn in self.eqns:
            given = [
                made[atom] if jax_private.is_variable(atom) and atom in made else next(left)
                for atom in eqn.invars
            ]
            made.update(zip(eqn.outvars, jax_private.run_equation(eqn, given), strict=True))
        return [made[v] for v in self.eqns[-1].outvars]  # type: ignore[misc]


def _in_order(jaxpr: jex.Jaxpr) -> Iterator[list[_Chain]]:
    """Yields all chains, those that are alike and hang on none of each other at once."""
    levels: dict[Atom, int] = {}
    alone: dict[int, list[_Chain]] = {}
    alike: dict[int, dict[Hashable, list[_Chain]]] = {}
    for chain in _chains(jaxpr):
        level = max((levels.get(v, 0) for v in equations.variables(chain.inputs)), default=0)
        together = chain.draws and chain.key is not None
        if together:
            alike.setdefault(level, {}).setdefault(chain.key, []).append(chain)
        else:
            alone.setdefault(level, []).append(chain)
        levels.update(dict.fromkeys(chain.eqns[-1].outvars, level + together))
    # What a level makes without a draw hangs on the draws of the levels before, and comes first.
    for level in range(max(levels.values(), default=0) + 1):
        yield from ([chain] for chain in alone.get(level, ()))
        yield from alike.get(level, {}).values()


def _chains(jaxpr: jex.Jaxpr) -> Iterator[_Chain]:
    """Yields the chains of a program, by their last equations."""
    eqns = jaxpr.eqns
    readers: dict[Atom, set[int]] = {v: {-1} for v in equations.variables(jaxpr.outvars)}
    for i, eqn in enumerate(eqns):
        for atom in equations.variables(eqn.invars):
            readers.setdefault(atom, set()).add(i)
    last = list(range(len(eqns)))
    for i in reversed(range(len(eqns))):
        by = set[int]().union(*(readers.get(v, ()) for v in eqns[i].outvars))
        if len(by) == 1 and -1 not in by:
            last[i] = last[by.pop()]
    chains: dict[int, list[jex.JaxprEqn]] = {}
    for i, end in enumerate(last):
        chains.setdefault(end, []).append(eqns[i])
    for end in sorted(chains):
        yield _Chain.of(chains[end])


def _once(
    known: dict[Hashable, list[jax.Array]], chain: _Chain, row: list[object]
) -> list[jax.Array]:
    """Computes a chain, or finds what an equal one made of numbers alone: zeros, ones."""
    if chain.key is None or any(equations.variables(chain.inputs)):
        return chain.run(row)
    name = (chain.key, repr(row))
    if name not in known:
        known[name] = chain.run(row)
    return known[name]


def _turns(chain: _Chain, rows: list[list[object]]) -> Iterator[list[jax.Array]]:
    """Yields what a chain makes of each row, in one loop."""
    columns = list(zip(*rows, strict=True))
    # A bound or a scale that all have stays what it is: a number in the program.
    differ = [not all(_same(x, column[0]) for x in column) for column in columns]
    differing, _ = parted(columns, differ)
    _, same = parted(rows[0], differ)

    def turn(given: list[jax.Array]) -> list[jax.Array]:
        return chain.run(joined(given, same, differ))

    made = jax.lax.map(turn, list(map(jnp.stack, differing)))
    for n in range(len(rows)):
        yield [jax.lax.index_in_dim(x, n, keepdims=False) for x in made]


def _same(one: object, two: object) -> bool:
    """Whether two inputs are one, as is known while the program is traced."""
    if isinstance(one, jax.Array) or isinstance(two, jax.Array):
        return one is two
    return bool(np.array_equal(one, two))  # type: ignore[arg-type]


def _draws(eqn: jex.JaxprEqn) -> bool:
    program = equations.called_by(eqn, plain=True)
    return any(map(equations.draws, [eqn] if program is None else equations.all_of(program.jaxpr)))


def _may_differ(atom: Atom) -> bool:
    return jax_private.is_variable(atom) or not is_inexact(atom.aval)
