"""Names of flax.linen and flax.core that liftax does not have, and what to use instead.

One table, for whoever asks for such a name: an attribute, a `from ... import`, a program that
runs in flax's place, a code base that is rewritten.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Iterable
from opcode import opmap
from types import FrameType
from typing import Any

_DICTS = (
    "plain dicts go in and come out here, and any mapping goes in; flax's own one is "
    "liftax.core.{name}, where flax is installed"
)
_FP8 = (
    "give the layer dot_general= or dot_general_cls= of your own, or flax's: "
    "nn.from_linen(flax.linen.{name})"
)
_SCOPES = "variables and keys go in by apply and bind, and what a scope has is read from it"
_CORE = "it is liftax.core.{name}"
_TABLES = "nn.tabulate makes the table as text, nn.layout shows the same as data"
_TRACE = "jax itself refuses a tracer that leaves its transformation, and liftax says where"

_SCOPE_NAMES = ("TestScope", "fork_rngs", "clean_clone")
NEEDS_FLAX_SCOPES = frozenset(_SCOPE_NAMES)
"""Names that mean nothing without flax's own scopes, in flax's place too."""

ADVICE: dict[str, str] = {
    **dict.fromkeys(["FrozenDict", "freeze", "unfreeze", "pretty_repr"], _DICTS),
    **dict.fromkeys(
        [
            "Fp8DirectDotGeneralOp",
            "Fp8DotGeneral",
            "Fp8DotGeneralBase",
            "Fp8DotGeneralOp",
            "Fp8Einsum",
            "NANOOFp8DotGeneralOp",
        ],
        _FP8,
    ),
    **dict.fromkeys((*_SCOPE_NAMES, "LazyRng"), _SCOPES),
    **dict.fromkeys(
        [
            "CollectionFilter",
            "DenyList",
            "FrozenVariableDict",
            "MutableVariableDict",
            "PRNGSequenceFilter",
            "VariableDict",
            "apply",
            "group_collections",
            "in_filter",
            "init",
        ],
        _CORE,
    ),
    **dict.fromkeys(
        [
            "Table",
            "_ArrayRepresentation",
            "_ObjectRepresentation",
            "_get_module_table",
            "_process_inputs",
            "_tabulate_context",
        ],
        _TABLES,
    ),
    "spmd": "it is liftax.spmd",
    "_add_axis_to_metadata": "liftax.partitioning.scan_with_axes and vmap_with_axes do that",
    **dict.fromkeys(["check_trace_level", "current_trace"], _TRACE),
}
"""Name -> what to use."""


def told(package: str, name: str, known: Iterable[str]) -> str:
    """Says that a package lacks a name, and what to use or what was meant.

    >>> told("liftax", "LayerNom", ["LayerNorm", "Dense"])
    "module 'liftax' has no attribute 'LayerNom'; did you mean 'LayerNorm'?"
    """
    text = f"module {package!r} has no attribute {name!r}"
    if name in ADVICE:
        return f"{text}, which flax has: {ADVICE[name].format(name=name)}"
    if name.startswith("__"):  # Python asks, at imports and in hasattr: nobody means another name
        return text
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    return f"{text}; did you mean {near[0]!r}?" if near else text


def flaxs_own(package: str, name: str, home: str, instead: str) -> Any:
    """What flax has under a name, and liftax only where flax is installed.

    Args:
      package: who is asked.
      home: the module of flax that has it.
      instead: a sentence for those who have no flax.
    """
    try:
        return getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        # Another module that is missing is a fault of the installation, and told as it is.
        if (error.name or "").partition(".")[0] != "flax":
            raise
        raise AttributeError(
            f"{package}.{name} is flax's own, and flax is not installed. {instead}"
        ) from None


def refusal(package: str, name: str, known: Iterable[str], depth: int = 1) -> Exception:
    """The error for a name that is not there, to be raised by a module's ``__getattr__``.

    Args:
      depth: how many calls above this one the ``__getattr__`` is.

    `from package import name` replaces an AttributeError by a text of its own, so there it is an
    ImportError; anywhere else, for `hasattr` too, an AttributeError.
    """
    text = told(package, name, known)
    frame: FrameType | None = sys._getframe(depth + 1)
    if frame is not None and frame.f_lasti >= 0:
        # `from x import y` asks for an attribute as `x.y` does; which it was, the caller's bytecode
        # says.
        if frame.f_code.co_code[frame.f_lasti] == opmap["IMPORT_FROM"]:
            return ImportError(text.replace("has no attribute", "has no name"), name=name)
    # With a name, and nothing to look for others in, Python adds no guess of its own after ours.
    return AttributeError(text, name=name)
