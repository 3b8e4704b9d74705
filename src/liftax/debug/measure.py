"""What a program costs: by the compiler's own analysis, and by a clock."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from ..core.trees import abstract
from ..layout.cost import cost_of
from ..layout.data import Cost
from ..module.work import lowered
from ..pytrees import floats, is_inexact, joined, parted, with_floats

if TYPE_CHECKING:
    from jax.stages import Compiled

Clock = Callable[[], float]
"""Seconds since some moment, as `time.perf_counter` has them."""


@dataclass(frozen=True)
class Pass:
    """One pass through a program.

    Attributes:
      cost: FLOPs, bytes and memory, as the compiler counts them.
      seconds: of one run, the best of several; None where nothing ran.
    """

    cost: Cost
    seconds: float | None


@dataclass(frozen=True)
class Meter:
    """Measures programs.

    Attributes:
      clock: what time it is.
      repeats: how often a program runs; 0 to compile it alone.
    """

    clock: Clock
    repeats: int

    def measured(self, closed: jex.ClosedJaxpr) -> Pass:
        """Compiles a program, and runs it on numbers that are made up."""
        compiled = lowered(closed).compile()
        inputs = [made_up(aval) for aval in closed.in_avals] if self.repeats else []
        return Pass(cost_of(closed, compiled), self.timed(compiled, inputs))

    def timed(self, compiled: Compiled, inputs: Sequence[object]) -> float | None:
        """Seconds of the fastest run: what else the machine does only ever adds to it."""
        times: list[float] = []
        if self.repeats:
            # Caches warm up in the first one, which is no measure.
            jax.block_until_ready(compiled(*inputs))
        for _ in range(self.repeats):
            begin = self.clock()
            jax.block_until_ready(compiled(*inputs))
            times.append(self.clock() - begin)
        return min(times, default=None)


def made_up(shape: jax.ShapeDtypeStruct) -> jax.Array:
    """An array of some shape and dtype: normal numbers, zeros where they count, True, keys.

    Example:
      >>> made_up(jax.ShapeDtypeStruct((2,), 'int32')).tolist()
      [0, 0]
    """
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        impls: list[Hashable] = []
        # JAX tells it of a key alone, which one that is traced is.
        jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), abstract(shape))
        return jax.random.split(jax.random.key(0, impl=impls[0]), shape.shape)
    if is_inexact(shape):
        # Not zeros: what is denormal, or divides by nothing, takes times of its own.
        numbers = np.random.default_rng(0).standard_normal(shape.shape, dtype=np.float32)
        return jnp.asarray(numbers, shape.dtype)
    return jnp.full(shape.shape, shape.dtype == bool, shape.dtype)


def with_gradient(
    closed: jex.ClosedJaxpr, by: Sequence[bool] | None = None
) -> jex.ClosedJaxpr | None:
    """A program with its backward pass: outputs, and the gradient of their sum.

    Args:
      closed: the program.
      by: for each input whether there is a gradient by it; by all, if not given.

    Returns:
      the program; None where no output or no input has a derivative.
    """
    run, avals = jex.jaxpr_as_fun(closed), list(map(abstract, closed.in_avals))
    wanted = [True] * len(avals) if by is None else by

    def both(*inputs: jax.Array) -> object:
        moving, others = parted(inputs, wanted)

        def forward(numbers: Sequence[jax.Array]) -> list[jax.Array]:
            return floats(run(*joined(with_floats(moving, numbers), others, wanted)))

        y, pull = jax.vjp(forward, floats(moving))
        return y, pull([jnp.ones_like(out) for out in y])

    differentiable = any(is_inexact(a) and w for a, w in zip(avals, wanted, strict=True))
    if not differentiable or not any(map(is_inexact, closed.out_avals)):
        return None
    return jax.make_jaxpr(both)(*avals)
