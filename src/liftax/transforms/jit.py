"""A module compiled once for equal fields and shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.filters import Filter
from ..core.lift.jit import Jit
from .remat import _counted
from .target import CoreLift, lift_target, no_arguments, remembered
from .views import Target


@remembered
def jit(
    target: Target,
    variables: Filter = True,
    rngs: Filter = True,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Iterable[int] = (),
    device: Any = None,
    backend: str | None = None,
    methods: Iterable[str] | None = None,
    inline: bool = False,
) -> Target:
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
    counted = _counted("jit", "static_argnums", static_argnums)
    donated = _counted("jit", "donate_argnums", donate_argnums)

    def make() -> CoreLift:
        # One cache for each method, kept for the life of the lifted class.
        engines: dict[Any, Jit] = {}

        def lift(fn: Callable[..., Any]) -> Callable[..., Any]:
            def run(scopes: Any, *args: Any, **kwargs: Any) -> Any:
                numbers = counted(fn, args), donated(fn, args)
                if numbers not in engines:
                    static, donate = numbers
                    engines[numbers] = Jit(
                        variables, rngs, static, static_argnames, donate, device, backend, inline
                    )
                return engines[numbers](fn)(scopes, *args, **kwargs)

            return run

        return lift

    if isinstance(methods, Mapping):
        raise no_arguments("Jit")
    if isinstance(target, type) and not isinstance(methods, (str, type(None))):
        return lift_target("Jit", target, make(), {m: {} for m in methods}, lambda _: make())
    return lift_target("Jit", target, make(), methods)
