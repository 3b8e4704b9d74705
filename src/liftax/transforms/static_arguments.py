"""The numbers of arguments, as users of a lift count them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

from ..core.lift.options import Options
from ..core.lift.static_arguments import positional
from ..core.scope import Scope
from ..core.types import Function
from ..errors import StaticArgumentError
from .target import Body, CoreLift

Numbers = int | Iterable[int]


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


def counted(options: Options, **given: Numbers) -> CoreLift:
    """Returns a lift whose arguments have the numbers that users of modules give them.

    Which arguments are meant depends on the body, and on how many a call has.

    Args:
      options: the lift, without those numbers.
      **given: the numbers, by the option that has them.
    """
    numbers = {name: positions(options.lift, name, n) for name, n in given.items()}
    made: dict[tuple[tuple[int, ...], ...], Options] = {}

    def lift(fn: Body) -> Function:
        def run(scopes: Sequence[Scope], *args: object, **kwargs: object) -> object:
            found = {name: _of_call(options.lift, name, n, fn, args) for name, n in numbers.items()}
            key = tuple(found.values())
            if key not in made:
                made[key] = dataclasses.replace(options, **found)
            return made[key](fn)(scopes, *args, **kwargs)

        return run

    return lift


def _of_call(
    lift: str, argument: str, given: Iterable[int], body: Body, args: tuple[object, ...]
) -> tuple[int, ...]:
    """Returns the numbers of the arguments that are meant, without the module.

    Linen's way of counting: the module is number 0, of a class as of a function; negative numbers
    count from the end of the signature, and where that takes any number of arguments, of the call.
    """
    _, most = positional(body.method)
    # By the signature, so that a number means the same argument in every call.
    last = len(args) if most == math.inf else int(most)
    found = []
    for number in given:
        place = number if number >= 0 else last + 1 + number
        if not 0 <= place <= max(most, len(args)):
            raise StaticArgumentError(
                f"{body.detached.scopes[0].where()}, {lift} of {body.__name__}: {argument} "
                f"has {number}, and there are {last} arguments after the module.\n"
                f"expected: 1 to {last}, or {-last} to -1 from the end; 0 is the module itself"
            )
        # What is left to its default has no buffer to be donated.
        if place and not (argument == "donate_argnums" and place > len(args)):
            found.append(place - 1)
    return tuple(found)
