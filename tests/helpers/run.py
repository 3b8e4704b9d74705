"""Everything that a model computes, in one value to compare: variables, outputs, gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .interpret import interpret

STREAMS = ("params", "dropout", "noise")
MUTABLE = ("batch_stats", "intermediates", "state", "cache")


def keys(seed: int = 0, *, typed: bool = True, streams: Sequence[str] = STREAMS) -> dict[str, Any]:
    """One key for each stream."""
    make = jax.random.key if typed else jax.random.PRNGKey
    return {name: make(seed + index) for index, name in enumerate(streams)}


def ramp(*shape: int, start: float = -1.0, dtype: Any = jnp.float32) -> jax.Array:
    """Numbers that differ along every axis."""
    size = 1
    for extent in shape:
        size *= extent
    return jnp.asarray(np.sin(np.arange(size) * 0.7 + start).reshape(shape), dtype)


def total(tree: Any) -> jax.Array:
    """A scalar that every floating-point leaf takes part in, each number with its own weight."""
    result = jnp.float32(0.0)
    for leaf in jax.tree.leaves(tree):
        if jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            weight = jnp.cos(jnp.arange(jnp.size(leaf), dtype=jnp.float32)).reshape(jnp.shape(leaf))
            result = result + jnp.sum(leaf.astype(jnp.float32) * weight)
    return result


def everything(
    model: Any,
    args: tuple[Any, ...],
    rngs: Mapping[str, Any] | None = None,
    *,
    variables: Mapping[str, Any] | None = None,
    mutable: Sequence[str] | bool = MUTABLE,
    method: Any = None,
    init_kwargs: Mapping[str, Any] | None = None,
    compiled: bool = False,
    **kwargs: Any,
) -> dict[str, Any]:
    """Initial variables, then outputs, mutated collections and gradients of one `apply`.

    `variables` given: no `init`. `compiled`: as jax runs it, not one primitive at a time.
    """
    names = dict(keys() if rngs is None else rngs)
    arrays = jax.tree.leaves(args)
    structure = jax.tree.structure(args)

    def run(rngs: Any, variables: Any, arrays: Any) -> dict[str, Any]:
        inputs = jax.tree.unflatten(structure, arrays)
        if variables is None:
            made = model.init(rngs, *inputs, method=method, **{**kwargs, **(init_kwargs or {})})
        else:
            made = dict(variables)
        floats = {i: a for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating)}

        def loss(params: Any, floats: Any) -> Any:
            mixed = [floats.get(i, a) for i, a in enumerate(arrays)]
            filled = {**made, "params": params} if params is not None else made
            given = {name: key for name, key in rngs.items() if name != "params"}
            result = model.apply(
                filled,
                *jax.tree.unflatten(structure, mixed),
                rngs=given,
                mutable=mutable,
                method=method,
                **kwargs,
            )
            out, changed = (result, {}) if mutable is False else result
            return total(out), (out, changed)

        grads, (out, changed) = jax.grad(loss, argnums=(0, 1), has_aux=True)(
            made.get("params"), floats
        )
        return {"variables": made, "out": out, "changed": changed, "grads": grads}

    if compiled:
        return run(names, variables, arrays)
    return interpret(run, names, variables, [jnp.asarray(a) for a in arrays])
