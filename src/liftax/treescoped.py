"""Modules, variables and layouts as treescope shows them: folded, with their arrays drawn.

Treescope asks an object for its `__treescope_repr__`. Only then is anything of treescope imported,
so it need not be installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def shown(value: object, parts: Mapping[str, object], path: str | None, renderer: object) -> Any:
    """What treescope shows of a value: its class, and parts that fold.

    Args:
      value: whose class is named.
      parts: what is shown inside, by name.
      path: as treescope hands it in.
      renderer: the same.
    """
    from treescope import repr_lib

    # Not as code that makes it again: parts that are as by default are left out.
    return repr_lib.render_object_constructor(
        object_type=type(value),
        attributes=parts,
        path=path,
        subtree_renderer=renderer,
        roundtrippable=False,
    )
