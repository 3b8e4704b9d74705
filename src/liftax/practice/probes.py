"""What exercises measure of an answer beside its variables and numbers: traces, loops, bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..core.types import Function
from ..module import InterceptorContext, Module, intercept_methods


def same_along(array: object, axis: int) -> bool:
    """Whether all slices along an axis are equal.

    Example:
      >>> same_along(np.ones((3, 2)), 0), same_along(np.eye(2), 0)
      (True, False)
    """
    values = np.asarray(array)
    return bool((values == np.take(values, [0], axis)).all())


def loops(fn: Callable[..., object], *args: object) -> int:
    """How many loops stand in the program of a function, those inside of loops counted too.

    Example:
      >>> loops(lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x + 1, x), 0)
      1
    """
    # The text has the programs inside of loops and calls in it, each once.
    program = str(jax.make_jaxpr(fn)(*args))
    return program.count("= scan[") + program.count("= while[")


def traces(of: type[Module], fn: Callable[..., object], *args: object) -> int:
    """How often modules of a class are called while a function is traced."""
    count = 0

    def hear(
        call: Function,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        context: InterceptorContext,
    ) -> object:
        nonlocal count
        count += isinstance(context.module, of) and context.method_name == "__call__"
        return call(*args, **kwargs)

    with intercept_methods(hear):
        jax.make_jaxpr(fn)(*args)
    return count


def zeros(model: Any, *args: Any) -> Any:
    """Variables of a model that are all zero, for what depends on their shapes alone."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *args)
    return jax.tree.map(lambda leaf: jax.numpy.zeros(leaf.shape, leaf.dtype), shapes)


def gradient_bytes(fn: Callable[..., object], *args: object) -> int:
    """The temporary memory of the gradient of a function, in bytes, as the compiler plans it."""

    def total(*args: object) -> Any:
        return sum(jax.numpy.sum(leaf) for leaf in jax.tree.leaves(fn(*args)))

    # Compiled and not run: the memory is in the plan, whatever machine this is.
    compiled = jax.jit(jax.grad(total)).lower(*args).compile()
    analysis: Any = compiled.memory_analysis()
    return int(analysis.temp_size_in_bytes)
