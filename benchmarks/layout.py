"""Time of ``liftax.layout`` beside one abstract initialisation of the same model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.table import Table
from benchmarks.timing import Settings, interleave

LAYERS = 63  # of 16 variables each: 1,008 in all
TARGET = "<= 1.20x"


def run(settings: Settings) -> list[Table]:
    """A model of a thousand variables, unrolled, and the 12-layer scanned stack."""
    table = Table("layout", "layout() beside one abstract init", ["abstract init", "layout()"])
    try:
        import liftax as nn

        layout = nn.layout
    except (ImportError, AttributeError) as error:
        table.note(f"skipped: liftax has no layout yet, {error}")
        return [table]

    from benchmarks.peers import Config, load

    peer: Any = load("liftax")
    configs = {
        "1,008 variables, unrolled": Config(lengths=(), unrolled=LAYERS, dim=16),
        "12 layers, scanned": Config(),
    }
    for name, config in configs.items():
        calls = both(peer.stack(config), jnp.zeros(config.abstract_input().shape), layout)
        samples = interleave(calls, settings, warm_up=1)
        table.put_samples(name, samples, reference=samples["abstract init"])
        table.targets[name] = TARGET
    return [table]


def both(model: Any, x: jax.Array, layout: Callable[..., Any]) -> dict[str, Callable[[], Any]]:
    """The two calls to compare; the initialisation traces afresh each time."""
    key = jax.random.key(0)
    return {
        "abstract init": lambda: jax.eval_shape(lambda key, x: model.init(key, x), key, x),
        "layout()": lambda: layout(model, key, x),
    }
