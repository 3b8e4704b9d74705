"""The numbers of arguments, as users of a lift count them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from ..core.lift.static_arguments import positional
from ..errors import StaticArgumentError
from .target import Body

Numbers = int | Iterable[int]
Counted = Callable[[Body, tuple[object, ...]], tuple[int, ...]]
"""Of the arguments of a call, without the module, those that are meant."""


def positions(lift: str, argument: str, numbers: Numbers) -> tuple[int, ...]:
    """Returns the numbers of arguments as a tuple.

    Raises:
      StaticArgumentError: one is no number.
    """
    # A text can be gone through as well, and would be taken for its letters.
    given = (numbers,) if isinstance(numbers, (int, str)) else tuple(numbers)
    for number in given:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            names = " For names there is static_argnames" * (argument == "static_argnums")
            raise StaticArgumentError(
                f"{lift}: {argument} expected positions, as ints; found {type(number).__name__}."
                f"{names}"
            )
    return tuple(number.__index__() for number in given)


def counted(lift: str, argument: str, numbers: Numbers) -> Counted:
    """Returns the argument numbers, without the module, for a body and the arguments of a call.

    Linen's way of counting: the module is number 0, of a class as of a function; negative numbers
    count from the end of the signature, and where that takes any number of arguments, of the call.
    """
    given = positions(lift, argument, numbers)

    def of_call(body: Body, args: tuple[object, ...]) -> tuple[int, ...]:
        known = positional(body.method)
        # By the signature, so that a number means the same argument in every call.
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

    return of_call
