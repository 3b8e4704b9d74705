"""Finds the peers that are installed, and says of the others why they are missing."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from benchmarks.peers.common import BASELINE, Missing, Peer

MODULES = {
    BASELINE: "by_hand",
    "liftax": "liftax",
    "flax.linen": "linen",
    "flax.nnx": "nnx",
    "equinox": "equinox",
    "haiku": "haiku",
}
NAMES = tuple(MODULES)


def load(name: str) -> Peer:
    """The peer called ``name``; raises ``Missing`` with the reason when it cannot be imported."""
    if name not in MODULES:
        raise ValueError(f"no peer is called {name!r}; there are {', '.join(NAMES)}")
    try:
        return importlib.import_module(f"benchmarks.peers.{MODULES[name]}")  # type: ignore[return-value]
    except (ImportError, AttributeError) as error:
        raise Missing(f"cannot be imported: {error}") from error


def available(names: Iterable[str] = NAMES) -> tuple[dict[str, Peer], dict[str, str]]:
    """The peers that import, and name -> reason for those that do not."""
    found: dict[str, Peer] = {}
    missing: dict[str, str] = {}
    for name in names:
        try:
            found[name] = load(name)
        except Missing as error:
            missing[name] = str(error)
    return found, missing
