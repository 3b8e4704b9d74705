"""Modules of flax.linen among those of liftax: known without importing flax, and told."""

from __future__ import annotations

from ..errors import ForeignModuleError

_UNBOUND = ("CallCompactUnboundModuleError", "CallSetupUnboundModuleError")


def is_linen_class(cls: type) -> bool:
    """Tells whether a class is one of flax's modules."""
    return any((c.__module__, c.__name__) == ("flax.linen.module", "Module") for c in cls.__mro__)


def refuse_linen(error: BaseException, where: str) -> None:
    """Raises ForeignModuleError where flax says that a module of its own is not bound.

    Args:
      error: what a method of a module raised.
      where: the module.
    """
    kind = type(error)
    if kind.__module__ != "flax.errors" or kind.__name__ not in _UNBOUND:
        return
    raise ForeignModuleError(refusal(where, _called(error))) from error


def refusal(where: str, name: str) -> str:
    """What to write in the place of a Linen module.

    Example:
      >>> print(refusal('scan', 'Dense'))
      scan: Dense is a module of flax.linen, which has no place among those of liftax.
      expected: nn.from_linen(Dense(...)), or of the class nn.from_linen(Dense); or liftax's own
    """
    return (
        f"{where}: {name} is a module of flax.linen, which has no place among those of liftax.\n"
        f"expected: nn.from_linen({name}(...)), or of the class nn.from_linen({name}); or liftax's "
        f"own"
    )


def _called(error: BaseException) -> str:
    """The class of the Linen module whose call the error came out of."""
    found = "it"
    frame = error.__traceback__
    while frame is not None:
        owner = frame.tb_frame.f_locals.get("self")
        if is_linen_class(type(owner)):
            found = type(owner).__name__
        frame = frame.tb_next
    return found
