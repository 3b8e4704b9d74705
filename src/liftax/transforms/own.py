"""Lifts of one's own over modules: from pure functions, and as Linen has them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ..core.filters import Filter
from ..core.lift.own import Lift, Transform
from ..core.roles import In, Out
from ..core.types import Fn, Metadata
from .target import lift_target, remembered

__all__ = ["lift"]


def lift(
    transform: Transform | None = None,
    variables: Filter | Mapping[str, Filter | In[Filter] | Out[Filter]] = True,
    rngs: Filter | Mapping[str, Filter] = True,
    axes: Mapping[str, int] = {},
    size: int | None = None,
    metadata_params: Metadata = {},  # noqa: B006
    first: Callable[..., tuple[object, ...]] | None = None,
    name: str | None = None,
) -> Callable[..., Any]:
    """A lift of one's own, from a transformation of pure functions.

    The module's method, or the function of a module, is there a pure function: all variables and
    keys that it may use go in, all that it writes comes out, and any transformation of JAX may be
    put around it.

    Args:
      transform: called as ``transform(body, variables, keys, *args, **kwargs)`` with the arguments
        of the lifted method. ``body(variables, keys, *args, **kwargs)`` returns a pair: what the
        method returns, and what it wrote. ``transform`` returns such a pair: what the lifted
        method returns, and what becomes of what was written. ``variables``, ``keys`` and what was
        written are pytrees. Without it, what is returned is a decorator of such a function.
      variables: which collections the body has. All that are named here go in and come out;
        ``nn.In('params')`` only goes in. A mapping gives them by role, ``{'weights': 'params',
        'rest': True}``: then ``variables`` and what was written are dicts of the same roles.
      rngs: which streams; by role like the variables.
      axes: role -> the axis that its variables have outside of the body and not inside. The keys of
        such a role are ``size`` keys of each stream, stacked along a first axis.
      size: the length of the axis, where there is one.
      metadata_params: what the axis is called in boxed variables,
        ``{nn.PARTITION_NAME: 'experts'}``.
      first: where a transformation cannot make variables (a loop that may run zero times, an ODE
        solver), a function of the arguments of the lifted method that returns those with which
        ``init`` calls the method once before, as it is.
      name: the lift's name in messages and in the layout; that of ``transform``, if not given.

    Returns:
      the lift: called with a module class, or a function whose first argument is a module, and,
      for a class, with ``methods=``, the names of the methods to lift. It returns the lifted one.

    Raises:
      LostWritesError: when it is called: ``transform`` does not return what the body wrote.
      UnnamedCollectionError: when it is called: the body uses a collection that is not named.
      LiftOptionError: an axis without a size.

    Example:
      `jax.linearize` as a lift: the function and its linear approximation, of one trace.

      >>> import jax, liftax as nn
      >>> @nn.lift
      ... def linearize(body, variables, keys, x):
      ...     y, tangent, written = jax.linearize(
      ...         lambda x: body(variables, keys, x), x, has_aux=True)
      ...     return (y, tangent), written
      >>> class Model(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         y, tangent = linearize(lambda dense, x: nn.tanh(dense(x)))(nn.Dense(2), x)
      ...         return y + tangent(x)
      >>> x = jax.numpy.ones(3)
      >>> variables = Model().init(jax.random.key(0), x)
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'Dense_0': {'bias': (2,), 'kernel': (3, 2)}}}
    """
    if transform is None:
        return functools.partial(
            lift, variables=variables, rngs=rngs, axes=axes, size=size, first=first, name=name,
            metadata_params=metadata_params,
        )  # fmt: skip
    options = Lift(transform, variables, rngs, axes, size, metadata_params, first, name)

    def lifted(target: Fn, methods: Iterable[str] | None = None, *, of: Lift) -> Fn:
        return lift_target(of.lift, target, of, methods)

    # What is remembered of a class is told apart by the arguments, and so by the lift itself: two
    # lifts may have one name.
    return functools.partial(remembered(lifted), of=options)
