"""The libraries that are compared, each writing the same models in its own recommended way."""

from __future__ import annotations

from benchmarks.peers.common import BASELINE, Config, Missing, Model, Peer
from benchmarks.peers.registry import NAMES, available, load

__all__ = ["BASELINE", "NAMES", "Config", "Missing", "Model", "Peer", "available", "load"]
