"""A lift with its options: a value, made once, called with each function that it lifts.

The options of a lift are the fields of one frozen class, and stand nowhere else in the core: the
function of the lift's name has its signature and its documentation from the class, and the lifts
of modules make an instance of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol

from ..types import Fn, Function

P = ParamSpec("P")


class Lifting(Protocol):
    """A lift with its options."""

    def __call__(self, fn: Fn, /) -> Fn: ...


def lift_of(
    name: str, options: Callable[P, Lifting], first: str = "fn"
) -> Callable[Concatenate[Fn, P], Fn]:
    """Returns the lift ``name`` as a function of what is lifted and then of the class's options.

    Args:
      first: what its first argument is called.
    """
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    lifted = inspect.Parameter(first, kind, annotation=Function)
    parameters = [lifted, *inspect.signature(options).parameters.values()]
    signature = inspect.Signature(parameters, return_annotation=Function)

    def lift(*args: object, **kwargs: object) -> Function:
        # Bound here, so that a wrong argument is told as one of the lift.
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}() {error}") from None
        fn = given.pop(first)
        return options(**given)(fn)  # type: ignore[call-arg]

    lift.__signature__ = signature  # type: ignore[attr-defined]
    lift.__name__ = lift.__qualname__ = name
    lift.__doc__, lift.__module__ = options.__doc__, options.__module__
    return lift  # type: ignore[return-value]
