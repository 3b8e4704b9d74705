"""A module whose intermediates are computed again in the backward pass."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np

from ..core.filters import Filter
from ..core.lift.remat import rematter
from ..core.lift.static_arguments import positional
from ..errors import LiftWarning, StaticArgumentError
from .target import lift_target, remembered
from .views import Target


def _numbers(lift: str, argument: str, numbers: int | Iterable[int]) -> tuple[int, ...]:
    given = (numbers,) if isinstance(numbers, (int, str)) else tuple(numbers)
    for number in given:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            names = " For names there is static_argnames" * (argument == "static_argnums")
            raise StaticArgumentError(
                f"{lift}: {argument} expected positions, as ints; found {type(number).__name__}."
                f"{names}"
            )
    return tuple(number.__index__() for number in given)


def _counted(
    target: Any, lift: str, argument: str, numbers: int | Iterable[int]
) -> Callable[[Any, tuple[Any, ...]], tuple[int, ...]]:
    """Returns the argument numbers, without the module, for a body and the arguments of a call.

    A function is called with the module, so the module is number 0. A module is
    called without it. Linen counts it there too: a number that only Linen's way
    of counting has is taken that way, with a warning.
    """
    given = _numbers(lift, argument, numbers)
    if not isinstance(target, type):
        if 0 in given:
            raise StaticArgumentError(
                f"{lift}: {argument} has 0, which is the module itself; the arguments after it "
                f"count from 1"
            )

        def after(fn: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
            passed = []
            for n in given:
                if -len(args) <= n <= len(args):
                    passed.append(n - 1 if n > 0 else n)
                elif 0 < n < positional(target):
                    passed.append(n - 1)  # left to its default, or passed by keyword
                else:
                    name = getattr(target, "__name__", "a function")
                    raise StaticArgumentError(
                        f"{lift} of {name}: {argument} has {n}, the call has {len(args)} "
                        f"positional arguments after the module; expected 1 to {len(args)}, or "
                        f"{-len(args)} to -1 from the end"
                    )
            return tuple(passed)

        return after

    def counted(fn: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
        if all(-len(args) <= n < len(args) for n in given):
            return given
        if len(args) in given and all(0 < n <= len(args) for n in given):
            shifted = tuple(n - 1 for n in given)
            # An array is not static: the argument after it is meant, which has its default.
            arrays = any(isinstance(args[n], (jax.Array, np.ndarray)) for n in shifted)
            if argument != "static_argnums" or not arrays:
                text = (
                    f"{lift} of {target.__name__}: {argument}={given} counts the module as "
                    f"argument 0, as Linen does; count the arguments of the call, "
                    f"{argument}={shifted}"
                )
                warnings.warn(LiftWarning("LX206", text), stacklevel=4)
                return shifted
        return given

    return counted


@remembered
def remat(
    target: Target,
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    methods: Iterable[str] | None = None,
    static_argnames: str | Sequence[str] = (),
) -> Target:
    """Lifts `jax.checkpoint` to modules: recomputes activations in the backward pass.

    Args:
      target: a module class, or a function whose first argument is a module.
      variables: the collections that go in; writing another is an error.
      rngs: the streams that go in. Recomputation draws the same keys.
      concrete: as in `jax.checkpoint`.
      prevent_cse: False lets the compiler share work between the two passes; safe
        inside a scan.
      static_argnums: the positions of arguments that are not traced, as the
        caller counts them: ``0`` is the first argument of a module's call, and
        the first one after the module of a function's is ``1``. Negative ones
        count from the end.
      policy: what may be stored, from ``jax.checkpoint_policies``.
      methods: for a class, the methods to lift instead of ``__call__``.
      static_argnames: the names of arguments that are not traced. A number or a
        name covers an argument whether it is passed by position or by keyword.

    Returns:
      the lifted class or function.

    Raises:
      StaticArgumentError: a position is out of range.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
      >>> block = nn.remat(Block, static_argnums=1)()
      >>> x = jax.numpy.ones(3)
      >>> variables = block.init(jax.random.key(0), x, False)
      >>> block.apply(variables, x, True, rngs={'dropout': jax.random.key(1)}).shape
      (4,)
    """
    counted = _counted(target, "remat", "static_argnums", static_argnums)

    rematted = rematter(variables, rngs, concrete, prevent_cse, policy, static_argnames)

    def lift(fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(scopes: Any, *args: Any, **kwargs: Any) -> Any:
            return rematted(fn, counted(fn, args))(scopes, *args, **kwargs)

        return run

    return lift_target("Checkpoint", target, lift, methods)


checkpoint = remat


def remat_after_module(
    target: Target,
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    methods: Iterable[str] | None = None,
) -> Target:
    """`remat` whose ``static_argnums`` count the arguments after the module, from 0.

    Args:
      static_argnums: 0 is the first argument of a module's call, and of a function the first
        after the module.

    The other arguments are those of `remat`.
    """
    numbers = _numbers("remat", "static_argnums", static_argnums)
    rematted = rematter(variables, rngs, concrete, prevent_cse, policy, ())
    return lift_target("Core_remat_static", target, lambda fn: rematted(fn, numbers), methods)
