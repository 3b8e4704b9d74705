"""A layout as text, as a page, and in a notebook."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from ..core.lift.schedule import Groups
from ..core.types import Tree
from ..files import replacing
from ..treescoped import shown
from .columns import text_of
from .data import LayoutData, VariableLayout
from .kept import by_module
from .page import fragment, page
from .table import Rich, as_text, axes_segments, lift_title
from .values import measured


class Layout(LayoutData):
    """Where every variable of a model lies, and which lift each axis came from.

    Example:

      >>> from liftax.layout import Axis, Layout, LiftNode, VariableLayout
      >>> scan = LiftNode(0, "scan", "Block", ("ScanBlock_0",), size=3, axis_name="layers")
      >>> kernel = VariableLayout("params", ("ScanBlock_0", "kernel"), (3, 4, 4), "float32", 192,
      ...                         axes=(Axis(3, "layers", 0), Axis(4, "in"), Axis(4, "out")))
      >>> Layout("Model", variables=(kernel,), lifts=(scan,))
      <Layout of Model: 1 variable, 48 parameters, 1 lift, 0 findings; print it for the table>
    """

    def with_values(self, variables: Mapping[str, Tree]) -> Self:
        """The layout with what the numbers are like: of each array, and of each layer of a stack.

        Args:
          variables: collection -> variables, as `init` returns them.

        Returns:
          The layout, with `stats` (mean, spread, smallest, largest, the share of zeros and of
          numbers that are not finite) and `per_layer` in its variables.

        Raises:
          ScopeVariableNotFoundError: a variable of the layout is not among them.
          ScopeParamShapeError: one has another shape.

        Example:
          >>> import jax, liftax as nn
          >>> x = jax.numpy.ones((2, 4))
          >>> layout = nn.layout(nn.Dense(3), jax.random.key(0), x)
          >>> variables = nn.Dense(3).init(jax.random.key(0), x)
          >>> layout.with_values(variables)["params/bias"].stats.zeros
          1.0
        """

        def rows(v: VariableLayout) -> Sequence[int]:
            lift = next((self.lifts[a.lift] for a in v.along if a.axis is not None), None)
            # Stored by the stages of a pipeline, the rows are not in the order of the layers.
            return Groups(*lift.order).rows(lift.size or 0) if lift and lift.order else ()

        return self.replace(
            variables=tuple(measured(v, variables, rows(v)) for v in self.variables)
        )

    def __str__(self) -> str:
        return as_text(self)

    def __rich__(self) -> Rich:
        return Rich(self)

    def _repr_html_(self) -> str:
        return fragment(self)

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        parts: dict[str, object] = {"module": self.module, "parameters": self.parameters}
        # Nested as dicts, which treescope opens one by one.
        parts["lifts"] = self._nested(None)
        for collection, group in self.by_collection.items():
            parts[collection] = {v.name: f"{v.dtype} {text_of(axes_segments(v))}" for v in group}
        if self.kept is not None:
            named = {one.name or "the model itself": one.said for one in by_module(self.kept)}
            parts["kept for the backward pass"] = {**named, "in all": self.kept.total}
        parts["findings"] = [f"{f.code}: {f.message}" for f in self.findings]
        return shown(self, parts, path, subtree_renderer)

    def _nested(self, parent: int | None) -> dict[str, object]:
        inside = self.children.get(parent, ())
        return {f"{i}: {lift_title(self.lifts[i])}": self._nested(i) for i in inside}

    def to_html(self, path: str | os.PathLike[str] | None = None) -> str:
        """One self-contained page; written to ``path``, whole or not at all, if one is given."""
        text = page(self)
        if path is not None:
            with replacing(Path(path)) as (file, _):
                file.write(text.encode())
        return text
