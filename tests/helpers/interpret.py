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


def _part(starts: Sequence[Any], x: Any, sizes: Sequence[int]) -> tuple[slice, ...]:
    """Where a dynamic slice lies: one that would stick out is moved in."""
    places = [
        min(max(int(s), 0), n - size) for s, n, size in zip(starts, x.shape, sizes, strict=True)
    ]
    return tuple(slice(s, s + size) for s, size in zip(places, sizes, strict=True))


def _dynamic_slice(x: Any, *starts: Any, slice_sizes: Any) -> Any:
    return x[_part(starts, x, slice_sizes)]


def _dynamic_update_slice(x: Any, update: Any, *starts: Any) -> Any:
    out = x.copy()
    out[_part(starts, x, update.shape)] = update
    return out


def _pad(x: Any, value: Any, *, padding_config: Any) -> Any:
    if any(low < 0 or high < 0 or inside for low, high, inside in padding_config):
        return None
    return np.pad(x, [(low, high) for low, high, _ in padding_config], constant_values=value)


def _iota(*, dtype: Any, shape: Any, dimension: int, **_: Any) -> Any:
    if dtype not in _NATIVE:
        return None
    sizes = [1] * len(shape)
    sizes[dimension] = shape[dimension]
    return np.broadcast_to(np.arange(shape[dimension], dtype=dtype).reshape(sizes), shape)


def _seen_as(x: Any, dtype: Any) -> Any:
    return x.view(dtype) if x.dtype.itemsize == dtype.itemsize else None


def _shifted(x: Any, by: Any) -> Any:
    fits = x.dtype.kind == "u" and np.all(by < 8 * x.dtype.itemsize)
    return np.right_shift(x, by) if fits else None


_MOVES: dict[str, Callable[..., Any]] = {
    "reshape": lambda x, new_sizes, dimensions=None, **_: x.reshape(new_sizes),
    "squeeze": lambda x, dimensions: np.squeeze(x, dimensions),
    "expand_dims": lambda x, dimensions: np.expand_dims(x, dimensions),
    "transpose": lambda x, permutation: np.transpose(x, permutation),
    "concatenate": lambda *xs, dimension, **_: np.concatenate(xs, dimension),
    "broadcast_in_dim": _broadcast,
    "slice": _slice,
    "dynamic_slice": _dynamic_slice,
    "dynamic_update_slice": _dynamic_update_slice,
    "pad": _pad,
    "rev": lambda x, dimensions: np.flip(x, dimensions),
    "iota": _iota,
    "copy": lambda x, **_: x,
    "bitcast_convert_type": lambda x, new_dtype: _seen_as(x, np.dtype(new_dtype)),
}
_ROUNDS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "add_any": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "square": np.square,
    "neg": np.negative,
    "eq": np.equal,
    "ne": np.not_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "abs": np.abs,
    "is_finite": np.isfinite,
}
_ROUNDS_FLOATS: dict[str, Callable[..., Any]] = {"div": np.divide, "sqrt": np.sqrt, "rem": np.fmod}
_CHOOSES: dict[str, Callable[..., Any]] = {
    "max": np.maximum,
    "min": np.minimum,
    "reduce_max": lambda x, axes, **_: np.max(x, tuple(axes)),
    "reduce_min": lambda x, axes, **_: np.min(x, tuple(axes)),
    "reduce_and": lambda x, axes, **_: np.bitwise_and.reduce(x, tuple(axes)),
    "reduce_or": lambda x, axes, **_: np.bitwise_or.reduce(x, tuple(axes)),
}
_NATIVE = frozenset(map(np.dtype, ("bool", "int32", "uint32", "float32", "int64", "float64")))


def _converted(x: Any, dtype: Any) -> Any:
    """None where it is not one rounding: a float that is to be whole may be none of the others."""
    if dtype not in _NATIVE or (x.dtype.kind == "f" and dtype.kind != "f"):
        return None
    return x.astype(dtype)


def _zeros_of_both_signs(arrays: Sequence[Any]) -> bool:
    """Neither is the larger one."""
    signs = {sign for a in arrays if a.dtype.kind == "f" for sign in np.signbit(a[a == 0])}
    return len(signs) > 1


def _by_numpy(eqn: Any, args: list[Any]) -> Any:
    """The one result, or None where XLA is to compute it."""
    name, params = eqn.primitive.name, eqn.params
    if name not in _BY_NUMPY:
        return None
    if params.get("sharding") is not None or params.get("out_sharding") is not None:
        return None
    if any(map(_has_keys, args)):
        return None
    arrays = [np.asarray(a) for a in args]
    if name in _MOVES:
        moved = _MOVES[name](*arrays, **params)
        return None if moved is None else np.asarray(moved)
    if not all(a.dtype in _NATIVE for a in arrays):
        return None
    with np.errstate(all="ignore"):
        if name == "convert_element_type":
            return _converted(arrays[0], np.dtype(params["new_dtype"]))
        if name in _ROUNDS:
            return np.asarray(_ROUNDS[name](*arrays))
        if name in _ROUNDS_FLOATS and arrays[0].dtype.kind == "f":
            return np.asarray(_ROUNDS_FLOATS[name](*arrays))
        if name == "shift_right_logical":
            return _shifted(*arrays)
        if name in _CHOOSES and arrays[0].size and not _zeros_of_both_signs(arrays):
            return np.asarray(_CHOOSES[name](*arrays, **params))
    if name == "select_n" and len(arrays) == 3 and arrays[0].dtype == bool:
        return np.asarray(np.where(arrays[0], arrays[2], arrays[1]))
    return None


_BY_NUMPY = frozenset(
    {
        *_MOVES,
        *_ROUNDS,
        *_ROUNDS_FLOATS,
        *_CHOOSES,
        *("select_n", "convert_element_type", "shift_right_logical"),
    }
)


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
    # A slice of JAX's array is three programs of its own.
    scanned = [x if _has_keys(x) else np.asarray(x) for x in args[consts + carries :]]
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
    if _has_keys(column[0]):
        return jnp.stack(column)
    return np.stack([np.asarray(value) for value in column])


def _has_keys(x: Any) -> bool:
    return isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)


def _while(params: dict[str, Any], args: list[Any]) -> list[Any]:
    split = params["cond_nconsts"]
    both = split + params["body_nconsts"]
    test, body, state = args[:split], args[split:both], args[both:]
    while bool(_evaluate(params["cond_jaxpr"], [*test, *state])[0]):
        state = _evaluate(params["body_jaxpr"], [*body, *state])
    return list(state)
