"""liftax: the shared module code of ``linenlike``."""

from __future__ import annotations

import liftax as nn
from benchmarks.peers.linenlike import Linenlike

NAME = "liftax"


def version() -> str:
    return f"liftax {nn.__version__}"


_peer = Linenlike(nn)
build = _peer.build
init = _peer.init
init_arrays = _peer.init_arrays
mlp = _peer.mlp
stepper = _peer.stepper
stack = _peer.stack
