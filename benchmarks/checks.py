"""Peers ready to be measured: built, given the same parameters, and checked to agree."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from benchmarks.peers import BASELINE, NAMES, Config, Missing, Model, Peer, available
from benchmarks.peers import by_hand as hand
from benchmarks.table import Table, error_text
from benchmarks.timing import Settings

TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}


@dataclasses.dataclass(frozen=True)
class Ready:
    """A peer's model with its variables and an input, or the shapes of both."""

    peer: Peer
    model: Model
    variables: Any
    x: Any


def columns(settings: Settings) -> list[str]:
    """Names of the peers asked for; the baseline always takes part."""
    return [n for n in NAMES if settings.peers is None or n in settings.peers or n == BASELINE]


def wanted(settings: Settings) -> tuple[dict[str, Peer], dict[str, str]]:
    return available(columns(settings))


def prepare(
    config: Config, settings: Settings, table: Table, *, gradients: bool = True
) -> dict[str, Ready]:
    """Every peer's model, checked against the hand-written one: the output, and the gradients.

    A peer that cannot be imported or built, or that disagrees, is left out of the measurement
    and named in the table's notes.
    """
    peers, missing = wanted(settings)
    table.note_missing(missing)
    ready: dict[str, Ready] = {}
    for name, peer in peers.items():
        outcome = checked(name, peer, config, gradients)
        if isinstance(outcome, Ready):
            ready[name] = outcome
        else:
            table.note(f"{name}: {outcome}")
    return ready


@functools.lru_cache(maxsize=256)
def checked(name: str, peer: Peer, config: Config, gradients: bool = True) -> Ready | str:
    """The peer's model, or why it is left out; remembered, as several tables use one model."""
    try:
        model = peer.build(config)
        variables, x = model.adopt(hand.noisy(config)), config.input()
        expected = reference(config, gradients)
        found = expected if peer is hand else signature(model, variables, x, gradients)
        difference = disagreement(found, expected, TOLERANCE[config.dtype])
    except Missing as error:
        return f"left out, {error}"
    except Exception as error:  # one peer's fault must not hide the others' figures
        return f"failed, {error_text(error)}"
    return difference or Ready(peer, model, variables, x)


@functools.lru_cache(maxsize=64)
def reference(config: Config, gradients: bool) -> list[np.ndarray]:
    model = hand.build(config)
    return signature(model, hand.noisy(config), config.input(), gradients)


def signature(model: Model, variables: Any, x: jax.Array, gradients: bool) -> list[np.ndarray]:
    """What must agree: the output, the gradient to the input, the norm of the other gradients.

    The variables are laid out differently from peer to peer, hence the norm.
    """

    def loss(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = model.forward(variables, x)
        return (y.astype("float32") ** 2).mean(), y

    if not gradients:
        return [np.asarray(jax.jit(model.forward)(variables, x), np.float32)]
    (to_variables, to_x), y = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables, x)
    squares = [(g.astype("float32") ** 2).sum() for g in jax.tree.leaves(to_variables)]
    return [np.asarray(value, np.float32) for value in (y, to_x, sum(squares) ** 0.5)]


def disagreement(found: list[np.ndarray], reference: list[np.ndarray], tolerance: float) -> str:
    names = ("output", "gradient to the input", "norm of the gradient to the parameters")
    for what, mine, other in zip(names, found, reference, strict=False):
        scale = float(np.abs(other).max())
        difference = float(np.abs(mine - other).max())
        if mine.shape != other.shape or not difference <= tolerance * scale:
            return f"left out, its {what} is off by {difference:.2g} of {scale:.2g}"
    return ""
