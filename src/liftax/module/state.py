"""What modules remember while they run, and where: per instance and per thread.

What Python remembers of a call must not outlive it, nor be seen by another one: a body may be
traced twice, cached, or run by a thread of its own. So a module's memory is one `State`, which a
clone does not share, and what is true of all modules is a context variable or a thread's own.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from ..core.scope import Scope
from ..core.types import Function

NEW, RUNNING, DONE = range(3)
"""How far the ``setup`` of a module is."""

Interceptor = Callable[[Function, tuple[Any, ...], dict[str, Any], Any], object]
"""The user's ``(next_fun, args, kwargs, context)``, free to look into all four."""


class Standing(NamedTuple):
    """Where a module stands when a lift is called.

    A body may run more than once, and long after the call: its clones of the module start
    from here each time, whatever became of the module.

    Attributes:
      setup: as in State; DONE too where it ran outside already.
      in_compact, cursors: as in State.
      within: the name of the ``compact_name_scope`` method that runs.
    """

    setup: int
    in_compact: bool
    cursors: dict[str, int]
    within: str | None


LIFTED = "<lambda>"
"""What interceptors are told of a module that a lift takes; methods inside have their names."""


class State:
    """What one module instance remembers besides its fields.

    Attributes:
      setup: NEW, RUNNING or DONE.
      in_compact: whether a compact method of it runs now.
      in_setup: whether its ``setup`` runs now.
      cursors: class name -> how many submodules were named after it so far.
      children: the submodules by name, and None for each variable, for display.
      held: the fields that have modules in them, None before the module is bound.
      within: the scope of a ``compact_name_scope`` method that runs now, or None.
      announced: whether interceptors heard that a lift takes it.
      again: whether ``setup`` ran outside already, of a clone inside a lift.
    """

    setup = NEW
    in_compact = False
    in_setup = False
    held: list[str] | None = None
    within: Scope | None = None
    again = False
    announced = False

    def __init__(self) -> None:
        self.cursors: dict[str, int] = {}
        self.children: dict[str, object] = {}

    def twin(self) -> State:
        """Returns the same state for a copy of the module."""
        made = copy.copy(self)
        made.cursors, made.children = dict(self.cursors), dict(self.children)
        return made

    def standing(self) -> Standing:
        """Returns where the module stands now."""
        # The name alone: a scope of now would be held by bodies that JAX keeps in its caches.
        within = None if self.within is None else self.within.name
        setup = DONE if self.again and self.setup == NEW else self.setup
        return Standing(setup, self.in_compact, dict(self.cursors), within)

    def go_on(self, before: Standing) -> None:
        """Lets a clone inside a lift go on where the module outside stood."""
        self.again = before.setup == DONE
        if before.setup == RUNNING:  # to run it again would come here again, and so on
            self.setup = RUNNING
        self.in_compact = before.in_compact
        if before.cursors:
            self.cursors = dict(before.cursors)

    def forget(self) -> None:
        """Lets go of the submodules, at the end of a call that the module was made for.

        They hold on to the module in turn, and together to all arrays of the call.
        """
        if not self.children:
            return
        children, self.children = self.children, {}
        for child in children.values():
            if child is not None:
                state_of(child).forget()


def state_of(module: object) -> State:
    """Returns what a module remembers; for the files of the engine, modules say `self._state`."""
    state: State = module.__dict__["_state"]
    return state


class _Local(threading.local):
    """What each thread remembers."""

    def __init__(self) -> None:
        self.stack: list[Any] = [None]  # the modules whose methods run now


local = _Local()


class Watch(NamedTuple):
    """Who hears of the calls of methods.

    Attributes:
      named_call: whether profiles do.
      interceptors: the outermost first.
    """

    named_call: bool = True
    interceptors: tuple[Interceptor, ...] = ()


# In the context and not in the thread: an asyncio task sets what it alone sees.
_watch: contextvars.ContextVar[Watch] = contextvars.ContextVar("liftax_watch")
_USUAL = Watch()


def watch() -> Watch:
    """Returns who hears of the calls of methods here and now."""
    return _watch.get(_USUAL)


@contextlib.contextmanager
def intercept_methods(interceptor: Interceptor) -> Iterator[None]:
    """Calls ``interceptor`` in place of every method of every module, in a ``with`` block.

    Args:
      interceptor: called as ``interceptor(next_fun, args, kwargs, context)``; it
        may call ``next_fun(*args, **kwargs)`` for the method itself, or for the
        interceptor of the next ``with`` block inside. ``context`` is an InterceptorContext.

    What an asyncio task intercepts is its own; tasks and calls of ``asyncio.to_thread`` that
    start inside the block are intercepted, other threads are not.

    Example:
      >>> import jax, liftax as nn
      >>> names = []
      >>> def note(next_fun, args, kwargs, context):
      ...     names.append(f'{type(context.module).__name__}.{context.method_name}')
      ...     return next_fun(*args, **kwargs)
      >>> with nn.intercept_methods(note):
      ...     _ = nn.Dense(2).init_with_output(jax.random.key(0), jax.numpy.ones(3))
      >>> names
      ['Dense.__call__']
    """
    here = watch()
    _watch.set(here._replace(interceptors=(*here.interceptors, interceptor)))
    try:
        yield
    finally:
        # Not to what was before: in a generator, others may have come and gone since.
        here = watch()
        left = list(here.interceptors)
        for i in reversed(range(len(left))):
            if left[i] is interceptor:
                del left[i]
                break
        _watch.set(here._replace(interceptors=tuple(left)))


@contextlib.contextmanager
def override_named_call(enable: bool = True) -> Iterator[None]:
    """Switches the names that modules give to profiles on or off in a ``with`` block.

    Args:
      enable: whether a call of a module's method is named.

    Example:
      >>> with override_named_call(False):
      ...     watch().named_call
      False
    """
    before = watch().named_call
    _name_calls(enable)
    try:
        yield
    finally:
        _name_calls(before)


def enable_named_call() -> None:
    """Names every call of a module's method in profiles (the default), in this thread.

    Example:
      >>> enable_named_call()
      >>> watch().named_call
      True
    """
    _name_calls(True)


def disable_named_call() -> None:
    """Names no call of a module's method in profiles, in this thread.

    Example:
      >>> disable_named_call()
      >>> watch().named_call
      False
      >>> enable_named_call()
    """
    _name_calls(False)


def _name_calls(enable: bool) -> None:
    _watch.set(watch()._replace(named_call=enable))
