"""A lift with its options: a value, made once, called with each function that it lifts.

The options of a lift are the fields of one frozen class, and stand nowhere else in the core: the
function of the lift's name has its signature and its documentation from the class, and the lifts
of modules make an instance of it. What the lift does is the method `run` of the class.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol

from ..filters import Filter
from ..roles import Roles, through_roles
from ..types import Fn, Function, Tree
from .checks import check_options

P = ParamSpec("P")


class Lifting(Protocol):
    """A lift with its options."""

    def __call__(self, fn: Fn, /) -> Fn: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Options:
    """The options of a lift, and what it does.

    Attributes:
      lift: the lift's name.
    """

    lift: ClassVar[str]

    def __post_init__(self) -> None:
        # What contradicts itself is refused where the user wrote it, not when it is called.
        self.roles  # noqa: B018
        check_options(self.lift, vars(self))

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        raise NotImplementedError

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a function under the lift."""
        raise NotImplementedError

    def __call__(self, fn: Fn) -> Fn:
        return functools.partial(self.run, fn)  # type: ignore[return-value]


@dataclasses.dataclass(frozen=True, eq=False)
class Through(Options):
    """The options of a lift that adds no axis: what goes in, and comes out again."""

    variables: Filter = True
    rngs: Filter = True

    @functools.cached_property
    def roles(self) -> Roles:
        """The table."""
        return through_roles(self.lift, self.variables, self.rngs)


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
