"""What the numbers of a model's variables are like, each array and each layer of a stack."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import jax
import numpy as np

from ..core.boxes import AxisMetadata
from ..core.types import Tree
from ..errors import ScopeParamShapeError, ScopeVariableNotFoundError
from .data import Stats, VariableLayout


def measured(
    row: VariableLayout, variables: Mapping[str, Tree], rows: Sequence[int] = ()
) -> VariableLayout:
    """A row of a layout with the stats of its array.

    Args:
      row: the row.
      variables: collection -> variables.
      rows: which layer lies in each row of the axis of layers, where they don't lie as they run.

    Raises:
      ScopeVariableNotFoundError: there is no such array among the variables.
      ScopeParamShapeError: it has another shape.
    """
    name = f"{row.collection}/{row.name}"
    node: object = variables
    for part in (row.collection, *row.path):
        if not isinstance(node, Mapping) or part not in node:
            raise ScopeVariableNotFoundError(
                f"with_values: {name} of the layout is not among the variables; found collections "
                f"{', '.join(map(str, variables)) or 'none'}"
            )
        node = node[part]
    # A box may hold another one.
    while isinstance(node, AxisMetadata):
        node = node.unbox()
    leaves = {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(node)}
    leaf = leaves.get(row.leaf)
    if leaf is None or tuple(np.shape(leaf)) != row.shape:
        found = "no array" if leaf is None else f"shape {tuple(np.shape(leaf))}"
        raise ScopeParamShapeError(
            f"with_values: {name} has shape {row.shape} in the layout; found {found}"
        )
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
        return row  # keys are no numbers
    array = np.asarray(leaf)
    layers: tuple[Stats, ...] = ()
    if row.layer_axis is not None:
        layers = tuple(map(stats_of, np.moveaxis(array, row.layer_axis, 0)))
        by_layer = dict(zip(rows, layers, strict=bool(rows)))
        layers = tuple(by_layer[i] for i in sorted(by_layer)) or layers
    return replace(row, stats=stats_of(array), per_layer=layers)


def stats_of(array: np.ndarray) -> Stats:
    """The stats of one array; of complex numbers, those of their magnitudes.

    Example:
      >>> stats_of(np.array([0.0, 2.0, 0.0, 2.0]))
      Stats(mean=1.0, spread=1.0, smallest=0.0, largest=2.0, zeros=0.5, nonfinite=0.0)
    """
    if array.dtype.kind not in "fiub":
        # What numpy does not know itself, such as bfloat16, it can turn into what it knows.
        array = np.abs(array) if array.dtype.kind == "c" else array.astype(np.float32)
    finite = array if array.dtype.kind != "f" else array[np.isfinite(array)]
    zeros = missing = 0.0
    if array.size:
        zeros = float(1 - np.count_nonzero(array) / array.size)
        missing = float(1 - finite.size / array.size)
    if not finite.size:
        return Stats(None, None, None, None, zeros, missing)
    return Stats(
        float(finite.mean(dtype=np.float64)),
        float(finite.std(dtype=np.float64)),
        float(finite.min()),
        float(finite.max()),
        zeros,
        missing,
    )
