"""Evaluates a traced program one primitive at a time, loops as Python loops.

Compiling hundreds of tiny scans takes minutes, nearly all of it in XLA. A table of tests compares
what was traced instead: each primitive compiles once per shape and is then shared by all entries.
Nothing is fused, so two programs that do the same arithmetic agree to the last bit. What only moves
numbers, or rounds one operation as IEEE has it, NumPy does and nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core as jex

from liftax.equations import as_scan

_CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "checkpoint": "jaxpr",
    "remat": "jaxpr",
    "remat2": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vjp_call_jaxpr": "fun_jaxpr",
}


def _broadcast(x: Any, *, shape: Any, broadcast_dimensions: Any, **_: Any) -> Any:
    sizes = [1] * len(shape)
    for size, axis in zip(x.shape, broadcast_dimensions, strict=True):
        sizes[axis] = size
    return np.broadcast_to(x.reshape(sizes), shape)


def _slice(x: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    steps = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, steps))]


_MOVES: dict[str, Callable[..., Any]] = {
    "reshape": lambda x, new_sizes, dimensions=None, **_: x.reshape(new_sizes),
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "copy": lambda x, **_: x,
}
_ROUNDS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}
_NATIVE = frozenset(map(np.dtype, ("bool", "int32", "uint32", "float32", "int64", "float64")))


def _by_numpy(eqn: Any, args: list[Any]) -> Any:
    """The one result, or None where XLA is to compute it."""
    name, params = eqn.primitive.name, eqn.params
    if name not in _MOVES and name not in _ROUNDS and name != "select_n":
        return None
    if params.get("sharding") is not None or params.get("out_sharding") is not None:
        return None
    if any(jax.dtypes.issubdtype(a.dtype, jax.dtypes.extended) for a in args):
        return None
    arrays = [np.asarray(a) for a in args]
    if name in _MOVES:
        return np.asarray(_MOVES[name](*arrays, **params))
    if not all(a.dtype in _NATIVE for a in arrays):
        return None
    with np.errstate(all="ignore"):
        if name in _ROUNDS:
            return np.asarray(_ROUNDS[name](*arrays))
    if len(arrays) == 3 and arrays[0].dtype == bool:
        return np.asarray(np.where(arrays[0], arrays[2], arrays[1]))
    return None


def interpret(fn: Callable[..., Any], *args: Any) -> Any:
    """`fn(*args)`, by tracing it and then running its primitives one at a time."""
    closed, shape = jax.make_jaxpr(fn, return_shape=True)(*args)
    flat = _evaluate(closed, jax.tree.leaves(args))
    return jax.tree.unflatten(jax.tree.structure(shape), list(map(jnp.asarray, flat)))


def evaluate(program: jex.ClosedJaxpr, args: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
    """The results number `wanted` of a program; what they do not need is left out."""
    jaxpr = program.jaxpr
    results = [jaxpr.outvars[i] for i in wanted]
    needed, eqns = set(_variables(results)), []
    for eqn in reversed(jaxpr.eqns):
        if not needed.isdisjoint(eqn.outvars):
            needed.update(_variables(eqn.invars))
            eqns.append(eqn)
    pruned = jaxpr.replace(eqns=eqns[::-1], outvars=results)
    return _evaluate(jex.ClosedJaxpr(pruned, program.consts), args)


def _variables(atoms: Sequence[Any]) -> list[Any]:
    return [atom for atom in atoms if not isinstance(atom, jex.Literal)]


def _evaluate(program: Any, args: Sequence[Any]) -> list[Any]:
    jaxpr, consts = (
        (program.jaxpr, program.consts) if isinstance(program, jex.ClosedJaxpr) else (program, ())
    )
    values: dict[Any, Any] = {}

    def read(atom: Any) -> Any:
        # A literal in its own dtype, not a weak one: one program serves both.
        return (
            np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, jex.Literal) else values[atom]
        )

    values.update(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        found = _apply(eqn, [read(atom) for atom in eqn.invars])
        values.update(zip(eqn.outvars, found, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(eqn: Any, args: list[Any]) -> Sequence[Any]:
    name, params = eqn.primitive.name, eqn.params
    if name in _CALLS:
        return _evaluate(params[_CALLS[name]], args)
    if name == "scan":
        return _scan(eqn, args)
    if name == "shard_map":
        return _evaluate(params["jaxpr"], args)  # over one device
    if name == "axis_index":
        return [jnp.zeros((), jnp.int32)]
    if name == "while":
        return _while(params, args)
    if name == "cond":
        index = min(max(int(args[0]), 0), len(params["branches"]) - 1)
        return _evaluate(params["branches"][index], args[1:])
    moved = _by_numpy(eqn, args)
    if moved is not None:
        return [moved]
    out = eqn.primitive.bind(*args, **params)
    return out if eqn.primitive.multiple_results else [out]


def _scan(eqn: Any, args: list[Any]) -> list[Any]:
    scan, params = as_scan(eqn), eqn.params
    assert scan is not None
    consts, carries = scan.shared, scan.carried
    closed, carry = args[:consts], args[consts : consts + carries]
    scanned = args[consts + carries :]
    outputs: list[list[Any]] = []
    order = range(params["length"])
    for index in reversed(order) if params["reverse"] else order:
        found = _evaluate(params["jaxpr"], [*closed, *carry, *(x[index] for x in scanned)])
        carry = found[:carries]
        outputs.append(found[carries:])
    if params["reverse"]:
        outputs.reverse()
    if not outputs:
        shapes = params["jaxpr"].out_avals[carries:]
        return [*carry, *(jnp.zeros((0, *aval.shape), aval.dtype) for aval in shapes)]
    return [*carry, *(_stack(column) for column in zip(*outputs, strict=True))]


def _stack(column: Sequence[Any]) -> Any:
    if jax.dtypes.issubdtype(jnp.asarray(column[0]).dtype, jax.dtypes.prng_key):
        return jnp.stack(column)
    return jnp.asarray(np.stack([np.asarray(value) for value in column]))


def _while(params: dict[str, Any], args: list[Any]) -> list[Any]:
    split = params["cond_nconsts"]
    both = split + params["body_nconsts"]
    test, body, state = args[:split], args[split:both], args[both:]
    while bool(_evaluate(params["cond_jaxpr"], [*test, *state])[0]):
        state = _evaluate(params["body_jaxpr"], [*body, *state])
    return list(state)
