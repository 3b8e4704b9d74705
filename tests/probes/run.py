"""Runs the models under one flag, for the rest of a process's life.

A flag changes how JAX traces, and much of JAX caches what it traced: only a fresh process has one
flag and nothing of another. What is compiled is shared by all of them, in the folder of the suite.
"""

from __future__ import annotations

import traceback
import warnings
from types import ModuleType
from typing import Any

import jax
import numpy as np
from helpers.compare import linen, ours
from helpers.run import total

from probes.flags import FLAGS, Flag
from probes.models import MODELS, WRITES

X = np.sin(np.arange(12) * 0.7 - 1.0).reshape(4, 3)


def _compute(flag: Flag, nn: ModuleType, name: str, x: Any) -> dict[str, Any]:
    """Initial variables, then outputs, changed variables and gradients: arrays by their paths."""
    make = jax.random.key if flag.typed_keys else jax.random.PRNGKey
    rngs = {"params": make(0), "dropout": make(1)}
    model = MODELS[name](nn)

    def everything(rngs: Any, x: Any) -> dict[str, Any]:
        # Linen runs what it initialises one operation at a time, and each is a program. What is
        # expected of ours is the same in one.
        init = model.init if nn is ours().nn else jax.jit(model.init)
        variables = init(rngs, x)
        params = variables.pop("params", {})

        def run(params: Any, state: Any) -> Any:
            given, drops = {**state, "params": params}, {"dropout": rngs["dropout"]}
            out = model.apply(given, x, rngs=drops, mutable=WRITES.get(name, False))
            return total(out), out

        compiled = jax.jit(jax.value_and_grad(run, has_aux=True))
        (_, outputs), grads = compiled(params, variables)
        return {"params": params, "state": variables, "outputs": outputs, "grads": grads}

    if flag.traced_only:
        shapes = jax.eval_shape(everything, rngs, x)
        found = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    else:
        found = everything(rngs, x)
    leaves = jax.tree_util.tree_leaves_with_path(found)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def _attempt(*args: Any) -> Any:
    """What `_compute` gives, or the words of the error that it met."""
    try:
        return _compute(*args)
    except Exception as error:
        text = "".join(traceback.format_exception(error))
        return text.partition("-" * 20)[0][-1500:]


def main(flag: str, *names: str) -> dict[str, Any]:
    """What both libraries compute, or the words of their errors, of all models or of `names`."""
    # To rounding is enough of what is compiled, and of initial values both libraries make the same.
    jax.config.update("jax_disable_most_optimizations", True)
    results: dict[str, Any] = {}
    subject, reference = ours().nn, linen().nn
    with FLAGS[flag].on(X) as x:
        for name in names or FLAGS[flag].models:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                found = _attempt(FLAGS[flag], subject, name, x)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                expected = _attempt(FLAGS[flag], reference, name, x)
            results[name] = found, expected
    return results
