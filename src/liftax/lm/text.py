"""Bytes to train on: the standard library's documentation and sources."""

from __future__ import annotations

import functools
import importlib.util
import pydoc_data.topics
from pathlib import Path

import numpy as np

# Large, readable, and in every Python since 3.11.
SOURCES = ("argparse", "ast", "dataclasses", "difflib", "doctest", "enum", "inspect", "typing")
HELD_OUT = 20
"""One part in so many, the last, is held out."""


@functools.cache
def whole() -> np.ndarray:
    """All of the text as bytes, in the same order on every machine with this Python.

    Example:
      >>> whole().dtype.name, len(whole()) > 500_000
      ('uint8', True)
    """
    topics = pydoc_data.topics.topics
    parts = [topics[name] for name in sorted(topics)]
    for name in SOURCES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            parts.append(Path(spec.origin).read_text(encoding="utf-8"))
    # Bytes as tokens: no tokenizer to fetch, and none to disagree about between processes.
    return np.frombuffer("\n\n".join(parts).encode(), np.uint8)


def parts() -> tuple[np.ndarray, np.ndarray]:
    """What is trained on, and what is held out."""
    text = whole()
    cut = len(text) - len(text) // HELD_OUT
    return text[:cut], text[cut:]


def batch(text: np.ndarray, seed: int, step: int, size: int, context: int) -> np.ndarray:
    """The batch of a step: it depends on the seed and the step, and on nothing that ran before.

    Returns:
      int32 of shape ``(size, context + 1)``.

    Example:
      >>> batch(np.arange(100, dtype=np.uint8), seed=0, step=7, size=2, context=3).shape
      (2, 4)
    """
    # Philox is made for being keyed: a run that goes on draws what it would have drawn, and every
    # process draws the same without a word between them.
    draws = np.random.Generator(np.random.Philox(key=[seed, step]))
    starts = draws.integers(0, len(text) - context - 1, size)
    return text[starts[:, None] + np.arange(context + 1)].astype(np.int32)
