"""flax.linen: the shared module code of ``linenlike``."""

from __future__ import annotations

import flax
import flax.linen as nn

from benchmarks.peers.linenlike import Linenlike

NAME = "flax.linen"


def version() -> str:
    return f"flax {flax.__version__}"


_peer = Linenlike(nn)
build = _peer.build
init = _peer.init
init_arrays = _peer.init_arrays
mlp = _peer.mlp
stepper = _peer.stepper
stack = _peer.stack
