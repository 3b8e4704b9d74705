"""Who listens while a model is traced: the engine's side of `liftax.layout`.

Protocol
--------
`recorder` is a context variable that holds a `Recorder` or, nearly always, `None`. The engine
looks it up once per event; with no recorder that look-up is the whole cost.

* Around the call of a lift's body, inside the traced function::

      rec = recorder.get()
      if rec is not None:
          rec.enter(LiftEvent("scan", Body, path=scope.path, size=length, role_of=...))
      try:
          ...call the body...
      finally:
          if rec is not None:
              rec.exit()

  Lifts nest: `enter` pushes, `exit` pops; between the two, `took` says what the body was given and
  `gave` what it returned: an iteration's own, tracers among them. A lift without an axis (remat,
  jit, grad, cond) says `kind`, `target` and `path`, and leaves everything else out.

* When a scope creates a variable, or reads one for the first time, with the value as that scope
  sees it (inside a scan over layers: the value of one layer)::

      rec.variable("params", ("Dense_0", "kernel"), value)

  `path` ends with the variable's name; `value` is an array, a tracer, a `ShapeDtypeStruct`, or a
  pytree of them, metadata boxes already taken off. Saying it again is harmless.

* When a key is drawn from a stream: `rec.stream("dropout", "params", module_path)`, with the stream
  that was asked for, and the one that is there.

Invariants
----------
Which lifts enclose a variable follows from where it was seen, not from paths (two lifts may sit
at one path): of all sightings the one in the deepest nest counts. Nothing here looks at values.
"""

from __future__ import annotations

import contextlib
import inspect
import linecache
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple, Protocol, TypedDict

import jax

from ..errors import RULES
from .roles import Role
from .types import Path, Tree


class Made(NamedTuple):
    """Where a lift was made, as in `nn.scan(Body, ...)`.

    Attributes:
      line: `file:line` of the user's call.
      quiet: the codes of findings that are silenced there.
    """

    line: str | None = None
    quiet: frozenset[str] = frozenset()


def made_of(target: object) -> Made:
    """Where the body of a lift was lifted; of a stack and a core lift, what holds at the call."""
    return getattr(target, "made", None) or Made(None, quiet.get())


quiet: ContextVar[frozenset[str]] = ContextVar("liftax_quiet", default=frozenset())
"""The codes of findings that lifts made now are not to have."""


@contextlib.contextmanager
def silenced(*codes: str) -> Iterator[None]:
    """Lifts made in the block have no findings of these codes.

    Where a slip would look the same as what is meant, the model says so itself.

    Args:
      *codes: `"LX901"`, ...: those of findings of a layout, or of a `LiftWarning` about a lift.

    Raises:
      ValueError: there is no warning or note of that code.

    Example:
      >>> import jax, liftax as nn
      >>> def findings():
      ...   members = nn.vmap(nn.Dense, variable_axes={'params': 0}, split_rngs={'params': True})(3)
      ...   x = jax.ShapeDtypeStruct((2, 4), 'float32')
      ...   return [f.code for f in nn.layout(members, jax.random.key(0), x).findings]
      >>> findings()
      ['LX901']
      >>> with nn.silenced('LX901'):
      ...   findings()
      []
    """
    for code in codes:
        if code not in RULES or RULES[code].severity == "error":
            known = ", ".join(c for c, rule in RULES.items() if rule.severity != "error")
            raise ValueError(f"silenced: no finding has the code {code!r}; there are {known}")
    token = quiet.set(quiet.get() | {*codes})
    try:
        yield
    finally:
        quiet.reset(token)


class Told(TypedDict, total=False):
    """What a lift with an axis says of itself besides, as `LiftEvent` has it."""

    size: int
    axis_name: str | None
    carry: bool
    batch: bool


@dataclass(frozen=True)
class LiftEvent:
    """One lift, at the moment when its body is called.

    Attributes:
      kind: the name of the transformation: `"scan"`, `"vmap"`, `"remat"`, ...
      target: the class or function that was lifted, the user's own and not a wrapper of it.
      path: the module path at which the lift stands.
      size: the length of the new axis, `None` for lifts that have no axis.
      axis_name: the name given to the axis (partition name in `metadata_params`, or `axis_name`).
      role_of: collection -> the axis it is stacked along (an int, negative counts from the end),
        `"broadcast"`, `"carry"`, or `None` where the lift leaves the collection as it is.
      split_of: stream -> split or not, `None` where the lift says nothing about it.
      carry: whether a value is handed from one iteration to the next.
      batch: whether an input has the axis.
      shared: the paths of modules that all iterations share, whatever `role_of` says.
      details: anything worth showing in the drawing (`{"reverse": True, "policy": "..."}`).
    """

    kind: str
    target: object
    path: Path = ()
    size: int | None = None
    axis_name: str | None = None
    role_of: Callable[[str], Role | None] = lambda collection: None
    split_of: Callable[[str], bool | None] = lambda stream: None
    carry: bool = False
    batch: bool = False
    shared: tuple[Path, ...] = ()
    details: Mapping[str, object] = field(default_factory=dict)

    def role_at(self, collection: str, path: Path) -> Role | None:
        """The role of a collection's variable at ``path``."""
        if any(path[: len(shared)] == shared for shared in self.shared):
            return "broadcast"
        return self.role_of(collection)

    @cached_property
    def name(self) -> str:
        """The name of the body's class or function."""
        target = _unwrapped(self.target)
        name = getattr(target, "__qualname__", None) or type(target).__qualname__
        return name.rpartition("<locals>.")[2]

    @cached_property
    def file_line(self) -> str | None:
        """`file:line` of the body's definition, `None` where Python does not know it."""
        target = _unwrapped(getattr(self.target, "source", self.target))
        code = getattr(target, "__code__", None)
        if code is not None:
            return f"{code.co_filename}:{code.co_firstlineno}"
        return class_line(target if isinstance(target, type) else type(target))

    @property
    def made(self) -> Made:
        """Where the user lifted the body."""
        return made_of(self.target)


class Recorder(Protocol):
    """What the engine calls; `liftax.layout` installs the implementation."""

    def enter(self, event: LiftEvent) -> None: ...

    def exit(self) -> None: ...

    def took(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None: ...

    def gave(self, value: object) -> None: ...

    def variable(self, collection: str, path: Path, value: Tree) -> None: ...

    def stream(self, asked: str, name: str, path: Path) -> None: ...


recorder: ContextVar[Recorder | None] = ContextVar("liftax_recorder", default=None)


_NOT_THE_USERS = (os.path.dirname(jax.__file__) + os.sep, contextlib.__file__)
_OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_MODELS = os.path.join(_OURS, "recipes.py")  # are written as a user would write them


def is_users(file: str) -> bool:
    """Tells whether a file is neither liftax's nor JAX's."""
    ours = file.startswith(_OURS) and file != _MODELS
    return not ours and not file.startswith(_NOT_THE_USERS)


def users_line() -> str | None:
    """`file:line` of the innermost caller outside of liftax and of JAX, None if there is none."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if is_users(file):
            return f"{file}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return None


def class_line(cls: type) -> str | None:
    """`file:line` of a class, `None` where its source is not to be had.

    A class that Python code made at run time (a lifted class) stands where its base does.
    `inspect` parses the whole file to find a class; looking for the line is enough here.
    """
    # A lifted class was made at run time: the user's class is the first that stands in a file.
    for base in cls.__mro__:
        if vars(base).get("_liftax_module") or base is object:
            return None  # the root of all modules says nothing
        found = _own_line(base)
        if found is not None:
            return found
    return None


def _own_line(cls: type) -> str | None:
    firsts = [f.__code__.co_firstlineno for f in vars(cls).values() if hasattr(f, "__code__")]
    try:
        file = inspect.getsourcefile(cls)
    except (OSError, TypeError):
        return None
    if file is None:
        return None
    head = re.compile(rf"\s*class\s+{re.escape(cls.__name__)}\b")
    found = [i for i, line in enumerate(linecache.getlines(file), 1) if head.match(line)]
    # Of two classes of one name, the one that the methods stand below.
    before = [i for i in found if any(i <= first for first in firsts)]
    return f"{file}:{(before or found)[-1]}" if found else None


def _unwrapped(target: object) -> object:
    """What the user wrote: without partials, wrappers and bound methods around it."""
    while not isinstance(target, type):
        for attribute in ("func", "__wrapped__", "__func__"):
            inner = getattr(target, attribute, None)
            if callable(inner):
                target = inner
                break
        else:
            break
    return target
