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
``shared_k``. Collections that the repeats share or hand on (``variable_broadcast``,
``variable_carry``) have no axis and stay at ``block_p`` in both.

Keys
----
The loop splits each stream's key into one for every repeat; a layer's draws fold in
the path of ``block_p`` and what is below it. No option for running or storing changes
a path or a split, so layer ``i`` has the same keys and initial values in all of them.

Invariants
----------
The loop is `liftax.lift.loops.looped`, the lifted scan, whatever runs its pure body
(see `liftax.stack.loop`). Storage by layers and frozen layers are one lift around it
(`liftax.stack.places.restored`); the loop itself knows stacked variables alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence, Set
from typing import Any

from ..core.filters import Filter, in_filter
from ..core.record import Path
from ..core.roles import Roles, loop_roles
from ..errors import StackError
from ..module import Module, nowrap
from ..module.detach import Detached, without_modules
from .layers import own_layers
from .places import Enclosing, StackLayout, by_layers, frozen, restored, stacked
from .plan import Remat, check_remat, parse_run
from .running import check_outside, layer_scope, run_stacked


class Stack(Module):
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
        returns them as a `ByPosition`, for layers whose ys differ in shape.
      per_layer: the names of arguments that have a leading axis of layers (or are a
        `ByPosition`), of which each layer gets its slice. All other arguments of the
        call go to every layer as they are.
      run: ``"scan"``, ``"loop"`` (written out), ``"scan of K"`` (K layers of the scan
        written out together) or ``"scan of sqrt"``.
      unroll: as in `jax.lax.scan`.
      remat: what is recomputed in the backward pass, a `Remat`.
      store: ``"stacked"``, or ``"layers"`` for one subtree of variables a layer.
      param_axis: the axis along which the parameters of the repeats are stacked.
      variable_axes: the axis of other collections, 0 where nothing is said.
      variable_broadcast: collections that all repeats share; ``"params"`` ties them.
      variable_carry: collections that are handed from one repeat to the next.
      split_rngs: stream -> False for the same key in every repeat.
      metadata_params: handed to boxed variables for the axis of the repeats:
        ``{nn.PARTITION_NAME: "layers"}``.
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

    # Adopted first: a shared module inside a layer is found to be this one.
    shared: Sequence[Module] = dataclasses.field(default=(), kw_only=True)
    block: Module | Sequence[Module]
    depth: int | None = None
    repeats: int | None = dataclasses.field(default=None, kw_only=True)
    before: Sequence[Module] = dataclasses.field(default=(), kw_only=True)
    after: Sequence[Module] = dataclasses.field(default=(), kw_only=True)
    outputs: bool | str = dataclasses.field(default=False, kw_only=True)
    per_layer: Sequence[str] = dataclasses.field(default=(), kw_only=True)
    run: str = dataclasses.field(default="scan", kw_only=True)
    unroll: int | bool = dataclasses.field(default=1, kw_only=True)
    remat: Remat | None = dataclasses.field(default=None, kw_only=True)
    store: str = dataclasses.field(default="stacked", kw_only=True)
    param_axis: int = dataclasses.field(default=0, kw_only=True)
    variable_axes: Mapping[str, int] = dataclasses.field(default_factory=dict, kw_only=True)
    variable_broadcast: Filter = dataclasses.field(default=False, kw_only=True)
    variable_carry: Filter = dataclasses.field(default=False, kw_only=True)
    split_rngs: Mapping[str, bool] = dataclasses.field(default_factory=dict, kw_only=True)
    metadata_params: Mapping[Any, Any] = dataclasses.field(default_factory=dict, kw_only=True)
    frozen: bool | Sequence[int] = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        own = self.__dict__
        if isinstance(self.per_layer, str):
            own["per_layer"] = (self.per_layer,)
        own_layers(self)
        own["repeats"] = _repeats(self)
        self._check()
        super().__post_init__()

    @nowrap
    def _check(self) -> None:
        if self.outputs not in (True, False, "positions"):
            raise StackError(
                f"Stack: outputs expected True, False or 'positions'; found {self.outputs!r}"
            )
        if self.store not in ("stacked", "layers"):
            raise StackError(f"Stack: store expected 'stacked' or 'layers'; found {self.store!r}")
        parse_run(self.run, self.unroll)
        check_remat(self.remat, "Stack")
        positions = (self.remat.positions if self.remat is not None else None) or ()
        for position in positions:
            if not 0 <= position < len(self._pattern):
                raise StackError(
                    f"Stack: Remat(positions=) has {position}; the pattern has positions 0 to "
                    f"{len(self._pattern) - 1}"
                )
        if "params" in self.variable_axes:
            raise StackError("Stack: the axis of 'params' is given by param_axis=")
        self._roles()
        self._frozen()

    # --- what is declared ---------------------------------------------------------

    @property
    def _pattern(self) -> Sequence[Any]:
        return self.block  # type: ignore[return-value]

    @nowrap
    def _roles(self) -> Roles:
        axes: dict[Any, int] = {**self.variable_axes}
        axes.setdefault(True, 0)
        splits: dict[Any, bool] = {**self.split_rngs}
        tied = in_filter(self.variable_broadcast, "params")
        if tied:
            # Parameters that are the same in all repeats are made from one key.
            splits.setdefault("params", False)
        elif not in_filter(self.variable_carry, "params"):
            axes = {"params": self.param_axis, **axes}
        splits.setdefault(True, True)
        return loop_roles("stack", axes, self.variable_broadcast, self.variable_carry, splits)

    @nowrap
    def _frozen(self) -> frozenset[int]:
        if isinstance(self.frozen, bool):
            return frozenset(range(len(self)) if self.frozen else ())
        if not _are_numbers(self.frozen):
            raise StackError(
                f"Stack: frozen expected True, False or the numbers of layers, e.g. [0, 1]; "
                f"found {self.frozen!r}"
            )
        wrong = [i for i in self.frozen if not -len(self) <= i < len(self)]
        if wrong:
            raise StackError(f"Stack: frozen has layer {wrong[0]}; there are {len(self)} layers")
        return frozenset(i % len(self) for i in self.frozen)

    @nowrap
    def _stack_layout(self, path: Path, enclosing: tuple[Enclosing, ...] = ()) -> StackLayout:
        assert self.repeats is not None
        return StackLayout(
            path,
            len(self.before),
            len(self._pattern),
            self.repeats,
            len(self.after),
            self.store,
            self._roles().role,
            self.metadata_params,
            enclosing,
        )

    @nowrap
    def layout(self, path: Path = ()) -> StackLayout:
        """Says where the variables of the stack lie, for a stack at ``path``.

        Example:
          >>> import liftax as nn
          >>> nn.Stack(nn.Dense(4), depth=3, param_axis=1).layout().axis_of("params")
          1
        """
        return self._stack_layout(tuple(path))

    @nowrap
    def __len__(self) -> int:
        assert self.repeats is not None
        return len(self.before) + len(self._pattern) * self.repeats + len(self.after)

    def __bool__(self) -> bool:
        return True

    # --- running --------------------------------------------------------------------

    def __call__(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """Runs all layers.

        Args:
          x: what goes through the layers: an array or a pytree of them.
          *args, **kwargs: for every layer; those in ``per_layer`` are sliced. Bound
            modules among them are shared by the layers.

        Returns:
          ``x``, or ``(x, ys)`` with ``outputs``.
        """
        frozen_layers = self._frozen()
        if self.store == "stacked" and not frozen_layers:
            return run_stacked(self, x, args, kwargs)
        at = self._stack_layout(self.path)
        layered = self.store == "layers"

        def into(variables: Any) -> Any:
            variables = stacked(variables, at) if layered else variables
            return frozen(variables, at, frozen_layers) if frozen_layers else variables

        def back(variables: Any) -> Any:
            return by_layers(variables, at) if layered else variables

        plain, fill, taken = without_modules(args, kwargs)
        detached = Detached([self, *taken])
        check_outside(self, detached.scopes[1:])

        def body(scopes: Any, x: Any) -> Any:
            rebuilt = detached.rebuild(scopes)
            args, kwargs = fill(plain, rebuilt[1:])
            return run_stacked(rebuilt[0], x, args, kwargs)

        body.__name__ = type(self).__name__
        return restored(body, into, back)(detached.scopes, x)

    # --- one layer ------------------------------------------------------------------

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
        at = self._stack_layout(self.path if self.scope is not None else ())
        number = range(len(self))[index]
        name, repeat = at.place(number)
        part, _, which = name.rpartition("_")
        layer = getattr(self, part)[int(which)]
        if self.scope is None:
            return layer.clone(name=None, _deep_clone=True)
        detached = Detached([layer])
        scope = layer_scope(self.scope, at, number, self._roles(), number in self._frozen())
        return detached.rebuild([scope, *detached.scopes[1:]])[0]


def _are_numbers(value: Any) -> bool:
    if not isinstance(value, (Sequence, Set)) or isinstance(value, str):
        return False
    return all(hasattr(i, "__index__") and not isinstance(i, bool) for i in value)


def _repeats(stack: Stack) -> int:
    """Reads ``depth`` and ``repeats``."""
    depth, repeats, size = stack.depth, stack.repeats, len(stack._pattern)
    if size == 0:
        raise StackError("Stack: block is an empty list; expected a layer or a list of layers")
    given = [n for n in (depth, repeats) if n is not None]
    if not given:
        raise StackError("Stack: say how deep it is: depth= layers, or repeats= of the pattern")
    for n in given:
        if isinstance(n, bool) or not hasattr(n, "__index__") or n.__index__() < 0:
            raise StackError(f"Stack: depth and repeats are ints, 0 or more; found {n!r}")
    if depth is not None and depth % size:
        raise StackError(
            f"Stack: depth={depth} is no multiple of the pattern's {size} layers; give the "
            f"remainder as after= (or before=) and say repeats={depth // size}"
        )
    if depth is not None and repeats is not None and depth != repeats * size:
        raise StackError(
            f"Stack: depth={depth} and repeats={repeats} of {size} layers contradict each other; "
            f"drop one"
        )
    return repeats.__index__() if repeats is not None else depth // size  # type: ignore[operator]
