"""The lifted loops and maps over modules: scan, vmap, remat_scan, while_loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from ..core.filters import Filter
from ..lift import loops, mapping, recurrence
from .lifted import call_functions, lift_target, remembered, with_arguments

Target = TypeVar("Target", bound=Callable[..., Any])
Carry = TypeVar("Carry")


@remembered
def scan(
    target: Target,
    variable_axes: Mapping[Filter, Any] = {},
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    split_rngs: Mapping[Filter, bool] = {},
    in_axes: Any = 0,
    out_axes: Any = 0,
    length: int | None = None,
    reverse: bool = False,
    unroll: int | bool = 1,
    data_transform: Callable[..., Any] | None = None,
    metadata_params: Mapping[Any, Any] = {},
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] | None = None,
    _split_transpose: bool = False,
    check_constancy_invariants: bool = True,
) -> Target:
    """Lifts `jax.lax.scan` to modules: runs one module as a loop.

    The body is called as ``body(module, carry, *xs, **kwargs) -> (carry, ys)``.
    The loop is the Python loop

    .. code-block:: python

      ys = []
      for i in range(length):
          carry, y = body(layer[i], carry, *(x[i] for x in xs), **kwargs)
          ys.append(y)
      return carry, stack(ys)

    in which ``layer[i]`` sees three kinds of variables: one slice per iteration
    (``variable_axes``), the same in each (``variable_broadcast``), or what the
    iteration before left (``variable_carry``). A collection in none of them does
    not enter the loop; writing one is an error.

    Args:
      target: a module class, or a function whose first argument is a module.
      variable_axes: collection -> the axis along which its variables are
        stacked; ``In(axis)`` and ``Out(axis)`` for one direction only.
      variable_broadcast: collections that all iterations share. A variable made
        in the loop must not depend on the carry or on a scanned value.
      variable_carry: collections handed from one iteration to the next.
      split_rngs: stream -> True for another key in each iteration, False for the
        same. A stream that is not named does not enter the loop.
      in_axes: the axis of ``xs`` to scan over, a prefix tree of them;
        ``broadcast`` hands a whole value to each iteration.
      out_axes: where the axis goes in ``ys``, a prefix tree of them;
        ``broadcast`` for a value that is the same in each iteration.
      length: the number of iterations, where ``xs`` and the variables don't tell.
      reverse: whether to go from the last slice to the first.
      unroll: how many iterations to put into one step of the compiled loop; True or 0
        for all of them.
      data_transform: ``(variable_groups, rng_groups) -> (variable_groups,
        rng_groups)``, applied inside the loop, for sharding annotations. The
        groups are those of ``variable_broadcast``, ``variable_carry`` and each
        axis; and of the shared and the split streams.
      metadata_params: handed to boxed variables, which add and remove the name
        of the axis: ``{nn.PARTITION_NAME: 'layers'}``.
      methods: for a class, the methods to lift instead of ``__call__``; or method
        name -> the arguments of its lift.

    Returns:
      the lifted class or function.

    Raises:
      CarryError: the carry changes its structure, shape or dtype.
      BodyReturnError: the body does not return a pair.
      LengthError: the length is unknown, contradictory or negative.
      AxisError, AxesTreeError: an axis or a tree of axes doesn't fit.
      LoopDependentError: something broadcast depends on the loop.
      UnnamedCollectionError: a write would be lost.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     features: int
      ...     @nn.compact
      ...     def __call__(self, x, _):
      ...         return nn.relu(nn.Dense(self.features)(x)), None
      >>> Layers = nn.scan(
      ...     Block, variable_axes={'params': 0}, split_rngs={'params': True}, length=3)
      >>> x = jax.numpy.ones(4)
      >>> variables = Layers(features=4).init(jax.random.key(0), x, None)
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'Dense_0': {'bias': (3, 4), 'kernel': (3, 4, 4)}}}
      >>> y, _ = Layers(features=4).apply(variables, x, None)
      >>> y.shape
      (4,)
    """
    arguments = {
        "variable_axes": variable_axes,
        "variable_broadcast": variable_broadcast,
        "variable_carry": variable_carry,
        "split_rngs": split_rngs,
        "in_axes": in_axes,
        "out_axes": out_axes,
        "length": length,
        "reverse": reverse,
        "unroll": unroll,
        "data_transform": data_transform,
        "metadata_params": metadata_params,
        "_split_transpose": _split_transpose,
        "check_constancy_invariants": check_constancy_invariants,
    }
    return lift_target("Scan", target, *with_arguments("scan", loops.scanner, arguments, methods))


@remembered
def vmap(
    target: Target,
    variable_axes: Mapping[Filter, Any] = {},
    split_rngs: Mapping[Filter, bool] = {},
    in_axes: Any = 0,
    out_axes: Any = 0,
    axis_size: int | None = None,
    axis_name: str | None = None,
    spmd_axis_name: str | None = None,
    metadata_params: Mapping[Any, Any] = {},
    methods: Iterable[str] | Mapping[str, Mapping[str, Any]] | None = None,
) -> Target:
    """Lifts `jax.vmap` to modules: writes a module for one example, runs it for a batch.

    The result equals the Python loop

    .. code-block:: python

      return stack([body(copy[i], *(a[i] for a in args), **kwargs) for i in range(axis_size)])

    in which ``copy[i]`` has its own slice of the collections with an axis and
    shares those whose axis is None.

    Args:
      target: a module class, or a function whose first argument is a module.
      variable_axes: collection -> the axis along which its variables are
        stacked, None to share them; ``In``/``Out`` for one direction only.
      split_rngs: stream -> True for another key for each example, False for the
        same. A stream that is not named does not go in.
      in_axes: the axis of the arguments to map over, a prefix tree of them; None
        hands the whole value to each example.
      out_axes: where the axis goes in the result, a prefix tree of it; None for
        a value that is the same for each example.
      axis_size: the size of the axis, where the arguments and variables don't
        tell.
      axis_name: a name for collectives such as ``jax.lax.pmean``.
      spmd_axis_name: as in `jax.vmap`.
      metadata_params: handed to boxed variables, which add and remove the name
        of the axis.
      methods: as in `scan`.

    Keyword arguments of the call go to each example as they are.

    Returns:
      the lifted class or function.

    Raises:
      LengthError: the size is unknown, contradictory or negative.
      AxisError, AxesTreeError: an axis or a tree of axes doesn't fit.
      LoopDependentError: something shared differs from example to example.
      UnnamedCollectionError: a write would be lost.

    Example:
      >>> import jax, liftax as nn
      >>> Ensemble = nn.vmap(
      ...     nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True},
      ...     in_axes=None, axis_size=5)
      >>> variables = Ensemble(2).init(jax.random.key(0), jax.numpy.ones(3))
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'bias': (5, 2), 'kernel': (5, 3, 2)}}
    """
    arguments = {
        "variable_axes": variable_axes,
        "split_rngs": split_rngs,
        "in_axes": in_axes,
        "out_axes": out_axes,
        "axis_size": axis_size,
        "axis_name": axis_name,
        "spmd_axis_name": spmd_axis_name,
        "metadata_params": metadata_params,
    }
    return lift_target("Vmap", target, *with_arguments("vmap", mapping.mapper, arguments, methods))


@remembered
def remat_scan(
    target: Target,
    lengths: Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    variable_broadcast: Filter = False,
    variable_carry: Filter = False,
    variable_axes: Mapping[Filter, Any] = {True: 0},
    split_rngs: Mapping[Filter, bool] = {True: True},
) -> Target:
    """Scans a layer over depth and recomputes its activations in the backward pass.

    With more than one length the loops are nested: what is stored grows with the
    sum of the lengths while the depth is their product (Chen et al. 2016,
    https://arxiv.org/abs/1604.06174). With one length each layer is recomputed.

    Args:
      target: a module class or a function of a module, ``(module, x) -> x``.
      lengths: the number of iterations of each level, outermost first.
      policy: what may be stored, from ``jax.checkpoint_policies``.
      variable_broadcast, variable_carry, variable_axes, split_rngs: as in `scan`.

    Returns:
      the lifted class or function; variables get one axis per level.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return nn.relu(nn.Dense(x.shape[-1])(x))
      >>> Deep = nn.remat_scan(Block, lengths=(4, 5))
      >>> variables = Deep().init(jax.random.key(0), jax.numpy.ones(3))
      >>> variables['params']['Dense_0']['kernel'].shape
      (4, 5, 3, 3)
    """
    return lift_target(
        "Remat_scan",
        target,
        lambda fn: recurrence.remat_scan(
            fn,
            lengths=lengths,
            policy=policy,
            variable_broadcast=variable_broadcast,
            variable_carry=variable_carry,
            variable_axes=variable_axes,
            split_rngs=split_rngs,
        ),
    )


def while_loop(
    cond_fn: Callable[[Any, Carry], Any],
    body_fn: Callable[[Any, Carry], Carry],
    mdl: Any,
    init: Carry,
    carry_variables: Filter = False,
    broadcast_variables: Filter = True,
    split_rngs: Mapping[Filter, bool] = {},
) -> Carry:
    """Lifts `jax.lax.while_loop` to functions of a module.

    It equals ``while cond_fn(mdl, carry): carry = body_fn(mdl, carry)``.

    Args:
      cond_fn: ``(mdl, carry) -> bool``.
      body_fn: ``(mdl, carry) -> carry``.
      mdl: a bound module, or a container of them.
      init: the first carry.
      carry_variables: collections that the body may write; their variables must
        exist before the loop.
      broadcast_variables: collections that it may read.
      split_rngs: stream -> True for another key in each iteration.

    Returns:
      the last carry.

    Example:
      >>> import jax, liftax as nn
      >>> class Count(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, n):
      ...         steps = self.variable('state', 'steps', lambda: 0)
      ...         def below(mdl, i):
      ...             return i < n
      ...         def step(mdl, i):
      ...             mdl.put_variable('state', 'steps', mdl.get_variable('state', 'steps') + 1)
      ...             return i * 2
      ...         return nn.while_loop(below, step, self, 1, carry_variables='state')
      >>> i, variables = Count().apply({'state': {'steps': 0}}, 9, mutable='state')
      >>> int(i), int(variables['state']['steps'])
      (16, 4)
    """
    bodies, scopes, (start,) = call_functions("while_loop", [cond_fn, body_fn], mdl, (init,))
    return recurrence.while_loop(
        bodies[0], bodies[1], scopes, start, carry_variables, broadcast_variables, split_rngs
    )
