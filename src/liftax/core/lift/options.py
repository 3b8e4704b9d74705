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


def lift_of(name: str, options: Callable[P, Lifting]) -> Callable[Concatenate[Fn, P], Fn]:
    """Returns the lift ``name`` as a function of what is lifted and then of the class's options."""

    def lift(fn: Fn, *args: P.args, **kwargs: P.kwargs) -> Fn:
        return options(*args, **kwargs)(fn)

    first = inspect.Parameter("fn", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Function)
    signature = inspect.signature(options)
    parameters = [first, *signature.parameters.values()]
    lift.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=parameters, return_annotation=Function
    )
    lift.__name__ = lift.__qualname__ = name
    lift.__doc__, lift.__module__ = options.__doc__, options.__module__
    return lift  # type: ignore[return-value]
