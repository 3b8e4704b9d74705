"""What differs from layer to layer besides variables: arguments that are sliced, outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..errors import BodyReturnError, StackError
from ..words import describe
from .storage import StackLayout

Block = Callable[..., object]
"""A module ``x -> x``, or ``x -> (x, ys)``, called with the arguments of the stack."""
Slices = dict[str, object]
"""Of arguments, the part for one layer: by the name of a keyword, or the number as text."""


class ByPosition(NamedTuple):
    """Values of a stack's layers, by their place in the pattern.

    For values that do not have one shape in all layers, such as caches of local and
    global attention. A stack takes it for an argument in ``per_layer=`` and returns
    it with ``outputs="positions"``.

    Attributes:
      before: one value for each layer before the pattern.
      block: one value for each position, its arrays with a leading axis of the repeats.
      after: one value for each layer after the pattern.

    Example:
      >>> import jax, jax.numpy as jnp, liftax as nn
      >>> class Layer(nn.Module):
      ...     width: int
      ...     @nn.compact
      ...     def __call__(self, x):
      ...         h = nn.Dense(self.width)(x)
      ...         return x + h.mean(), h
      >>> stack = nn.Stack([Layer(2), Layer(3)], repeats=4, outputs='positions')
      >>> (_, hs), _ = stack.init_with_output(jax.random.key(0), jnp.ones(5))
      >>> [h.shape for h in hs.block], hs.before
      ([(4, 2), (4, 3)], ())
    """

    before: tuple[Any, ...] = ()
    block: tuple[Any, ...] = ()
    after: tuple[Any, ...] = ()


class Arguments:
    """The arguments of a call after the first: shared ones, and those sliced by layer.

    Args:
      blocks: the layers of the pattern; the first says what positional arguments
        are called.
      per_layer: the names of arguments that are sliced.
      at: the layers.
      place: the stack, for messages.
      args, kwargs: of the call.
      method: the method of the layers that is called.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        per_layer: Sequence[str],
        at: StackLayout,
        place: str,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        method: str = "__call__",
    ):
        self.args = args
        self.kwargs = kwargs
        self.sliced: dict[str, ByPosition] = {}
        # Positional arguments are known by the names that the first layer has for them: a call
        # does not say them, and all layers of a pattern get the same ones.
        first, names = positional(blocks[0], method) if per_layer else ([], [])
        for wanted in per_layer:
            if wanted in kwargs:
                key, value = wanted, kwargs[wanted]
            elif wanted in names[: len(args)]:
                i = names.index(wanted)
                key, value = str(i), args[i]
            elif wanted not in first and any(_takes(block, wanted, method) for block in blocks):
                continue  # left to its default
            else:
                raise StackError(
                    f"{place}: per_layer names {wanted!r}, which is no argument of this call nor "
                    f"of {type(blocks[0]).__name__}.{method}; its arguments after the first are "
                    f"{', '.join(names) or 'none'}"
                )
            self.sliced[key] = by_position(value, at, f"{place}: argument {wanted!r}")

    @property
    def xs(self) -> list[Slices]:
        """For each position of the pattern, what the loop goes over."""
        count = len(next(iter(self.sliced.values())).block) if self.sliced else 0
        return [{key: v.block[p] for key, v in self.sliced.items()} for p in range(count)]

    def single(self, part: str, index: int) -> Slices:
        """Returns the slices for one layer of ``before`` or ``after``.

        Keyword arguments are called by their names, others by their numbers.
        """
        return {key: getattr(v, part)[index] for key, v in self.sliced.items()}

    def filled(
        self, slices: Slices, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        """Returns the arguments for one layer."""
        if not slices:
            return args, kwargs
        parts = [slices.get(str(i), arg) for i, arg in enumerate(args)]
        return tuple(parts), {k: slices.get(k, v) for k, v in kwargs.items()}


def positional(block: Block, method: str) -> tuple[list[str], list[str]]:
    """Returns the names of the positional arguments: the module and x, and what follows."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(getattr(type(block), method)).parameters.values()
    names = [p.name for p in found if p.kind in kinds]
    return names[:2], names[2:]


def _takes(block: Block, name: str, method: str) -> bool:
    found = inspect.signature(getattr(type(block), method)).parameters
    return name in found or any(p.kind is p.VAR_KEYWORD for p in found.values())


def by_position(value: object, at: StackLayout, place: str) -> ByPosition:
    """Sorts a value with a leading axis of all layers by position.

    Raises:
      StackError: a leading axis has another size than the stack has layers.
    """
    b, p, r, a = at.before, at.positions, at.repeats, at.after
    # Sizes are looked at here: in the loop JAX would name its own argument, and not the user's.
    if isinstance(value, ByPosition):
        sizes = (len(value.before), len(value.block), len(value.after))
        if sizes != (b, p, a):
            raise StackError(
                f"{place}: ByPosition has {sizes} entries before, in and after the pattern; "
                f"the stack has {(b, p, a)}"
            )
        for part in value.block:
            _check_sizes(part, r, place, f"{r} repeats")
        return value
    _check_sizes(value, len(at), place, f"{len(at)} layers")
    arrays = jax.tree.map(jnp.asarray, value)
    # The layers of the pattern run repeat after repeat, so layer `b + i * p + j` is at position j.
    pattern = jax.tree.map(lambda x: x[b : b + p * r].reshape(r, p, *x.shape[1:]), arrays)
    return ByPosition(
        tuple(jax.tree.map(lambda x, i=i: x[i], arrays) for i in range(b)),
        tuple(jax.tree.map(lambda x, i=i: x[:, i], pattern) for i in range(p)),
        tuple(jax.tree.map(lambda x, i=i: x[i], arrays) for i in range(b + p * r, len(at))),
    )


def _check_sizes(value: object, size: int, place: str, what: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(value):
        shape = jnp.shape(leaf)
        if not shape or shape[0] != size:
            raise StackError(
                f"{place}{jax.tree_util.keystr(path)} is sliced by layer (per_layer=).\n"
                f"found: {describe(leaf)}\n"
                f"expected: an array whose first axis has size {size}, for {what}"
            )


def split_pair(
    out: object, outputs: bool, block: Block, place: str, x: object = None
) -> tuple[object, object]:
    """Returns ``(x, ys)`` from what a layer returned.

    Args:
      x: what went into a layer of the pattern.

    Raises:
      BodyReturnError: outputs are declared and it returned no pair.
      StackError: it returned a pair and none are declared.
    """
    if not outputs:
        # A pair may be what goes through the layers; where one array went in, it is the return
        # value of a body written for `nn.scan`.
        pair = out if isinstance(out, tuple) and len(out) == 2 else None
        if pair is not None and _is_like(pair[0], x) and not _is_like(pair, x):
            raise StackError(
                f"{place}: {type(block).__name__} returns a pair (x, ys), and the stack has "
                f"no outputs.\n"
                f"found: {describe(pair[0])} and {describe(pair[1])}\n"
                f"expected: return x; or Stack(..., outputs=True)"
            )
        return out, None
    if not isinstance(out, (tuple, list)) or len(out) != 2:
        found = describe(out) if not isinstance(out, (tuple, list)) else f"{len(out)} values"
        raise BodyReturnError(
            f"{place}: with outputs= each layer returns a pair (x, ys).\n"
            f"found: {found} from {type(block).__name__}\n"
            f"expected: return x, ys; or no outputs="
        )
    return out[0], out[1]


def _is_like(value: object, x: object) -> bool:
    treedef: object = jax.tree.structure(x)
    return bool(jax.tree.structure(value) == treedef)


def gathered(
    ys: ByPosition, outputs: bool | str | Sequence[int], numbers: Sequence[int], place: str
) -> object:
    """Returns the layers' outputs as the stack was asked to.

    Args:
      ys: the outputs; those of the pattern with an axis of the repeats.
      outputs: ``"positions"`` leaves them, True stacks all along one axis of layers, numbers of
        layers take those of them.
      numbers: the layers that ran, in order.

    Raises:
      StackError: they do not have one structure and shape.
    """
    if isinstance(outputs, str):
        return ys
    every = [*ys.before, *ys.block, *ys.after]
    first: object = jax.tree.structure(every[0])
    # Those of the pattern have come out of the loop, with an axis of repeats that others lack.
    added = [0] * len(ys.before) + [1] * len(ys.block) + [0] * len(ys.after)
    shapes = [
        [jnp.shape(x)[axes:] for x in jax.tree.leaves(part)]
        for axes, part in zip(added, every, strict=True)
    ]
    for part, shape in zip(every, shapes, strict=True):
        if jax.tree.structure(part) != first or shape != shapes[0]:
            raise StackError(
                f"{place}: the layers' outputs differ in structure or shape, so they cannot be "
                f"stacked.\n"
                f"found: {shapes[0]} and {shape}\n"
                f'expected: one shape in all layers, or outputs="positions"'
            )

    def join(*parts: jax.Array) -> jax.Array:
        b, p = len(ys.before), len(ys.block)
        # Repeat by repeat, in each position by position: the order in which the layers ran.
        pattern = jnp.stack(parts[b : b + p], axis=1)
        pattern = pattern.reshape(len(pattern) * p, *pattern.shape[2:])
        ends = [[jnp.stack(some)] if some else [] for some in (parts[:b], parts[b + p :])]
        ordered = [*ends[0], pattern, *ends[1]]
        return jnp.concatenate(ordered) if len(ordered) > 1 else pattern

    joined = jax.tree.map(join, *every)
    if isinstance(outputs, bool):
        return joined
    missing = [n for n in outputs if n not in numbers]
    if missing:
        raise StackError(f"{place}: outputs has layer {missing[0]}, which does not run here")
    places = jnp.asarray([list(numbers).index(n) for n in outputs])
    return jax.tree.map(lambda x: x[places], joined)
