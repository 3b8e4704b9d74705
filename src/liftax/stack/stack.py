"""Stack: many layers from one declaration, stored and run in any way.

Names
-----
Layers are numbered in the order in which they run: ``before``, the pattern
``repeats`` times, ``after``. In stacked storage a stack's variables are called

=================  ==========================================================
``before_j/...``   a layer before the pattern, as it is
``block_p/...``    position ``p`` of the pattern: one array for all repeats, with
                   their axis at ``param_axis`` (params) or ``variable_axes``
``after_j/...``    a layer after the pattern, as it is
``shared_k/...``   a module that the layers share and that the stack owns
=================  ==========================================================

In storage by layers they are ``layers_i/...``, one subtree for each layer, and
``shared_k``. By the stages of a pipeline they are ``circular_4x2_p/...`` in place of
``block_p``, for 4 stages and 2 repeats: the repeats of the pattern lie in the order
of the stages, `schedule.Groups`. Collections that the repeats share or hand on
(``variable_broadcast``, ``variable_carry``) have no axis and stay at ``block_p`` in all of them.

Keys
----
The loop splits each stream's key into one for every repeat; a layer's draws fold in
the path of ``block_p`` and what is below it. No option for running or storing changes
a path or a split, so layer ``i`` has the same keys and initial values in all of them.

Invariants
----------
The loop is `liftax.core.lift.scan.Plan`, the lifted scan, whatever runs its pure body
(see `liftax.stack.nest`). Storage by layers and frozen layers are one lift around it
(`liftax.stack.storage.restored`); the loop itself knows stacked variables alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core.scope import Scope
from ..core.types import Collections
from ..errors import (
    LengthError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    StackError,
    StackingError,
)
from ..module import nowrap
from ..module.detach import Detached, without_modules
from .chosen import Way
from .declaration import Declaration
from .foreign import check_names, told_by
from .run import check_outside, layer_scope, run_stacked, takes_stages
from .storage import StackLayout, by_layers, by_stages, frozen, restored, running, stacked
from .templates import own_layers

# What variables of another stack lead to, where they are used.
_MAY_BE_FOREIGN = (
    LengthError,
    ScopeCollectionNotFound,
    ScopeParamNotFoundError,
    StackError,
    StackingError,
)


class Stack(Declaration):
    """Many layers, one after the other, from one declaration.

    The result equals the loop

    .. code-block:: python

      for layer in [*before, *(block * repeats), *after]:
          x = layer(x, *args, **kwargs)

    in which every layer has its own variables and keys. How the loop runs and how
    the variables are stored are options; they change neither names, initial values
    and keys nor, but for rounding, results and gradients.

    Args:
      block: a layer, or a list of layers that repeats as a pattern. A layer is a
        module ``x -> x``; it is a template, so one instance may stand at many places.
      depth: the number of layers in all repeats of the pattern; with 0 the input comes out.
      repeats: how often the pattern runs, in place of ``depth``.
      before: layers that run before the pattern.
      after: layers that run after it.
      outputs: True where each layer returns a pair ``(x, ys)``; the stack then
        returns ``(x, ys)`` with the layers' ys stacked in order. ``"positions"``
        returns them as a `ByPosition`, for layers whose ys differ in shape; the numbers of
        layers, ``[3, 7]``, keep the ys of those.
      per_layer: the names of arguments that have a leading axis of layers (or are a
        `ByPosition`), of which each layer gets its slice. All other arguments of the
        call go to every layer as they are.
      run: ``"scan"``, ``"loop"`` (written out), ``"scan of K"`` (K layers of the scan
        written out together), ``"scan of sqrt"`` or a `Pipeline`.
      unroll: as in `jax.lax.scan`.
      remat: what is recomputed in the backward pass: a `Remat`, None for nothing, or ``"auto"``:
        ``Remat("products")`` where the layers are scanned, of whole groups where they are scanned
        by groups; nothing where they are written out.
      store: ``"stacked"``, ``"layers"`` for one subtree of variables a layer, or ``"circular"``
        for the order of the stages of a `Pipeline` with repeats.
      param_axis: the axis along which the parameters of the repeats are stacked.
      variable_axes: the axis of other collections, 0 where nothing is said.
      variable_broadcast: collections that all repeats share; ``"params"`` ties them.
      variable_carry: collections that are handed from one repeat to the next.
      split_rngs: stream -> False for the same key in every repeat.
      metadata_params: handed to boxed variables for the axis of the repeats:
        ``{nn.PARTITION_NAME: "layers"}``.
      fsdp: a mesh axis, or an `FSDP`: the parameters lie split over it (see `fsdp_sharding`)
        and are gathered a layer ahead of the one that computes. The backward pass gathers them
        again and runs each layer again.
      frozen: True, or the numbers of layers whose parameters get no gradient.
      shared: modules that stand in fields of the layers, or in the pattern itself, and
        are one module for all of them: unbound ones, or ones that lie outside.

    Raises:
      StackError: the options contradict each other or don't fit the layers.
      CarryError: a layer of the pattern changes the structure, shape or dtype of x.

    Example:
      >>> import jax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         return x + nn.Dense(x.shape[-1])(nn.relu(x))
      >>> stack = nn.Stack(Block(), depth=24)
      >>> x = jax.numpy.ones(4)
      >>> variables = stack.init(jax.random.key(0), x)
      >>> jax.tree.map(jax.numpy.shape, variables)
      {'params': {'block_0': {'Dense_0': {'bias': (24, 4), 'kernel': (24, 4, 4)}}}}
      >>> y = stack.apply(variables, x)
      >>> unrolled = stack.clone(run="loop")
      >>> bool(jax.numpy.allclose(unrolled.apply(variables, x), y, rtol=1e-5))
      True

      A pattern with a remainder, one subtree a layer:

      >>> mixed = nn.Stack([Block()] * 2 + [nn.LayerNorm()], repeats=3,
      ...                  after=[Block()], store="layers", remat=nn.Remat("dots_saveable"))
      >>> list(mixed.init(jax.random.key(0), x)["params"])[:3], len(mixed)
      (['layers_0', 'layers_1', 'layers_2'], 10)
    """

    def __post_init__(self) -> None:
        own_layers(self)
        super().__post_init__()

    # --- running --------------------------------------------------------------

    def __call__(self, x: object, *args: object, **kwargs: object) -> Any:
        """Runs all layers.

        Args:
          x: what goes through the layers: an array or a pytree of them.
          *args, **kwargs: for every layer; those in ``per_layer`` are sliced. Bound
            modules among them are shared by the layers.

        Returns:
          ``x``, or ``(x, ys)`` with ``outputs``.
        """
        return self._run(x, args, kwargs, Way())

    def run_layers(
        self,
        x: object,
        *args: object,
        call: str = "__call__",
        layers: Any = None,
        reverse: bool = False,
        **kwargs: object,
    ) -> Any:
        """Runs another method of the layers, some of the layers, or all of them from the last on.

        Args:
          x: what goes through the layers, as for a call of the stack.
          *args, **kwargs: for every layer, as for a call of the stack.
          call: the method of every layer that runs.
          layers: which layers run. A slice, or an int for the first ones: a scan over these
            alone. A traced int, or a bool for each layer (traced or not): a scan over all, in which
            a layer that does not run costs nothing; that is for a stack of one repeated layer. What
            does not run leaves x and the variables as they are, and its outputs are left out or,
            where only values know it, zero. `init` runs all layers, so that all have variables.
          reverse: whether the last layer runs first. Outputs stay in the order of the layers.

        Returns:
          as a call of the stack.

        Raises:
          StackError: a layer lacks the method, or ``layers`` does not fit the stack.

        Example:
          >>> import jax, liftax as nn
          >>> class Block(nn.Module):
          ...     def setup(self):
          ...         self.dense = nn.Dense(4)
          ...     def __call__(self, x):
          ...         return x + self.dense(x)
          ...     def undo(self, x):
          ...         return x - self.dense(x)
          >>> stack = nn.Stack(Block(), depth=6)
          >>> x = jax.numpy.ones(4)
          >>> variables = stack.init(jax.random.key(0), x)
          >>> def run(x, **how):
          ...     return stack.apply(variables, x, method="run_layers", **how)
          >>> halves = run(run(x, layers=slice(0, 3)), layers=slice(3, 6))
          >>> early = jax.jit(lambda n: run(x, layers=n))(3)
          >>> back = run(x, call="undo", reverse=True)
          >>> same = jax.numpy.allclose
          >>> bool(same(halves, run(x))), bool(same(early, run(x, layers=3))), back.shape
          (True, True, (4,))
        """
        return self._run(x, args, kwargs, Way(call, layers, reverse))

    @nowrap
    def _run(self, x: object, args: tuple[object, ...], kwargs: dict[str, object], way: Way) -> Any:
        at = self._stack_layout(self.path)
        check_names(self, at)
        try:
            return self._run_all(at, x, args, kwargs, way)
        except _MAY_BE_FOREIGN as error:
            told = told_by(self, at)
            if told is None or isinstance(error, StackError) and at.store == "stacked":
                raise
            raise told from None

    @nowrap
    def _run_all(
        self,
        at: StackLayout,
        x: object,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        way: Way,
    ) -> Any:
        frozen_layers = self._frozen()
        if self.store == "stacked" and not frozen_layers:
            return run_stacked(self, x, args, kwargs, way)
        layered, circular = self.store == "layers", self.store == "circular"
        by_stage = takes_stages(self, way)

        # The loop knows stacked variables alone; what is stored otherwise is brought there and
        # back around it. Both ways are renamings and slices, which the compiler sees through.
        def into(variables: Collections) -> Collections:
            if layered:
                variables = stacked(variables, at)
            if circular:
                variables = running(variables, at, rows=not by_stage)
            return frozen(variables, at, frozen_layers, by_stage) if frozen_layers else variables

        def back(variables: Collections) -> Collections:
            if circular:
                return by_stages(variables, at, rows=not by_stage)
            return by_layers(variables, at) if layered else variables

        plain, fill, taken = without_modules(args, kwargs)
        detached = Detached([self, *taken])
        check_outside(self, detached.scopes[1:])

        def body(scopes: Sequence[Scope], x: object) -> object:
            rebuilt = detached.rebuild(scopes)
            args, kwargs = fill(plain, rebuilt[1:])
            return run_stacked(rebuilt[0], x, args, kwargs, way, by_stage)

        body.__name__ = type(self).__name__
        return restored(body, into, back, heard=not layered)(detached.scopes, x)

    # --- one layer ------------------------------------------------------------

    @nowrap
    def __getitem__(self, index: int) -> Any:
        """Returns one layer: bound to its variables where the stack is bound.

        The layer reads its own slice; it cannot write. ``unbind`` gives the module
        and its variables. ``stack[i:j]`` returns a list of layers.

        Raises:
          IndexError: there is no such layer.

        Example:
          >>> import jax, liftax as nn
          >>> stack = nn.Stack(nn.Dense(4), depth=3)
          >>> bound = stack.bind(stack.init(jax.random.key(0), jax.numpy.ones(4)))
          >>> layer, variables = bound[-1].unbind()
          >>> variables["params"]["kernel"].shape
          (4, 4)
        """
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if not hasattr(index, "__index__"):
            raise TypeError(f"Stack: stack[i] takes a layer's number; found {index!r}")
        if not -len(self) <= index < len(self):
            raise IndexError(f"Stack: there is no layer {index}; there are {len(self)} layers")
        # Not bound, the layer is a template: a module without variables, to be used anywhere.
        at = self._stack_layout(self.path if self.scope is not None else ())
        number = range(len(self))[index]
        layer: Any = [*self.before, *list(self._pattern) * self._count, *self.after][number]
        if self.scope is None:
            return layer.clone(name=None, _deep_clone=True)
        detached = Detached([layer])
        scope = layer_scope(self.scope, at, number, self._roles(), number in self._frozen())
        return detached.rebuild([scope, *detached.scopes[1:]])[0]
