"""An eager call of a three-layer MLP: what a module costs outside of ``jit``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.checks import columns, wanted
from benchmarks.peers import by_hand as hand
from benchmarks.table import Table, error_text
from benchmarks.timing import Settings, interleave

SIZES = (64, 64, 64, 10)
BATCH = 8


def parameters() -> list[dict[str, jax.Array]]:
    source = np.random.default_rng(0)
    return [
        {
            "kernel": jnp.asarray(source.standard_normal((a, b), np.float32) / a**0.5),
            "bias": jnp.asarray(source.standard_normal(b, np.float32)),
        }
        for a, b in zip(SIZES, SIZES[1:], strict=False)
    ]


def run(settings: Settings) -> list[Table]:
    """One row: the time of a call, waited for."""
    table = Table("eager", "eager apply of a three-layer MLP", columns(settings))
    peers, missing = wanted(settings)
    table.note_missing(missing)
    params = parameters()
    x = jnp.asarray(np.random.default_rng(1).standard_normal((BATCH, SIZES[0]), np.float32))
    expected = hand.mlp(params)(x)
    calls: dict[str, Callable[[], Any]] = {}
    for name, peer in peers.items():
        try:
            model = peer.mlp(params)
            np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-5)
        except Exception as error:  # one peer's fault must not hide the others' figures
            table.note(f"{name}: failed, {error_text(error)}")
        else:
            calls[name] = lambda model=model: model(x).block_until_ready()
    table.put_samples("three-layer MLP", interleave(calls, settings))
    table.targets["three-layer MLP"] = "<= 1.50x"
    return [table]
