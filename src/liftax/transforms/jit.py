"""A module compiled once for equal fields and shapes."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.filters import Filter
from ..core.lift.jit import Jit
from ..core.types import Fn
from .static_arguments import counted
from .target import lift_target, remembered

__all__ = ["jit"]


@remembered
def jit(
    target: Fn,
    variables: Filter = True,
    rngs: Filter = True,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Iterable[int] = (),
    device: object = None,
    backend: str | None = None,
    methods: Iterable[str] | None = None,
    inline: bool = False,
) -> Fn:
    """Lifts `jax.jit` to modules.

    Equal modules share one program: the cache compares fields by value and type,
    and leaves names out. It belongs to the lifted class and goes with it.

    Args:
      target: a module class, or a function whose first argument is a module.
      variables: the collections that go in; writing another is an error.
      rngs: the streams that go in. One key of each is drawn outside and is the
        base of the keys inside. Modules from outside (in fields, as arguments) draw from the
        stream without their path, as in Linen, so two that make their variables in here
        start identical: call those outside first.
      static_argnums: positions of static arguments, counted as in `remat`.
      static_argnames: names of static arguments, as in `remat`.
      donate_argnums: positions of arguments whose buffers may be reused.
      device, backend, inline: as in `jax.jit`.
      methods: for a class, the methods to lift instead of ``__call__``.

    Returns:
      the lifted class or function.

    Raises:
      StaticArgumentError: a position is out of range, or a static argument or
        field is not hashable.

    Example:
      >>> import jax, liftax as nn
      >>> Fast = nn.jit(nn.Dense)
      >>> variables = Fast(2).init(jax.random.key(0), jax.numpy.ones(3))
      >>> Fast(2).apply(variables, jax.numpy.ones((4, 3))).shape
      (4, 2)
    """
    options = Jit(
        variables, rngs, static_argnames=static_argnames, device=device, backend=backend,
        inline=inline,
    )  # fmt: skip
    # For the life of the lifted class or function. A program is told apart by its method too, so
    # that all methods can share the programs.
    lift = counted(options, static_argnums=static_argnums, donate_argnums=donate_argnums)
    return lift_target("jit", target, lift, methods)
