"""Compiled loops, found again by what they compute.

Outside all transformations JAX runs a loop as one compiled program, which it finds again by
the identity of the loop's body: a body that is traced anew is compiled anew. Here a loop is
found by its equations, shapes and constants, so that a model that is initialised again is
traced again and compiles nothing. A key knows nothing of modules, functions or their state.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from ... import equations, jax_private
from ..linen_keys import Draw
from ..streams import is_key

if TYPE_CHECKING:
    import jax.extend.core as jex

_MOST = 2**23  # bytes of all keys of a class; that of a transformer's layer has some 800,000
_LITTLE = 2**16  # bytes of a constant that is compared by value


class KeptLoops:
    """Compiled loops by what they compute, those that were used last.

    Attributes:
      calls: by key, the one used last at the end.
      sizes: the bytes of each key; a compiled loop is about as large as what it was made of.
    """

    def __init__(self) -> None:
        self.calls: dict[Hashable, jex.JaxprEqn] = {}
        self.sizes: dict[Hashable, int] = {}

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return KeptLoops, ()  # programs stay behind

    def put_into(self, jaxpr: jex.Jaxpr) -> jex.Jaxpr:
        """Returns a program with its loops as calls of compiled ones.

        Args:
          jaxpr: the program, to be run equation by equation.
        """
        eqns = [self._changed(eqn) for eqn in jaxpr.eqns]
        return jax_private.rewire(jaxpr, invars=jaxpr.invars, outvars=jaxpr.outvars, eqns=eqns)

    def _changed(self, eqn: jex.JaxprEqn) -> jex.JaxprEqn:
        if equations.is_remat(eqn):
            return equations.with_programs(eqn, self.put_into)
        if eqn.effects or not equations.is_loop(eqn):
            return eqn
        try:
            key = key_of(eqn)
        except Unequalled:
            return eqn
        call = self.calls.pop(key, None)
        if call is None:
            call = jax_private.as_call(eqn)
            self.sizes[key] = _bytes(key)
        self.calls[key] = call
        held = sum(self.sizes.values())
        for old in list(self.calls)[:-1]:  # the one that is asked for is made in any case
            if held <= _MOST:
                break
            self.calls.pop(old, None)
            held -= self.sizes.pop(old, 0)
        return call.replace(invars=list(eqn.invars), outvars=list(eqn.outvars))


def _bytes(key: Hashable) -> int:
    parts = sum(map(_bytes, key)) if isinstance(key, tuple) else 0
    return sys.getsizeof(key) + parts


class Unequalled(Exception):
    """A program that no other one equals."""


def key_of(eqn: jex.JaxprEqn) -> Hashable:
    """Returns what is equal for equations that compute alike, whatever they compute with."""
    avals = tuple(atom.aval for atom in (*eqn.invars, *eqn.outvars))
    # The context is one object for equal settings of JAX.
    return eqn.primitive, eqn.ctx, _params(eqn), avals


def _params(eqn: jex.JaxprEqn) -> Hashable:
    # A mark of one_trace says in which trace it was made, and changes nothing.
    return tuple((n, _value(v)) for n, v in equations.computes_by(eqn) if n != "mark")


def _program(jaxpr: jex.Jaxpr, consts: Sequence[object]) -> Hashable:
    # Variables by the order in which they are met: two traces of one loop name them differently.
    numbers: dict[jex.Var, int] = {}

    def atom(a: jex.Var | jex.Literal) -> Hashable:
        if jax_private.is_variable(a):
            return numbers.setdefault(a, len(numbers)), a.aval
        return _value(a.val), a.aval  # type: ignore[union-attr]

    def atoms(found: Iterable[jex.Var | jex.Literal]) -> Hashable:
        return tuple(map(atom, found))

    first = atoms((*jaxpr.constvars, *jaxpr.invars))
    eqns = [(e.primitive, e.ctx, _params(e), atoms(e.invars), atoms(e.outvars)) for e in jaxpr.eqns]
    return first, tuple(eqns), atoms(jaxpr.outvars), _value(tuple(consts))


def _value(value: Any) -> Hashable:
    kind = type(value)
    if isinstance(value, (tuple, list)):
        return kind, tuple(map(_value, value))
    program = jax_private.as_program(value)
    if program is not None:
        return _program(program.jaxpr, program.consts)
    # Types of arrays and classes of them, as in Pallas's parameters, have a dtype and a shape too.
    if hasattr(value, "__array__") and not isinstance(value, type):
        if isinstance(value, jax.core.Tracer) or is_key(value) or value.nbytes > _LITTLE:
            raise Unequalled
        # NumPy's arrays change in place: their value is what was traced.
        return kind, value.dtype, value.shape, np.asarray(value).tobytes()
    if isinstance(value, Draw):
        return kind, int(value.value())
    if isinstance(value, (float, complex)):
        return kind, repr(value)  # 0.0 and -0.0
    try:
        hash(value)
    except TypeError:
        raise Unequalled from None
    return kind, value
