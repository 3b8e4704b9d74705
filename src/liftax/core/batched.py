"""Loops that make initial values, as one batch.

A scan over layers that has no carry computes the same for every slice: here for the key of
each layer. Small slices don't fill a machine one after the other, so they are computed side by
side, as `jax.vmap` would. Only what treats every element by itself is taken: then the numbers
are those of the loop. Large stacks stay loops, whose intermediate values are those of one layer
and not of all; and small ones, which compile faster so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from .. import compat, equations

if TYPE_CHECKING:
    import jax.extend.core as jex

_NAME = "side_by_side"
_SMALL, _LARGE = 2**16, 2**24  # elements, of all slices together
_CALLS = ("jit", "pjit", "closed_call", "custom_jvp_call")
_FREE = frozenset(
    """
    abs add and bitcast_convert_type broadcast_in_dim cbrt ceil clamp concatenate
    convert_element_type copy cos div eq erf erf_inv erfc exp exp2 expm1 floor ge gt integer_pow
    iota is_finite le liftax_draw log log1p logistic lt max min mul ne neg nextafter not or pad
    pow random_bits random_fold_in random_seed random_split random_unwrap random_wrap rem reshape
    rev round rsqrt select_n shift_left shift_right_arithmetic shift_right_logical sign sin slice
    split sqrt square squeeze stop_gradient sub tan tanh threefry2x32 transpose xor
    """.split()
)
"""Primitives that treat every element, or every key, by itself."""


def batched(jaxpr: jex.Jaxpr) -> jex.Jaxpr:
    """Returns the program with its loops as batches, where that keeps the numbers and pays.

    Args:
      jaxpr: the program, without constvars.
    """
    return _with_loops(jaxpr, lambda eqn: _side_by_side(eqn) if _pays(eqn) else eqn)


def _with_loops(jaxpr: jex.Jaxpr, change: Callable[[Any], Any]) -> jex.Jaxpr:
    eqns = [change(eqn) if equations.as_scan(eqn) else eqn for eqn in jaxpr.eqns]
    return compat.rewire(jaxpr, invars=jaxpr.invars, outvars=jaxpr.outvars, eqns=eqns)


def _pays(eqn: Any) -> bool:
    return _SMALL <= sum(math.prod(v.aval.shape) for v in eqn.outvars) <= _LARGE


def is_batch(eqn: Any) -> bool:
    """Tells whether an equation is such a batch."""
    return eqn.params.get("name") == _NAME


def is_whole(jaxpr: jex.Jaxpr) -> bool:
    """Tells whether a program is batches and the keys they need.

    Compiled as one it has the same numbers: besides the batches there is nothing to round.
    """
    rest = [eqn for eqn in jaxpr.eqns if not is_batch(eqn)]
    exact = all(_is_exact(v.aval) for eqn in rest for v in eqn.outvars)
    return exact and len(rest) < len(jaxpr.eqns)


def _is_exact(aval: Any) -> bool:
    dtype = getattr(aval, "dtype", None)
    kinds = (np.integer, np.bool_, jax.dtypes.prng_key)
    return any(jax.dtypes.issubdtype(dtype, kind) for kind in kinds)


def _side_by_side(eqn: Any) -> Any:
    """Returns a scan's equation as that of a batch, or as it is."""
    scan = equations.as_scan(eqn)
    assert scan is not None
    body = _with_loops(scan.body.jaxpr, _side_by_side)
    if scan.carried or scan.body.consts or not _is_free(body):
        return eqn
    axes = (None,) * scan.shared + (0,) * (len(eqn.invars) - scan.shared)

    def run(*inputs: Any) -> Any:
        def one(*values: Any) -> list[Any]:
            return compat.evaluate(body, values)

        return jax.vmap(one, in_axes=axes, axis_size=scan.length)(*inputs)

    run.__name__ = _NAME
    made = jax.make_jaxpr(jax.jit(run))(*[x.aval for x in eqn.invars])
    (call,) = made.jaxpr.eqns
    same = [v.aval for v in call.outvars] == [v.aval for v in eqn.outvars]
    if not same or made.consts or list(call.invars) != list(made.jaxpr.invars):
        return eqn
    return call.replace(invars=list(eqn.invars), outvars=list(eqn.outvars))


def _is_free(jaxpr: jex.Jaxpr) -> bool:
    """Tells whether a program treats every element by itself, and every key as threefry does."""
    for eqn in jaxpr.eqns:
        if eqn.effects:
            return False
        dtypes = [getattr(v.aval, "dtype", None) for v in (*eqn.invars, *eqn.outvars)]
        keys = [d for d in dtypes if d is None or jax.dtypes.issubdtype(d, jax.dtypes.prng_key)]
        if any(str(dtype) != "key<fry>" for dtype in keys):
            return False  # other generators give other numbers in a batch
        name = equations.name_of(eqn)
        if name in _CALLS:
            called = equations.programs_of(eqn)
            if any(program.consts or not _is_free(program.jaxpr) for program in called):
                return False
        elif name not in _FREE:
            return False
    return True
