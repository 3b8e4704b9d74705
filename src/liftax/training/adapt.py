"""Adapters of low rank on the kernels of chosen modules, trained alone and merged back.

How it works
------------
`Adapted` runs its model with every chosen layer under `map_variables`: the layer sees the kernel
``W + scale * A @ B`` in the place of ``W``. That happens where the layer is called, so in a loop
over layers each iteration adds what is its own, and no kernel of all layers is made. ``A`` and
``B`` are variables at the layer's place, in a collection of their own, which stacks, lifts and
storages treat as they treat any other.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import jax.numpy as jnp

from ..checkpoint.convert import to_layers, to_stacked
from ..core import boxes, refusals
from ..core.filters import DenyList, check_filter
from ..core.lift.views import map_variables
from ..core.scope import Scope
from ..core.streams import Keys, path_hash
from ..core.types import Collections, Function, Key, Path
from ..errors import AdaptError
from ..layers.dtypes import Initializer
from ..layers.linear import default_kernel_init
from ..module import Module, intercept_methods, share_scope
from ..module.bound import Variables, whose
from ..module.detach import Detached
from ..module.methods import InterceptorContext, profiled
from ..module.state import LIFTED
from ..stack.declaration import Declaration
from ..stack.stacking import name_of
from ..stack.trees import get
from ..words import class_or_type
from .low_rank import (
    DOWN,
    UP,
    Form,
    boxed,
    cut_to,
    form_of,
    kernel_in,
    pairs_in,
    summed,
    without_adapters,
)

Where = bool | str | Collection[str] | DenyList
"""Which modules: a filter, as for collections, whose names are ends of paths."""


def adapt(
    model: Module,
    where: Where,
    rank: int | Sequence[int],
    *,
    scale: float = 1.0,
    collection: str = "lora",
    init: Initializer = default_kernel_init,
) -> Adapted:
    """Adds adapters of low rank to the kernels of chosen modules: LoRA.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685: where a chosen layer has the kernel ``W``, it
    computes with ``W + scale * A @ B``. ``A`` is drawn and ``B`` zero, so that at first the model
    is the one that was given, to the bit. The model's variables are what and where they were, so
    its checkpoints go in. ``A`` and ``B``, ``lora_a`` and ``lora_b``, lie at the layer's path in a
    collection of their own: take the gradient by that alone, and give the optimizer that alone.

    Args:
      model: a module, not bound; whatever lifts and stacks are in it.
      where: which modules. The end of a path, ``"attention/query"``, where ``*`` stands for any
        part of one name; several; ``nn.DenyList`` of these for all others; True for all. A
        module that holds others stands for those in it that have a kernel. In a stack, layers are
        called ``block_0``, one for each position of the pattern.
      rank: of what is added to each kernel, as a matrix of what is contracted by what comes out.
        Or one for each layer of the stacks of the model, in the order in which they run: arrays
        are as large as the largest rank, and of a layer of lower rank the columns of ``A`` beyond
        it are zero. They stay so, since their gradient, and that of the rows of ``B`` that go
        with them, is exactly zero.
      scale: in terms of the paper, ``alpha / rank``.
      collection: where ``A`` and ``B`` are. ``"params"`` puts them beside the kernels: for models
        with lifts that name their collections, which otherwise must name this one too.
      init: draws ``A``, as a matrix ``(in, rank)``.

    Returns:
      an `Adapted`, a module that is called as the model is.

    `Dense`, `DenseGeneral`, `Einsum`, `Embed`, `Conv`, `ConvTranspose`, `ConvLocal`, all attention
    and all cells have kernels that can be adapted. A forward pass makes each adapted kernel whole,
    of one layer at a time; an adapted `Embed` is the whole table at each call. Whoever takes a
    kernel past its module, as ``embed.embedding``, gets it as it is.

    Raises:
      InvalidFilterError: ``where`` is none.
      AdaptError: the model is no module, the rank no number; in ``init``, ``where`` matches nothing
        or a layer that has no kernel, or ranks do not fit a kernel or a stack.

    Example:
      >>> import jax, optax, liftax as nn
      >>> class Block(nn.Module):
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         h = nn.relu(nn.Dense(16, name="up")(x))
      ...         return x + nn.Dense(x.shape[-1], name="down")(h)
      >>> model = nn.Stack(Block(), depth=3)
      >>> x = jax.numpy.ones((2, 4))
      >>> base = model.init(jax.random.key(0), x)
      >>> adapted = nn.adapt(model, "up", rank=2)
      >>> lora = adapted.init(jax.random.key(1), x)["lora"]
      >>> jax.tree.map(jax.numpy.shape, lora)
      {'block_0': {'up': {'lora_a': (3, 4, 2), 'lora_b': (3, 2, 16)}}}
      >>> def loss(lora):
      ...     return (adapted.apply({**base, "lora": lora}, x) ** 2).mean()
      >>> grads = jax.grad(loss)(lora)
      >>> tx = optax.sgd(1.0)
      >>> updates, _ = tx.update(grads, tx.init(lora))
      >>> lora = optax.apply_updates(lora, updates)

      What was trained becomes a part of the kernels, for a model without adapters:

      >>> merged = adapted.merge({**base, "lora": lora})
      >>> y = adapted.apply({**base, "lora": lora}, x)
      >>> bool((model.apply(merged, x) == y).all())
      True
    """
    return Adapted(model, where, rank, scale=scale, collection=collection, init_a=init)


class Adapted(Module):
    """A model with adapters of low rank; see `adapt`.

    It is called as the model is. ``run`` calls another method of it.

    Attributes:
      model: the model, whose variables lie where they lie without adapters.
      where, rank, scale, collection: as in `adapt`.
      init_a: ``init`` of `adapt`.

    Example:
      >>> import jax, liftax as nn
      >>> adapted = nn.adapt(nn.Embed(5, 4), True, rank=1)
      >>> variables = adapted.init(jax.random.key(0), jax.numpy.array([3]))
      >>> jax.tree.map(jax.numpy.shape, variables["lora"])
      {'lora_a': (5, 1), 'lora_b': (1, 4)}
      >>> x = jax.numpy.ones((2, 4))
      >>> adapted.apply(variables, x, method="run", call="attend").shape
      (2, 5)
    """

    model: Module
    where: Where
    rank: int | Sequence[int]
    scale: float = dataclasses.field(default=1.0, kw_only=True)
    collection: str = dataclasses.field(default="lora", kw_only=True)
    init_a: Initializer = dataclasses.field(default=default_kernel_init, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.model, Module):
            raise AdaptError(f"adapt: expected a module; found {class_or_type(self.model)}")
        one = hasattr(self.rank, "__index__")
        ranks: list[Any] = [self.rank] if one else list(self.rank)  # type: ignore[arg-type]
        counts = all(hasattr(r, "__index__") and not isinstance(r, bool) and r >= 0 for r in ranks)
        if not counts or max(ranks, default=0) < 1:
            raise AdaptError(
                f"adapt: rank expected a number from 1, or one for each layer of a stack; found "
                f"{self.rank!r}"
            )
        check_filter(self.where, "adapt: where")
        # As what can be hashed, for a model that is a static argument; past `__setattr__`, which is
        # for assignments.
        self.__dict__["where"] = _fixed(self.where)
        self.__dict__["rank"] = int(ranks[0]) if one else tuple(map(int, ranks))
        super().__post_init__()

    def setup(self) -> None:
        share_scope(self, self.model)
        # The model has left the place under that name, which one of its own may want.
        assert self.scope is not None
        self.scope.reservations.pop("model", None)

    def __call__(self, *args: object, **kwargs: object) -> Any:
        """Calls the model."""
        return self._run("__call__", args, kwargs)

    def run(self, *args: object, call: str, **kwargs: object) -> Any:
        """Calls the method ``call`` of the model."""
        return self._run(call, args, kwargs)

    def _run(self, call: str, args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        assert self.scope is not None
        # Paths are told as those of the model by itself, wherever this stands.
        adapting = _Adapting(self, len(self.path))
        with intercept_methods(adapting):
            y = getattr(self.model, call)(*args, **kwargs)
        # Another method of the model may well call none of the chosen layers; who makes variables
        # calls all.
        if self.scope.call.flags.get("initializing"):
            adapting.check_found()
        return y

    def merge(self, variables: Collections, layout: object = None) -> Collections:
        """Adds what the adapters add to the kernels: variables for the model without adapters.

        It is the sum that the adapted model makes in each call, in the kernel's dtype. On the CPU
        the model's outputs are those of the adapted one, to the bit; on others to rounding, where
        the product of many layers at once is computed in another order.

        Args:
          variables: those of the adapted model, with adapters.
          layout: as for `to_layers`; only for layers that are stacked along another axis than the
            first of their kernels.

        Raises:
          AdaptError: there are no adapters, or they do not fit the kernels.
        """
        params = self._summed(variables, variables, layout, 1.0)
        rest = {col: tree for col, tree in variables.items() if col != self.collection}
        return {**rest, "params": params}

    def unmerge(
        self, variables: Collections, adapters: Collections, layout: object = None
    ) -> Collections:
        """Takes what the adapters add off merged kernels again: variables of the adapted model.

        A kernel is then what it was to rounding in its own dtype; who needs its bits keeps it.

        Args:
          variables: what `merge` returned.
          adapters: variables in which the adapters are.
          layout: as in `merge`.

        Raises:
          AdaptError: as `merge`.
        """
        params = self._summed(variables, adapters, layout, -1.0)
        given = {} if self.collection == "params" else {self.collection: adapters[self.collection]}
        return {**variables, "params": params, **given}

    def _summed(
        self, variables: Collections, adapters: Collections, layout: object, by: float
    ) -> Any:
        """The parameters with ``by`` times of what the adapters add to them."""
        col = self.collection
        params, lora = variables.get("params", {}), adapters.get(col, {})
        if layout is not None:
            params, lora = to_layers(params, layout), to_layers(lora, layout, collection=col)
        pairs = dict(pairs_in(lora))
        if not pairs:
            raise AdaptError(
                f"merge: the variables have no adapters in {col!r}; expected those of the adapted "
                f"model, as init made them"
            )
        made = without_adapters(params)  # a copy, to be written
        for path, (down, up) in pairs.items():
            node: Any = get(made, path)
            name = kernel_in(node)
            if name is None:
                raise AdaptError(f"merge: there is no kernel at {name_of(path)} for its adapter")
            place = f"merge: {name_of((*path, name))}"
            node[name] = summed(node[name], down, up, self.scale * by, place)
            if by < 0 and col == "params":
                node.update({DOWN: down, UP: up})
        return made if layout is None else to_stacked(made, layout)


@dataclasses.dataclass(eq=False)
class _Adapting:
    """One call of an adapted model: hears of the calls of its modules, and maps those chosen.

    Attributes:
      options: the adapted model.
      depth: how many names are in the path of the model.
      stack: the outermost stack that runs, None outside.
      busy: whether a chosen layer runs.
      hits: the patterns that matched.
      kernels: the paths of the layers that have a kernel.
    """

    options: Adapted
    depth: int
    stack: Declaration | None = None
    busy: bool = False
    hits: set[str] = dataclasses.field(default_factory=set)
    kernels: dict[str, bool] = dataclasses.field(default_factory=dict)

    def __call__(
        self,
        next_fun: Function,
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> object:
        module = context.module
        # Some are told without being called: those that a lift takes.
        if self.busy or module.scope is None or context.method_name in ("setup", LIFTED):
            return next_fun(*args, **kwargs)
        # Ranks by layer are those of the outermost stack: its layers may be stacks too.
        if isinstance(module, Declaration) and self.stack is None:
            return self.of_stack(module, module.scope, next_fun, args, kwargs)
        path = module.scope.path[self.depth :]
        matched = _match(self.options.where, path, self.hits)
        form = form_of(module, args, kwargs)
        if form is not None:
            self.kernels[name_of(path)] = bool(matched)
        if not matched:
            return next_fun(*args, **kwargs)
        if form is None:
            # What parameters it has is known when it has run. One that was not named itself is
            # passed by: a norm among the layers of a block.
            y = next_fun(*args, **kwargs)
            if matched == "itself" and self.can_make(module.scope):
                _check_held(module, module.scope)
            return y
        return self.of_layer(form, module, module.scope, next_fun, args, kwargs, context)

    def can_make(self, scope: Scope) -> bool:
        return scope.call.is_mutable(self.options.collection)

    def of_layer(
        self,
        form: Form,
        module: Variables,
        scope: Scope,
        next_fun: Function,
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> object:
        """Calls a chosen layer; where it has no adapter yet, makes that."""
        there = scope.has_variable(self.options.collection, DOWN)
        making = bool(scope.call.flags.get("initializing"))
        if there and not making:
            return self.mapped(form, module, args, kwargs, context)
        if not there and not self.can_make(scope):
            scope.check_named(self.options.collection)  # a lift around it may leave it out
        if not there and not making and not self.can_make(scope):
            raise AdaptError(
                f"{whose(module)}: there is no adapter for {form.name!r}.\n"
                f"found: no {DOWN!r} in the collection {self.options.collection!r}\n"
                f"expected: what init of the adapted model makes; or, beside variables that are "
                f"there, apply(..., rngs=key, mutable=[{self.options.collection!r}])"
            )
        # What is new adds nothing: the layer may run as it is, and has its kernel afterwards.
        with self.alone():
            y = next_fun(*args, **kwargs)
        if not there and self.can_make(scope):
            self.make(form, module, scope)
        return y

    def mapped(
        self,
        form: Form,
        module: Variables,
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        context: InterceptorContext,
    ) -> object:
        """Calls a layer that sees the kernel with what its adapter adds."""
        col, place = self.options.collection, whose(module)

        def see(variables: Collections) -> Collections:
            params, held = variables.get("params", {}), variables[col]
            if form.name not in params:
                return variables  # the layer says it
            kernel = summed(
                params[form.name], held[DOWN], held[UP], self.options.scale, f"{place}: {form.name}"
            )
            # As an array of its own: fused into what follows it would be another sum, of more bits
            # than the kernel's dtype has, and no longer the one that `merge` makes.
            kernel = jax.lax.optimization_barrier(kernel)
            return {"params": {**without_adapters(params), form.name: kernel}}

        # The method itself, on the module inside: everyone who hears of calls has heard of this.
        method: Any = context.orig_method
        detached = Detached([module])

        def body(scopes: Sequence[Scope], *args: object, **kwargs: object) -> object:
            (inside,) = detached.rebuild(scopes)
            with profiled(inside, context.method_name):
                return method.func(inside, *args, **kwargs)

        body.__name__ = type(module).__name__
        with self.alone():
            return map_variables(body, ["params", col], see)(detached.scopes, *args, **kwargs)

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """While a layer runs, its methods may call one another: one call, one adapter."""
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def make(self, form: Form, module: Variables, scope: Scope) -> None:
        """Makes the adapter of a layer."""
        options, kernel = self.options, (scope.node("params") or {}).get(form.name)
        shape = jnp.shape(boxes.unbox(kernel))
        batch, rows, columns = form.parts(shape)
        rank = self.largest(module, math.prod(rows), math.prod(columns))
        dtype = boxes.unbox(kernel).dtype
        key = _key(scope, options.collection)

        def down() -> object:
            # The initializer is shown one matrix, whose fan-in is that of the layer.
            flat = options.init_a(key, (math.prod(rows), math.prod(batch) * rank), dtype)
            apart = flat.reshape(*rows, *batch, rank)
            order = range(len(rows), len(rows) + len(batch))
            made = jnp.moveaxis(apart, tuple(order), tuple(range(len(batch))))
            return boxed(kernel, made, lambda names: [*names[: len(batch + rows)], None])

        def up() -> object:
            made = jnp.zeros((*batch, rank, *columns), dtype)
            n = len(batch)
            return boxed(
                kernel, made, lambda names: [*names[:n], None, *names[n + len(rows) : len(shape)]]
            )

        scope.variable(options.collection, DOWN, down)
        scope.variable(options.collection, UP, up)

    def largest(self, module: Variables, rows: int, columns: int) -> int:
        """The rank that arrays have: of all layers the largest."""
        rank = self.options.rank
        if not isinstance(rank, int):
            if self.stack is None:
                raise AdaptError(
                    f"{whose(module)}: rank={list(rank)} is one for each layer of a stack.\n"
                    f"found: a layer that is in no Stack\n"
                    f"expected: one number, or where= of layers in a Stack"
                )
            if len(rank) != len(self.stack):
                raise AdaptError(
                    f"{whose(self.stack)}: rank has an entry for each layer of the stack.\n"
                    f"found: {len(rank)} ranks, {len(self.stack)} layers\n"
                    f"expected: rank= of {len(self.stack)} numbers, or one for all"
                )
            rank = max(rank)
        if rank > min(rows, columns):
            raise AdaptError(
                f"{whose(module)}: rank={rank} is more than the kernel has.\n"
                f"found: a kernel of {rows} by {columns}\n"
                f"expected: rank= of {min(rows, columns)} at most"
            )
        return rank

    def of_stack(
        self,
        stack: Declaration,
        scope: Scope,
        next_fun: Function,
        args: tuple[object, ...],
        kwargs: dict[str, Any],
    ) -> object:
        """Calls a stack; of what it has made, cuts off what is beyond each layer's rank."""
        self.stack = stack
        try:
            y = next_fun(*args, **kwargs)
        finally:
            self.stack = None
        # No layer of a loop knows its number: all are made alike, and cut when all are there.
        ranks, col = self.options.rank, self.options.collection
        node = scope.node(col)
        if (
            isinstance(ranks, int)
            or len(ranks) != len(stack)
            or not node
            or not self.can_make(scope)
        ):
            return y
        at = stack.layout()
        axis = at.axis_of(col)
        places = at if axis is not None else at.as_run  # what repeats share is in no order
        parts: dict[str, dict[int | None, int]] = {}
        for i, rank in enumerate(ranks):
            apart = at.store == "layers" and axis is not None
            name, row = (at.layer_name(i), None) if apart else places.place(i)
            parts.setdefault(name, {})[row] = rank
        for name, rows in parts.items():
            given = [rows[row] for row in sorted(rows, key=lambda row: row or 0)]
            if len(set(given)) > 1 and axis is None:
                raise AdaptError(
                    f"{whose(stack)}: the repeats share the collection {col!r}.\n"
                    f"found: ranks {given}\n"
                    f"expected: one rank for them all"
                )
            if name in node:
                stacked = None if None in rows else axis
                scope.put_variable(col, name, cut_to(node[name], given, stacked))
        return y

    def check_found(self) -> None:
        """Raises AdaptError where something that was asked for is not there."""
        known = ", ".join([*self.kernels][:8]) or "none"
        missing = [name for name in _patterns(self.options.where) if name not in self.hits]
        if missing or not any(self.kernels.values()):
            found = repr(missing[0]) if missing else repr(self.options.where)
            raise AdaptError(
                f"{whose(self.options)}: where={found} matches no layer with a kernel.\n"
                f"found: {known}\n"
                f"expected: the end of one of these paths, or of that of a module around them"
            )


def _check_held(module: Variables, scope: Scope) -> None:
    """Refuses a module that was named and has parameters that are no known kernel."""
    # Mappings are the parameters of the modules in it.
    held = scope.node("params") or {}
    own = [name for name, value in held.items() if not isinstance(value, Mapping)]
    if own:
        raise AdaptError(
            f"{whose(module)}: {type(module).__name__} has no kernel that can be adapted.\n"
            f"found: {', '.join(own)}\n"
            f"expected: where= of Dense, DenseGeneral, Einsum, Embed, Conv, or modules of them"
        )


def _match(where: Where, path: Path, hits: set[str]) -> str:
    """Tells whether a module is chosen: ``"itself"``, ``"below"`` what is named, ``""`` if not."""
    if isinstance(where, DenyList):
        return "" if _match(where.deny, path, hits) else "below"
    if isinstance(where, bool):
        return "below" if where else ""
    found = ""
    for pattern in [where] if isinstance(where, str) else where:
        parts = pattern.strip("/").split("/")
        # The end of the module's own path first, then of the paths of those around it.
        for end in range(len(path), len(parts) - 1, -1):
            if all(map(fnmatchcase, path[end - len(parts) : end], parts)):
                hits.add(pattern)
                found = "itself" if end == len(path) else found or "below"
                break
    return found


def _fixed(where: Where) -> Where:
    if isinstance(where, DenyList):
        return DenyList(_fixed(where.deny))
    return where if isinstance(where, (bool, str)) else tuple(where)


def _patterns(where: Where) -> Iterable[str]:
    if isinstance(where, DenyList):
        return _patterns(where.deny)
    if isinstance(where, bool):
        return ()
    return [where] if isinstance(where, str) else where


def _key(scope: Scope, stream: str) -> Key:
    """A key for an adapter, which counts as no draw: the base has the keys that it had alone."""
    found = scope.rngs.get(stream, scope.rngs.get("params"))
    if found is None:
        raise refusals.no_stream(scope, stream)
    # Drawn as others are, it would shift the draws of the layers that lifts count after it.
    base = found.folded()
    return jax.random.fold_in(base.key if isinstance(base, Keys) else base, path_hash((DOWN,)))
