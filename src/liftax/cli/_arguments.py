"""Types of command-line arguments: what `argparse` calls to read one."""

from __future__ import annotations

import argparse


def count(text: str) -> int:
    """A whole number of at least one that fits where JAX takes a size.

    Example:

      >>> from liftax.cli._arguments import count
      >>> count("12")
      12
    """
    number = _whole(text)
    if not 1 <= number < 2**31:
        raise argparse.ArgumentTypeError(f"must be at least 1 and below 2**31, not {number}")
    return number


def seed(text: str) -> int:
    """A whole number that fits in 64 bits."""
    number = _whole(text)
    if not -(2**63) <= number < 2**64:
        raise argparse.ArgumentTypeError(f"must fit in 64 bits, and {number} does not")
    return number


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a whole number, not {text!r}") from None
