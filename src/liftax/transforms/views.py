"""Lifts of modules that stage a body or change how its variables look."""

from __future__ import annotations

import functools
from collections.abc import Iterable

import jax

from ..core.filters import Filter
from ..core.lift.views import AddMetadataAxis, FoldRngs, MapVariables, Seen, unchanged
from ..core.roles import VariableAxes
from ..core.types import Fn, Metadata
from ..module.attach import is_module
from ..module.state import watch
from .target import lift_target, remembered

__all__ = ["add_metadata_axis", "fold_rngs", "map_variables", "named_call"]


@remembered
def map_variables(
    target: Fn,
    mapped_collections: Filter = True,
    trans_in_fn: Seen = unchanged,
    trans_out_fn: Seen = unchanged,
    init: bool = False,
    mutable: bool = False,
    rngs: Filter = True,
    variables: Filter = True,
    methods: Iterable[str] | None = None,
) -> Fn:
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
    options = MapVariables(
        mapped_collections, trans_in_fn, trans_out_fn, init, mutable, rngs, variables
    )
    # As a function: its options are for all methods, and none may have others.
    return lift_target("map_variables", target, lambda fn: options(fn), methods)


@remembered
def fold_rngs(target: Fn, variables: Filter = True, rngs: Filter = True) -> Fn:
    """Derives the keys inside a module from one key of each stream, drawn at its path.

    What the module draws then depends on how many draws its path made before, and
    no longer on the paths above it being folded in one by one. For modules from outside see
    `jit`.

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
    return lift_target("fold_rngs", target, FoldRngs(variables, rngs))


@remembered
def add_metadata_axis(
    target: Fn,
    variable_axes: VariableAxes = {},  # noqa: B006
    metadata_params: Metadata = {},  # noqa: B006
) -> Fn:
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
    # The class has the prefix that it has in Linen, where this is a `map_variables`.
    options = AddMetadataAxis(variable_axes, metadata_params)
    return lift_target("add_metadata_axis", target, options, prefix="Map_variables")


def named_call(class_fn: Fn, force: bool = True) -> Fn:
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

    # By hand and not with `lift_target`: a name needs no scopes inside, and the function may be
    # a method of a module that is not bound.
    @functools.wraps(class_fn)
    def named(self: object, *args: object, **kwargs: object) -> object:
        if not (force or watch().named_call):
            return class_fn(self, *args, **kwargs)
        own = (self.name or type(self).__name__) if is_module(self) else ""
        name = getattr(class_fn, "__name__", "call")
        label = name if not own else own if name == "__call__" else f"{own}.{name}"
        with jax.named_scope(label):
            return class_fn(self, *args, **kwargs)

    return named  # type: ignore[return-value]
