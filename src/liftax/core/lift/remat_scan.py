"""A deep loop whose backward pass keeps little: scans in scans, each rematerialised."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence

from ...errors import LengthError
from ..filters import Filter
from ..roles import VariableAxes
from ..types import Fn, Function, Tree
from .options import lift_of
from .remat import Remat
from .scan import Scan

__all__ = ["remat_scan"]


@dataclasses.dataclass(frozen=True, eq=False)
class RematScan:
    """`liftax.remat_scan` over a function of a scope.

    Args:
      body_fn: one layer, ``(scope, carry) -> carry``.

    The other arguments are those of `liftax.remat_scan`.

    Returns:
      ``(scope, carry) -> carry``.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from liftax.core import init, lift
      >>> def layer(scope, x):
      ...     return jnp.sin(x @ scope.param('w', jax.random.normal, (3, 3)))
      >>> _, variables = init(lift.remat_scan(layer, (4, 5)))(jax.random.key(0), jnp.ones(3))
      >>> variables['params']['w'].shape
      (4, 5, 3, 3)
    """

    lengths: Sequence[int]
    policy: Callable[..., bool] | None = None
    variable_broadcast: Filter = False
    variable_carry: Filter = False
    variable_axes: VariableAxes = dataclasses.field(default_factory=lambda: {True: 0})
    split_rngs: Mapping[Filter, bool] = dataclasses.field(default_factory=lambda: {True: True})

    def __post_init__(self) -> None:
        # What contradicts itself is refused where the user wrote it, not when it is called.
        self.loops  # noqa: B018

    @functools.cached_property
    def loops(self) -> list[Scan]:
        """The scan of each level, the innermost first."""
        options = {
            name: getattr(self, name)
            for name in ("variable_axes", "variable_broadcast", "variable_carry", "split_rngs")
        }
        return [Scan(**options, length=length) for length in reversed(_levels(self.lengths))]

    def __call__(self, fn: Fn) -> Fn:
        def named(level: Function) -> Function:
            """Gives a level the name of what the user lifted, for messages and the layout."""
            level.__name__ = getattr(fn, "__name__", "body")
            level.__wrapped__ = fn  # type: ignore[attr-defined]
            return level

        def once(scope: Tree, carry: Tree) -> tuple[object, None]:
            return fn(scope, carry), None

        # The innermost layers are stored where a level outside recomputes them, and
        # recomputed where there is none. A scan may share work between its two passes.
        again = Remat(policy=self.policy, prevent_cse=False)
        innermost, *outer = self.loops
        run = named(once)
        run = named(innermost(run if outer else named(again(run))))
        for loop in outer:
            run = named(loop(named(again(run))))

        def whole(scope: Tree, carry: Tree) -> object:
            return run(scope, carry)[0]  # type: ignore[index]

        return whole  # type: ignore[return-value]


remat_scan = lift_of("remat_scan", RematScan, "body_fn")


def _levels(lengths: object) -> tuple[int, ...]:
    """Returns ``lengths``, checked."""
    if isinstance(lengths, str) or not isinstance(lengths, Iterable):
        raise LengthError(
            f"remat_scan: lengths expected one length for each level, e.g. (4, 5), or (20,) for "
            f"one level; found {type(lengths).__name__}"
        )
    levels = tuple(lengths)
    if not levels:
        raise LengthError("remat_scan: lengths is empty; expected one length for each level")
    for level in levels:
        if isinstance(level, bool) or not hasattr(level, "__index__"):
            raise LengthError(
                f"remat_scan: lengths expected ints, one for each level; found "
                f"{type(level).__name__} among them"
            )
        if level.__index__() < 0:
            raise LengthError(f"remat_scan: lengths={levels}: {level} is negative")
    return levels
