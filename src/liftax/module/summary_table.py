"""The drawing of a `Summary`: trees as text in the manner of YAML, and a table by rich."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping
from typing import Any

import jax

from ..core import boxes
from ..pytrees import is_array
from ..words import array_text

_LEAF = (bool, int, float, complex, str, bytes, type(None))


def draw(
    table: Any,
    costs: tuple[str, ...],
    console_kwargs: Mapping[str, object],
    table_kwargs: Mapping[str, object],
    column_kwargs: Mapping[str, Any],
) -> str:
    """Draws a `Summary` with rich; ``costs`` are the names of the columns of costs."""
    # Here and not above: it is an extra, and takes as long to import as all of liftax.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # What the user says of the looks comes last, and wins.
    looks: dict[str, Any] = {
        "show_header": True,
        "show_lines": True,
        "show_footer": True,
        "title": f"{type(table.module).__name__} Summary",
        "caption": f"\n[bold]Total Parameters: {_amount(*table.total())}[/bold]",
    }
    grid = Table(**{**looks, **table_kwargs})
    names = ["path", "module", "inputs", "outputs", *costs]
    for name in names:
        footer = "Total" if name == names[-1] else ""
        grid.add_column(name, **{"footer": Text(footer, justify="right"), **column_kwargs})
    for name in table.collections:
        grid.add_column(name, **{"footer": _amount(*table.total(name)), **column_kwargs})
    for row in table:
        method = "" if row.method == "__call__" else f" ({row.method})"
        cells = ["/".join(row.path), row.class_name + method]
        cells += ["\n".join(_lines(tree)) for tree in (row.inputs, row.outputs)]
        for cost in costs:
            flops = getattr(row, cost)
            cells.append("?" if flops is None else f"{flops:,}")
        for name in table.collections:
            own = row.module_variables[name]
            parts = ["\n".join(_lines(own)) if own else "", _amount(*row.count(name))]
            cells.append("\n\n".join(part for part in parts if part))
        grid.add_row(*(Text(cell) for cell in cells))
    file = io.StringIO()
    looks = {"force_terminal": True, "force_jupyter": False, **console_kwargs, "file": file}
    Console(**looks).print(grid)
    return f"\n{file.getvalue()}\n"


def _amount(size: int, size_in_bytes: int) -> str:
    if not size:
        return ""
    number, unit = float(size_in_bytes), "B"
    for larger in ("KB", "MB", "GB", "TB"):
        if number < 1000:
            break
        number, unit = number / 1000, larger
    return f"{size:,} ({number:,.0f} B)" if unit == "B" else f"{size:,} ({number:,.1f} {unit})"


def _lines(tree: object) -> list[str]:
    """A tree as text in the manner of YAML."""
    items = _items(tree)
    if items is None:
        return [_word(tree)]
    if not items:
        return ["{}" if isinstance(tree, Mapping) else "()"]
    lines = []
    for name, value in items:
        below = _items(value)
        if not name:
            first, *rest = _lines(value)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
        # A short value stands on the line of its name, a container below it; a sequence is not
        # indented, since its dashes are.
        elif not below:
            lines.append(f"{name}: {_lines(value)[0]}")
        else:
            indent = "  " if below[0][0] else ""
            lines += [f"{name}:", *(indent + line for line in _lines(value))]
    return lines


def _items(tree: object) -> list[tuple[str, object]] | None:
    """The parts of a container by name ("" in a sequence); None for what is no container."""
    if isinstance(tree, Mapping):
        return [(str(name), value) for name, value in tree.items()]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True))
    if isinstance(tree, (list, tuple)):
        return [("", value) for value in tree]
    if isinstance(tree, _LEAF) or boxes.is_axis_metadata(tree) or is_array(tree):
        return None
    if dataclasses.is_dataclass(tree) and not jax.tree_util.all_leaves([tree]):
        return [(field.name, getattr(tree, field.name)) for field in dataclasses.fields(tree)]
    return None


def _word(leaf: object) -> str:
    if boxes.is_axis_metadata(leaf):
        inside = "\n".join(_lines(boxes.unbox(leaf)))
        names = getattr(leaf, "names", None)
        return inside if names is None else f"{inside} P({', '.join(map(str, names))})"
    if is_array(leaf):
        return str(array_text(leaf))
    if isinstance(leaf, _LEAF):
        return str(leaf)
    # The repr of anything else may hold whole arrays, or an address that changes from run to run.
    return str(getattr(leaf, "__name__", type(leaf).__name__))
