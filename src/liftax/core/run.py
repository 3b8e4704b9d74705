"""Running functions of a scope: init, apply, bind, lazy_init."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from .. import jax_private
from ..errors import ApplyScopeInvalidVariablesStructureError, LeakedTracerError, where
from ..words import describe
from . import refusals
from .call import Call
from .filters import Filter, check_filter
from .making.program import staged
from .scope import Scope
from .streams import Rngs, as_streams
from .trees import copy_dicts, tracers
from .types import Function


def bind(
    variables: Mapping[str, object],
    rngs: Rngs = None,
    mutable: Filter = False,
    flags: Mapping[str, object] | None = None,
) -> Scope:
    """Returns a root scope over ``variables``.

    Args:
      variables: collection -> nested mapping of variables.
      rngs: stream -> key, or one key for the stream ``params``.
      mutable: which collections may be written; those are copied.
      flags: what else the scope should say, see ``Scope.get_flag``.

    Raises:
      ApplyScopeInvalidVariablesTypeError: ``variables`` is not a mapping of mappings.
      ApplyScopeInvalidVariablesStructureError: ``{'params': {'params': ...}}``.
      InvalidRngError: something in ``rngs`` is no key.

    Example:
      >>> bind({'params': {'w': 3.0}}).param('w', lambda key: 0.0)
      3.0
    """
    if not isinstance(variables, Mapping) or not all(
        isinstance(name, str) and isinstance(node, Mapping) for name, node in variables.items()
    ):
        raise refusals.no_variables(variables)
    params = variables.get("params")
    if isinstance(params, Mapping) and len(params) == 1 and "params" in params:
        inner = params["params"]
        if isinstance(inner, Mapping):
            raise ApplyScopeInvalidVariablesStructureError(
                "variables: found {'params': {'params': ...}}, expected {'params': ...}; "
                "pass variables['params'] as variables"
            )
    check_filter(mutable, "mutable")
    root = Call(mutable, flags or {})
    # What may be written is copied, so that the caller's own stays as it is. What may not is looked
    # at where it is read: a call of one method over a large model costs what the method uses.
    nodes = {
        name: copy_dicts(node) if root.is_mutable(name) else node
        for name, node in variables.items()
    }
    return Scope(nodes, rngs, mutable=mutable, _call=root)


def apply(
    fn: Function,
    mutable: Filter = False,
    flags: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Turns a function of a scope into a function of variables.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.
      mutable: which collections may be written.
      flags: see ``bind``.

    Returns:
      ``run(variables, *args, rngs=None, **kwargs)``, which returns what ``fn``
      returns; with ``mutable`` other than False, a pair of that and the mutable
      collections afterwards.

    Example:
      >>> def double(scope, x):
      ...     return scope.param('w', lambda key: 0.0) * x
      >>> apply(double)({'params': {'w': 2.0}}, 4.0)
      8.0
    """

    def run(
        variables: Mapping[str, object],
        *args: object,
        rngs: Rngs = None,
        **kwargs: object,
    ) -> object:
        scope = bind(variables, rngs, mutable, flags)
        with scope.temporary():
            try:
                y = fn(scope, *args, **kwargs)
            except jax.errors.UnexpectedTracerError as error:
                raise refusals.escaped(error) from error
            except NameError as error:
                refusals.check_axis_name(error)
                raise
            # Before the scope ends: afterwards nothing knows of which trace its values were.
            refusals.check_returned(scope, y)
            if mutable is False:
                return y
            changed = scope.mutable_variables()
        check_no_tracers(changed)
        return y, changed

    return run


def init(
    fn: Function,
    mutable: Filter = True,
    flags: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Turns a function of a scope into one that makes its variables.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.
      mutable: which collections may be made.
      flags: see ``bind``; ``initializing`` is set besides.

    Returns:
      ``run(rngs, *args, **kwargs) -> (y, variables)``, where ``rngs`` is a key
      for the stream ``params`` or a mapping of stream to key.

    Example:
      >>> import jax
      >>> def double(scope, x):
      ...     return scope.param('w', lambda key: 3.0) * x
      >>> init(double)(jax.random.key(0), 4.0)
      (12.0, {'params': {'w': 3.0}})
    """
    run = apply(fn, mutable, {**(flags or {}), "initializing": True})

    def initialise(rngs: Rngs, *args: object, **kwargs: object) -> tuple[Any, Any]:
        out = run({}, *args, rngs=as_streams(rngs), **kwargs)
        # The pair is promised whatever may be written.
        return (out, {}) if mutable is False else out

    return initialise


def lazy_init(
    fn: Function,
    mutable: Filter = True,
    flags: Mapping[str, object] | None = None,
) -> Callable[..., Any]:
    """Like `init`, with shapes in place of inputs, and the variables alone returned.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``.
      mutable: which collections may be made.
      flags: see ``bind``.

    Returns:
      ``run(rngs, *args, **kwargs) -> variables``; arguments may be
      ``jax.ShapeDtypeStruct``. Only what makes variables is computed.

    Raises:
      LazyInitError: an initial value depends on an argument of which only the
        shape is given.

    Example:
      >>> import jax
      >>> def double(scope, x):
      ...     return scope.param('w', lambda key: jax.numpy.zeros(x.shape)) * x
      >>> v = lazy_init(double)(jax.random.key(0), jax.ShapeDtypeStruct((2,), 'float32'))
      >>> v['params']['w'].shape
      (2,)
    """
    return staged(init(fn, mutable, flags))


def check_no_tracers(variables: Mapping[str, object]) -> None:
    """Raises LeakedTracerError if a variable belongs to a trace that has ended."""
    # The trace around the call, since its own transformations have all ended.
    here = jax_private.current_trace()
    if not any(jax_private.leaks(leaf, here) for leaf in tracers(variables)):
        return  # without the paths, which take ten times as long
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if jax_private.leaks(leaf, here):
            names = [str(k.key) for k in path if isinstance(k, jax.tree_util.DictKey)]
            raise LeakedTracerError(
                f"{where(names[1:-1])}: variable {names[-1]!r} of collection {names[0]!r} is a "
                f"tracer of a transformation that has ended ({describe(leaf)}). Return the "
                f"value from the transformed function instead of storing it."
            )
