"""A module whose intermediates are computed again in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..core.filters import Filter
from ..core.lift.remat import Remat
from ..core.lift.static_arguments import positional
from ..errors import StaticArgumentError
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
    lift: str, argument: str, numbers: int | Iterable[int]
) -> Callable[[Any, tuple[Any, ...]], tuple[int, ...]]:
    """Returns the argument numbers, without the module, for a body and the arguments of a call.

    Linen's way of counting: the module is number 0, of a class as of a function; negative numbers
    count from the end of the signature, and where that takes any number of arguments, of the call.
    """
    given = _numbers(lift, argument, numbers)

    def counted(body: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
        known = positional(body.method)
        last = len(args) if known == math.inf else int(known) - 1
        found = []
        for number in given:
            place = number if number >= 0 else last + 1 + number
            if not 0 <= place < max(known, len(args) + 1):
                raise StaticArgumentError(
                    f"{body.detached.scopes[0].where()}, {lift} of {body.__name__}: {argument} "
                    f"has {number}, and there are {last} arguments after the module.\n"
                    f"expected: 1 to {last}, or {-last} to -1 from the end; 0 is the module itself"
                )
            # What is left to its default has no buffer to be donated.
            if place and not (argument == "donate_argnums" and place > len(args)):
                found.append(place - 1)
        return tuple(found)

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
      static_argnums: the positions of arguments that are not traced, counted as in Linen: ``0``
        is the module, ``1`` the first argument after it. Negative ones count from the end of
        the signature.
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
      >>> block = nn.remat(Block, static_argnums=2)()
      >>> x = jax.numpy.ones(3)
      >>> variables = block.init(jax.random.key(0), x, False)
      >>> block.apply(variables, x, True, rngs={'dropout': jax.random.key(1)}).shape
      (4,)
    """
    counted = _counted("remat", "static_argnums", static_argnums)

    rematted = Remat(
        variables,
        rngs,
        concrete,
        prevent_cse,
        policy=policy,
        static_argnames=static_argnames,
    )

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
    rematted = Remat(variables, rngs, concrete, prevent_cse, numbers, policy)
    return lift_target("Core_remat_static", target, rematted, methods)
