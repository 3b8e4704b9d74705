"""Where an array lies on a mesh: as ``out_sharding=`` asks, or as what it is made of lies.

On a mesh of explicit axes (the default of `jax.make_mesh`) the type of an array says how it is
split. JAX then computes nothing whose split is open, and joins nothing that is split in two ways:
what a layer makes itself (a mask, a first carry, a cache) must lie as the inputs do, and where two
answers are possible the user says which. Where no array is split, nothing here does anything.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..core import boxes
from ..spmd import get_logical_axis_rules, logical_to_mesh_axes
from .dtypes import Array

OutSharding = NamedSharding | PartitionSpec | Sequence[str | None] | None
"""How an output lies: a `PartitionSpec` of mesh axes, a `NamedSharding`, or logical names.

Names are read by the rules of `liftax.logical_axis_rules`; without rules, or without a mesh, they
and a `PartitionSpec` ask for nothing, so that the same model runs on one device.
"""

Entry = str | tuple[str, ...] | None
T = TypeVar("T")


def split_of(x: Any) -> NamedSharding | None:
    """How an array is split along explicit axes; None where it is not.

    Example:
      >>> import jax.numpy as jnp
      >>> split_of(jnp.ones(3)) is None
      True
    """
    sharding = jax.typeof(x).sharding
    return sharding if any(map(_is_split, sharding.spec)) else None


def _is_split(entry: object) -> bool:
    return entry is not None and entry is not PartitionSpec.UNCONSTRAINED


def entries(x: Any) -> tuple[Entry, ...]:
    """For each axis of an array the explicit mesh axes along which it is split."""
    spec = jax.typeof(x).sharding.spec
    # A spec may end before the axes do: those that are left out are not split.
    return (*spec, *(None,) * (x.ndim - len(spec)))


def on_mesh_of(x: Any, wanted: Sequence[Entry]) -> NamedSharding:
    """A sharding on the mesh of ``x``; of two entries with one mesh axis the first has it."""
    taken: set[str] = set()

    def free(entry: Entry) -> Entry:
        names = (entry,) if isinstance(entry, str) else tuple(entry or ())
        left = tuple(name for name in names if name not in taken)
        taken.update(left)
        return left[0] if len(left) == 1 else left or None

    # What was made outside of a mesh lies nowhere; it is the mesh in force that counts.
    mesh = jax.typeof(x).sharding.mesh
    mesh = jax.sharding.get_abstract_mesh() if mesh.empty else mesh
    return NamedSharding(mesh, PartitionSpec(*map(free, wanted)))


def lay_out(x: Array, wanted: Sequence[Entry], on: Array) -> Array:
    """``x`` split as wanted on the mesh of another array."""
    return jax.sharding.reshard(x, on_mesh_of(on, wanted))


def lay_as(x: Array, like: Array) -> Array:
    """``x`` split as ``like``, an array of the same shape."""
    if entries(x) == entries(like):
        return x
    return jax.sharding.reshard(x, on_mesh_of(like, entries(like)))


def bernoulli_as(x: Array, key: Array, p: float, shape: tuple[int, ...]) -> Array:
    """Draws of ``shape``, which broadcasts to ``x``, broadcast to it and split as it is."""
    place = split_of(x)
    if place is None:
        return jnp.broadcast_to(jax.random.bernoulli(key, p=p, shape=shape), x.shape)
    # An axis along which all have one draw is split nowhere.
    drawn = [e if n == m else None for e, n, m in zip(entries(x), shape, x.shape, strict=True)]
    mask = jax.random.bernoulli(key, p=p, shape=shape, out_sharding=on_mesh_of(x, drawn))
    return jnp.broadcast_to(mask, x.shape, out_sharding=place)


def whole(x: Array) -> Array:
    """``x``, gathered from wherever it is split along explicit axes."""
    return x if split_of(x) is None else lay_out(x, (), x)


def zeros_as(x: Array) -> Callable[..., Array]:
    """`jax.numpy.zeros`, for arrays split as ``x``."""
    place = split_of(x)
    return jnp.zeros if place is None else functools.partial(jnp.zeros, out_sharding=place)


class Asked:
    """What ``out_sharding=`` asks for, on the mesh in force.

    Attributes:
      explicit: what an operation of JAX takes as its ``out_sharding=``, or None.
      spec: the mesh axes of each axis, None where nothing is asked.
    """

    def __init__(self, out_sharding: OutSharding):
        self.spec: PartitionSpec | None = None
        self.explicit: NamedSharding | None = None
        mesh: Any = None if out_sharding is None else boxes.get_global_mesh()
        if isinstance(out_sharding, NamedSharding):
            mesh, self.spec = out_sharding.mesh, out_sharding.spec
        elif isinstance(out_sharding, PartitionSpec):
            self.spec = out_sharding
        elif out_sharding is not None and get_logical_axis_rules():
            self.spec = logical_to_mesh_axes(tuple(out_sharding))
        self.mesh = mesh
        if mesh is None:
            self.spec = None
        elif self.spec is not None and AxisType.Explicit in mesh.axis_types:
            self.explicit = boxes.part_of(self.spec, mesh, AxisType.Explicit)

    @property
    def options(self) -> dict[str, Any]:
        """The argument for an operation of JAX, if there is one to give."""
        return {} if self.explicit is None else {"out_sharding": self.explicit}

    def __call__(self, y: T) -> T:
        """Lays arrays out as asked: whatever was added since, and on automatic axes."""
        if self.spec is None:
            return y
        return boxes.constrain(y, self.spec, self.mesh)


_NOTHING = Asked(None)


def asked(out_sharding: OutSharding) -> Asked:
    """What ``out_sharding`` asks for; nearly always nothing, and nothing is made for that."""
    return _NOTHING if out_sharding is None else Asked(out_sharding)


def auto(op: Callable[..., Array], place: NamedSharding) -> Callable[..., Array]:
    """``op``, which cannot say itself how its result lies, with a result that lies in a place."""
    run: Callable[..., Array] = jax.sharding.auto_axes(op, out_sharding=place)
    return run


def following(
    op: Callable[[Array, Array], Array], place: Asked, x: Array, kernel: Array, batch: int
) -> Array:
    """``op(x, kernel)``, a convolution.

    Where nothing is asked, the result lies as ``x`` does, its last axis as that of ``kernel``.
    What is asked is of an array with ``batch`` batch axes, which are one here.
    """
    if place.explicit is not None:
        # As for all axes of the output, of which those of the batch have become one.
        spec = (*place.explicit.spec, *(None,) * (batch + x.ndim - 1))[: batch + x.ndim - 1]
        wanted = (spec[0] if batch else None, *spec[batch:])
        op = auto(op, on_mesh_of(x, wanted))
    elif split_of(kernel) is not None:
        # The channels come from the kernel, all else from the input.
        wanted = (*entries(x)[:-1], entries(kernel)[-1])
        op = auto(op, on_mesh_of(kernel, wanted))
    return op(x, kernel)


def out_sharding_field() -> Any:
    """The field ``out_sharding`` of a layer: an addition to Linen's, so by its name alone."""
    return dataclasses.field(default=None, kw_only=True)
