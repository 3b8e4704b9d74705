"""Tracebacks that end at the user's line.

An error that comes out of a module has passed some ten functions of liftax's and of JAX's for each
of the user's. JAX leaves its own lines out of what a user sees; so does this, for both, by JAX's
own means: what `JAX_TRACEBACK_FILTERING` says holds for liftax too.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable
from typing import TypeVar

import jax

from . import jax_private
from .errors import LiftaxError

F = TypeVar("F", bound=Callable[..., object])


def boundary(fn: F) -> F:
    """Marks what a user calls: an error that comes out of it shows the user's lines alone.

    Example:
      >>> @boundary
      ... def half(x):
      ...     return x / 2
      >>> half(3)
      1.5
    """

    @functools.wraps(fn)
    def called(*args: object, **kwargs: object) -> object:
        # For pytest, which leaves out such lines, and for JAX's mode of that name.
        __tracebackhide__ = True
        try:
            return fn(*args, **kwargs)
        except Exception as error:
            shorten(error)
            raise

    return called  # type: ignore[return-value]


def shorten(error: Exception) -> None:
    """Takes the lines of liftax and of JAX out of an error's traceback, and of its causes'."""
    mode = jax.config.jax_traceback_filtering  # type: ignore[attr-defined]
    if mode == "off":
        return
    _take_in(error)
    jax_private.shorten(error)
    # JAX shows its numpy; and what was caught in `jax_private` begins with a line of that file.
    if mode != "tracebackhide":
        error.__traceback__ = _joined(jax_private.shown(_entries(error)))


def say_where(error: Exception, place: str, lift: str | None) -> None:
    """Notes on an error of JAX's in which module it came, and what to do about some.

    Args:
      error: any error; one of liftax's names its place itself, one of the user's own stays as it
        is.
      place: the module and the lift in force there, in words.
      lift: the lift in force, None outside of all.
    """
    if isinstance(error, LiftaxError) or place_of(error) is not None:
        return
    # What the user's own code raises ends at its line, which says where.
    if not jax_private.is_jax(_entries(error)[-1].tb_frame):
        return
    advice = ""
    if isinstance(error, jax.errors.ConcretizationTypeError) and lift is not None:
        advice = (
            ": Python needs a value that is traced there; nn.cond, nn.switch and jnp.where choose "
            "by such a value, and what is known before belongs in a field of the module"
        )
    error.add_note(f"in {place}{advice}")


def place_of(error: BaseException) -> str | None:
    """Returns the module that `say_where` noted, ``module /path``; None if there is no note."""
    notes: list[str] = getattr(error, "__notes__", [])
    found = (re.match(r"in (module /[^,:]*)", note) for note in notes)
    return next((match[1] for match in found if match), None)


def _take_in(error: BaseException) -> None:
    """Shortens the errors that came before an error.

    What liftax raises from an error of JAX's says all that JAX's does, but for the line of the
    user's code where that came: it becomes the end of the error's own traceback.
    """
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is None:
        return
    _take_in(cause)
    theirs = _entries(cause)
    # What liftax says of an error of JAX's takes its place, with the lines that led to it.
    if isinstance(error, LiftaxError) and cause is error.__cause__:
        error.__traceback__ = _joined([*_entries(error), *theirs])
        error.__cause__, error.__context__ = None, cause  # there for code, and not shown
        error.__suppress_context__ = True
    else:
        cause.__traceback__ = _joined(jax_private.shown(theirs))


def _entries(error: BaseException) -> list[types.TracebackType]:
    found, entry = [], error.__traceback__
    while entry is not None:
        found.append(entry)
        entry = entry.tb_next
    return found


def _joined(entries: list[types.TracebackType]) -> types.TracebackType | None:
    found: types.TracebackType | None = None
    for entry in reversed(entries):
        found = types.TracebackType(found, entry.tb_frame, entry.tb_lasti, entry.tb_lineno)
    return found
