"""Adapters as arrays: how a kernel is a matrix, and what is added to it.

``A`` has the axes ``(*batch, *in, rank)``, ``B`` ``(*batch, rank, *out)``, of a kernel ``(*batch,
*in, *out)``. Around them lie the axes of lifts, in all three the first ones, so that what is added
to a kernel follows from the three shapes, in a loop over layers and outside of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..core import boxes
from ..core.types import Path
from ..errors import AdaptError
from ..layers.conv import Conv, ConvLocal, ConvTranspose
from ..layers.dtypes import Array
from ..layers.linear import Dense, DenseGeneral, Einsum, Embed
from ..layers.recurrent import DenseParams
from ..module.bound import whose

# Names that no layer has: the two may lie among a layer's own parameters.
DOWN, UP = "lora_a", "lora_b"
KERNELS = ("kernel", "embedding")


@dataclasses.dataclass(frozen=True)
class Form:
    """A kernel as a matrix, or several.

    Attributes:
      name: of the variable.
      batch: how many of its first axes count matrices.
      rows: how many axes after them are contracted.
    """

    name: str
    batch: int
    rows: int

    def parts(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """The sizes of the axes that count matrices, are contracted, come out."""
        n = self.batch + self.rows
        return tuple(shape[: self.batch]), tuple(shape[self.batch : n]), tuple(shape[n:])


def form_of(module: object, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Form | None:
    """How the kernel of a layer is a matrix; None for a module that has none."""
    if isinstance(module, (Dense, DenseParams)):
        return Form("kernel", 0, 1)
    if isinstance(module, Embed):
        return Form("embedding", 0, 1)
    if isinstance(module, DenseGeneral):
        return Form("kernel", len(_listed(module.batch_dims)), len(_listed(module.axis)))
    if isinstance(module, ConvLocal):
        return Form("kernel", len(_listed(module.kernel_size)), 1)
    # The window is contracted along with the channels: that is what one output is made of.
    if isinstance(module, (Conv, ConvTranspose)):
        return Form("kernel", 0, len(_listed(module.kernel_size)) + 1)
    if isinstance(module, Einsum):
        given = module.einsum_str or kwargs.get("einsum_str") or (args[1:] or (None,))[0]
        return _of_equation(module, given or "")
    return None


def _listed(value: int | Sequence[int]) -> Sequence[int]:
    return value if isinstance(value, Sequence) else (value,)


def _of_equation(module: Einsum, equation: str) -> Form:
    """The form of an einsum's kernel: axes in front of those contracted count matrices."""
    inputs, _, out = equation.replace(" ", "").partition("->")
    x, _, kernel = inputs.partition(",")
    # Letters before the arrow and not behind it are summed over: only these see the input.
    contracted = [name in x and name not in out for name in kernel]
    batch = contracted.index(True) if any(contracted) else len(contracted)
    rows = sum(contracted)
    if "." in kernel or not rows or not all(contracted[batch : batch + rows]):
        raise AdaptError(
            f"{whose(module)}: the kernel is no matrix.\n"
            f"found: {equation!r}\n"
            f"expected: axes of the kernel that are contracted, side by side; or another where="
        )
    return Form("kernel", batch, rows)


def summed(kernel: object, down: object, up: object, scale: float, place: str) -> Any:
    """A kernel and what its adapter adds: one function for a layer that runs and for `merge`."""
    w, a, b = boxes.unbox((kernel, down, up))
    # Axes in front, of lifts and of the kernel's own matrices, are counted twice in A and B.
    n = a.ndim + b.ndim - 2 - w.ndim
    fits = n >= 0 and a.shape[:n] == b.shape[:n] and a.shape[-1] == b.shape[n]
    if not fits or w.shape != (*a.shape[:-1], *b.shape[n + 1 :]):
        raise AdaptError(
            f"{place}: the adapter does not fit the kernel.\n"
            f"found: {DOWN} {a.shape} and {UP} {b.shape} for {w.shape}\n"
            f"expected: those that init of the adapted model makes, the axes of lifts first; or "
            f"layout= for stacks that have them elsewhere"
        )
    rows, columns = math.prod(a.shape[n:-1]), math.prod(b.shape[n + 1 :])
    # As exact as the dtype: by default a TPU multiplies float32 in bfloat16, which would be a part
    # of the kernel for good once it is merged.
    added = jnp.matmul(
        scale * a.reshape(*a.shape[:n], rows, a.shape[-1]),
        b.reshape(*b.shape[: n + 1], columns),
        precision=jax.lax.Precision.HIGHEST,
    )
    return boxes.replace_boxed(kernel, (w + added.reshape(w.shape)).astype(w.dtype))


def boxed(kernel: object, value: Array, rename: Callable[[list[Any]], list[Any]]) -> object:
    """Puts a part of an adapter in a box like its kernel's, with the names of its own axes."""
    if not isinstance(kernel, boxes.Partitioned):
        return value
    # Names may stop before the last axes.
    ndim = jnp.ndim(kernel.value)
    names = [*kernel.names, *[None] * (ndim - len(kernel.names))]
    return kernel.replace(value=value, names=tuple(rename(names)))


def cut_to(tree: object, ranks: list[int], axis: int | None) -> Any:
    """Adapters of layers, zero from each layer's rank on.

    Args:
      axis: that of the layers, None for one.
    """
    # B is zero as it is made, so that it is enough to cut A: neither gets a gradient there.
    if isinstance(tree, Mapping):
        return {
            name: part if name == UP else cut_to(part, ranks, axis) for name, part in tree.items()
        }

    def cut(x: jax.Array) -> jax.Array:
        x = x[None] if axis is None else jnp.moveaxis(x, axis, 0)
        kept = jnp.arange(x.shape[-1]) < jnp.asarray(ranks)[:, None]
        if axis is None:
            kept = kept[:1]
        x = jnp.where(kept.reshape(len(kept), *[1] * (x.ndim - 2), -1), x, 0)
        return x[0] if axis is None else jnp.moveaxis(x, 0, axis)

    return jax.tree.map(cut, tree)


def pairs_in(tree: object, path: Path = ()) -> Iterator[tuple[Path, tuple[Any, Any]]]:
    """Yields where adapters are, and what they are."""
    if not isinstance(tree, Mapping):
        return
    if DOWN in tree:
        yield path, (tree[DOWN], tree[UP])
    for name, part in tree.items():
        yield from pairs_in(part, (*path, name))


def kernel_in(node: object) -> str | None:
    if not isinstance(node, Mapping):
        return None
    return next((name for name in KERNELS if name in node), None)


def without_adapters(tree: object) -> Any:
    """A copy of nested mappings, less the adapters in it."""
    if not isinstance(tree, Mapping):
        return tree
    return {k: without_adapters(v) for k, v in tree.items() if k not in (DOWN, UP)}
