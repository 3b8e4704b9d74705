"""Lifts of modules that stage a body or change how its variables look."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np

from ..core import metadata
from ..core.filters import Filter
from ..errors import LiftWarning, StaticArgumentError
from ..lift import collections
from ..lift import staging as core
from .lifted import CoreLift, lift_target, no_arguments, remembered
from .naming import is_module
from .state import watch

Target = TypeVar("Target", bound=Callable[..., Any])


def _numbers(lift: str, argument: str, numbers: int | Iterable[int]) -> tuple[int, ...]:
    given = (numbers,) if isinstance(numbers, (int, str)) else tuple(numbers)
    for number in given:
        if isinstance(number, bool) or not hasattr(number, "__index__"):
            names = " For names there is static_argnames" * (argument == "static_argnums")
            raise StaticArgumentError(
                f"{lift}: {argument} expected positions, as ints; found {type(number).__name__}."
                f"{names}"
            )
    return tuple(number.__index__() for number in given)


def _counted(
    target: Any, lift: str, argument: str, numbers: int | Iterable[int]
) -> Callable[[Any, tuple[Any, ...]], tuple[int, ...]]:
    """Returns the argument numbers, without the module, for a body and the arguments of a call.

    A function is called with the module, so the module is number 0. A module is
    called without it. Linen counts it there too: a number that only Linen's way
    of counting has is taken that way, with a warning.
    """
    given = _numbers(lift, argument, numbers)
    if not isinstance(target, type):
        if 0 in given:
            raise StaticArgumentError(
                f"{lift}: {argument} has 0, which is the module itself; the arguments after it "
                f"count from 1"
            )

        def after(fn: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
            passed = []
            for n in given:
                if -len(args) <= n <= len(args):
                    passed.append(n - 1 if n > 0 else n)
                elif 0 < n < core.positional(target):
                    passed.append(n - 1)  # left to its default, or passed by keyword
                else:
                    name = getattr(target, "__name__", "a function")
                    raise StaticArgumentError(
                        f"{lift} of {name}: {argument} has {n}, the call has {len(args)} "
                        f"positional arguments after the module; expected 1 to {len(args)}, or "
                        f"{-len(args)} to -1 from the end"
                    )
            return tuple(passed)

        return after

    def counted(fn: Any, args: tuple[Any, ...]) -> tuple[int, ...]:
        if all(-len(args) <= n < len(args) for n in given):
            return given
        if len(args) in given and all(0 < n <= len(args) for n in given):
            shifted = tuple(n - 1 for n in given)
            # An array is not static: the argument after it is meant, which has its default.
            arrays = any(isinstance(args[n], (jax.Array, np.ndarray)) for n in shifted)
            if argument != "static_argnums" or not arrays:
                text = (
                    f"{lift} of {target.__name__}: {argument}={given} counts the module as "
                    f"argument 0, as Linen does; count the arguments of the call, "
                    f"{argument}={shifted}"
                )
                warnings.warn(LiftWarning("LX206", text), stacklevel=4)
                return shifted
        return given

    return counted


@remembered
def remat(
    target: Target,
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    methods: Iterable[str] | None = None,
    static_argnames: str | Sequence[str] = (),
) -> Target:
    """Lifts `jax.checkpoint` to modules: recomputes activations in the backward pass.

    Args:
      target: a module class, or a function whose first argument is a module.
      variables: the collections that go in; writing another is an error.
      rngs: the streams that go in. Recomputation draws the same keys.
      concrete: as in `jax.checkpoint`.
      prevent_cse: False lets the compiler share work between the two passes; safe
        inside a scan.
      static_argnums: the positions of arguments that are not traced, as the
        caller counts them: ``0`` is the first argument of a module's call, and
        the first one after the module of a function's is ``1``. Negative ones
        count from the end.
      policy: what may be stored, from ``jax.checkpoint_policies``.
      methods: for a class, the methods to lift instead of ``__call__``.
      static_argnames: the names of arguments that are not traced. A number or a
        name covers an argument whether it is passed by position or by keyword.

    Returns:
      the lifted class or function.

    Raises:
      StaticArgumentError: a position is out of range.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x, train):
      ...         return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))
      >>> block = nn.remat(Block, static_argnums=1)()
      >>> x = jax.numpy.ones(3)
      >>> variables = block.init(jax.random.key(0), x, False)
      >>> block.apply(variables, x, True, rngs={'dropout': jax.random.key(1)}).shape
      (4,)
    """
    counted = _counted(target, "remat", "static_argnums", static_argnums)

    rematted = core.rematter(variables, rngs, concrete, prevent_cse, policy, static_argnames)

    def lift(fn: Callable[..., Any]) -> Callable[..., Any]:
        def run(scopes: Any, *args: Any, **kwargs: Any) -> Any:
            return rematted(fn, counted(fn, args))(scopes, *args, **kwargs)

        return run

    return lift_target("Checkpoint", target, lift, methods)


checkpoint = remat


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
        base of the keys inside.
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
    options = core.jit_options(device, backend, inline)
    counted = _counted(target, "jit", "static_argnums", static_argnums)
    donated = _counted(target, "jit", "donate_argnums", donate_argnums)

    def make() -> CoreLift:
        # One cache for each method, kept for the life of the lifted class.
        engines: dict[Any, core.Jit] = {}

        def lift(fn: Callable[..., Any]) -> Callable[..., Any]:
            def run(scopes: Any, *args: Any, **kwargs: Any) -> Any:
                numbers = counted(fn, args), donated(fn, args)
                if numbers not in engines:
                    static, donate = numbers
                    engines[numbers] = core.Jit(
                        variables, rngs, static, static_argnames, donate, options, drawn=True
                    )
                return engines[numbers](fn)(scopes, *args, **kwargs)

            return run

        return lift

    if isinstance(methods, Mapping):
        raise no_arguments("Jit")
    if isinstance(target, type) and not isinstance(methods, (str, type(None))):
        return lift_target("Jit", target, make(), {m: {} for m in methods}, lambda _: make())
    return lift_target("Jit", target, make(), methods)


def _unchanged(variables: Any) -> Any:
    return variables


@remembered
def map_variables(
    target: Target,
    mapped_collections: Filter = True,
    trans_in_fn: Callable[..., Any] = _unchanged,
    trans_out_fn: Callable[..., Any] = _unchanged,
    init: bool = False,
    mutable: bool = False,
    rngs: Filter = True,
    variables: Filter = True,
    methods: Iterable[str] | None = None,
) -> Target:
    """Shows a module its variables through a function.

    Args:
      target: a module class, or a function whose first argument is a module.
      mapped_collections: the collections that are mapped.
      trans_in_fn: maps the stored collections, ``{collection: variables}``, to
        those that the module sees.
      trans_out_fn: maps what the module made or wrote to what is stored.
      init: where mapped collections may be written, True runs the module on its
        variables as they are, stores what ``trans_out_fn`` makes of what it left,
        and runs it on ``trans_in_fn`` of that. One trace serves for both, but
        around another lift that makes variables, for what is sown, and where the
        mapping changes dtypes.
      mutable: whether writes to mapped collections are kept.
      rngs: the streams that go in.
      variables: which of the other collections go in.
      methods: for a class, the methods to lift instead of ``__call__``.

    Returns:
      the lifted class or function.

    Example:
      A decoder tied to its encoder sees the encoder's kernel transposed.

      >>> import jax, liftax as nn
      >>> def transpose(variables):
      ...     return jax.tree.map(lambda w: w.T, variables)
      >>> class TiedAutoEncoder(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         dense = nn.Dense(2, use_bias=False)
      ...         z = dense(x)
      ...         def decode(mdl, z):
      ...             return mdl.clone(parent=None, features=x.shape[-1]).apply(mdl.variables, z)
      ...         return nn.map_variables(decode, 'params', transpose)(dense, z)
      >>> y, variables = TiedAutoEncoder().init_with_output(
      ...     jax.random.key(0), jax.numpy.ones(5))
      >>> y.shape, jax.tree.map(jax.numpy.shape, variables['params'])
      ((5,), {'Dense_0': {'kernel': (5, 2)}})
    """
    return lift_target(
        "Map_variables",
        target,
        lambda fn: collections.map_variables(
            fn, mapped_collections, trans_in_fn, trans_out_fn, init, mutable, rngs, variables
        ),
        methods,
    )


@remembered
def fold_rngs(target: Target, variables: Filter = True, rngs: Filter = True) -> Target:
    """Derives the keys inside a module from one key of each stream, drawn at its path.

    What the module draws then depends on how many draws its path made before, and
    no longer on the paths above it being folded in one by one.

    Args:
      target: a module class, or a function whose first argument is a module.
      variables: the collections that go in.
      rngs: the streams that go in.

    Example:
      >>> import jax, liftax as nn
      >>> Folded = nn.fold_rngs(nn.Dense)
      >>> sorted(Folded(2).init(jax.random.key(0), jax.numpy.ones(3))['params'])
      ['bias', 'kernel']
    """
    return lift_target("Fold_rngs", target, collections.folder(variables, rngs, drawn=True))


@remembered
def add_metadata_axis(
    target: Target,
    variable_axes: Mapping[Filter, Any] = {},
    metadata_params: Mapping[Any, Any] = {},
) -> Target:
    """Adds an axis name to boxed variables without adding an axis.

    Args:
      target: a module class, or a function whose first argument is a module.
      variable_axes: collection -> where the name goes.
      metadata_params: handed to the boxes, ``{nn.PARTITION_NAME: 'layers'}``.

    Example:
      >>> import jax, liftax as nn
      >>> init = nn.with_partitioning(nn.initializers.ones, ('in', 'out'))
      >>> Named = nn.add_metadata_axis(
      ...     nn.Dense, {'params': 0}, {nn.PARTITION_NAME: 'layers'})
      >>> variables = Named(2, kernel_init=init).init(jax.random.key(0), jax.numpy.ones(3))
      >>> variables['params']['kernel'].names
      ('layers', 'in', 'out')
    """
    return lift_target(
        "Map_variables",
        target,
        lambda fn: collections.add_metadata_axis(fn, variable_axes, metadata_params),
    )


def named_call(class_fn: Target, force: bool = True) -> Target:
    """Names a function of a module in profiles and compiled programs.

    Args:
      class_fn: a function whose first argument is a module.
      force: False leaves the function unnamed where names are switched off.

    Example:
      >>> import liftax as nn
      >>> class Probe(nn.Module):
      ...     @nn.named_call
      ...     def __call__(self, x):
      ...         return x + 1
      >>> Probe().apply({}, 1)
      2
    """

    @functools.wraps(class_fn)
    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not (force or watch().named_call):
            return class_fn(self, *args, **kwargs)
        own = (self.name or type(self).__name__) if is_module(self) else ""
        name = getattr(class_fn, "__name__", "call")
        label = name if not own else own if name == "__call__" else f"{own}.{name}"
        with jax.named_scope(label):
            return class_fn(self, *args, **kwargs)

    return named  # type: ignore[return-value]


PARTITION_NAME = metadata.PARTITION_NAME
