"""What runs on a mesh of explicit axes as if JAX split along all of them by itself.

In a pipeline the type of an array would have to say which stage has what, in places that JAX has no
types for: a queue, cut along the stages, that is read and written at a place which the loop counts.
So what goes in loses that part of its type, and what comes out gets it back; nothing is computed
otherwise than on a mesh of automatic axes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import jax
from jax.sharding import AxisType, PartitionSpec
from jax.tree_util import KeyPath

from ... import jax_private
from ...errors import PipelineError
from ...pytrees import split
from ..types import Tree

T = TypeVar("T")


def automatic(fn: Callable[..., T], given: Tree, *more: Tree, place: str) -> T:
    """Returns ``fn(given, *more)``, computed where no axis of the mesh is explicit.

    Args:
      fn: closes over no array. What it returns at the place of an array in ``given`` comes out
        split as that is, all else whole on each device.
      given: what most of the result is the next value of.
      *more: further arguments.
      place: where it stands, for messages.

    Raises:
      PipelineError: ``fn`` closes over an array that has its place in the explicit mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = [name for name, kind in kinds if kind == AxisType.Explicit]
    if not explicit:
        return fn(given, *more)
    inside = mesh.update_axis_types(dict.fromkeys(explicit, AxisType.Auto))
    specs = {
        path: jax.typeof(leaf).sharding.spec
        for path, leaf in jax.tree_util.tree_leaves_with_path(given)
        if isinstance(leaf, jax.Array)
    }
    arrays, others = split((given, more), lambda leaf: isinstance(leaf, jax.Array))

    def lay(path: KeyPath, leaf: jax.Array) -> jax.Array:
        return jax.sharding.reshard(leaf, specs.get(path, PartitionSpec()))

    def run(values: list[jax.Array]) -> T:
        with jax.sharding.use_abstract_mesh(inside):
            whole = [jax.sharding.reshard(value, PartitionSpec()) for value in values]
            first, rest = others.filled(whole)
            out = fn(first, *rest)
        return jax.tree_util.tree_map_with_path(lay, out)

    if not jax_private.is_compiled():
        # Without a program JAX knows only the mesh that the arrays lie on.
        run = jax.jit(run)
    try:
        return run(arrays)
    except ValueError as error:
        if _OF_TWO_MESHES.search(str(error)):
            raise _closed_over(place, explicit) from error
        raise


# How JAX says that an operation reads an array of another mesh.
_OF_TWO_MESHES = re.compile(r"context mesh .* should match the aval mesh")


def _closed_over(place: str, explicit: Sequence[str]) -> PipelineError:
    return PipelineError(
        f"{place}: the layers use an array of the mesh that is not handed to them.\n"
        f"found: {', '.join(map(repr, explicit))} explicit in the mesh, which within a pipeline "
        f"are automatic; so an array from outside has another type\n"
        f"expected: the array as an argument of the layers or as a variable; or "
        f"jax.make_mesh(..., axis_types=...) with AxisType.Auto"
    )
