"""Scopes: one path's view of the variables and streams.

Vocabulary
  root     the scope that ``init``, ``apply``, ``bind`` or a lift makes; it holds
           the collections and what is true of the whole call
  scope    a root, or a name below another scope; it holds no variables itself,
           only the way to its place in the root's collections

Invariants
  A collection that may not be written is the caller's own mapping and is never
  changed; one that may be written is a private copy of its dicts.
  What Python remembers of a call (counters of streams, names in use) is in the
  scope and nowhere else.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax

from .. import jax_private
from ..absent import refusal
from ..errors import InvalidNameError, NameInUseError, where
from ..treescoped import shown
from ..words import describe
from . import boxes, refusals
from .call import Call
from .filters import Filter
from .holding import may_hold_tracers
from .linen_keys import log_draw
from .streams import Rngs, Stream, as_streams
from .trees import copy_dicts
from .types import Collections, Function, Node, Path

T = TypeVar("T")

_UNSET = object()
_MAY_LEAK = (jax.core.Tracer, tuple)  # a tuple: what was sown


class Scope:
    """One path's view of the variables and streams.

    Args:
      variables: collection -> nested dict of variables at this place.
      rngs: stream -> key.
      name: this scope's name, None for a root.
      mutable: which collections may be written.
      parent: the scope above, None for a root.
      path: the names from the model's root down to here.
      flags: what else the call says, e.g. ``{'initializing': True}``.

    Example:
      >>> scope = Scope({'params': {'w': 2.0}})
      >>> scope.get_variable('params', 'w')
      2.0
    """

    # One is made for each submodule in each call.
    __slots__ = (
        "__weakref__",
        "nodes",
        "call",
        "name",
        "parent",
        "path",
        "reservations",
        "_rewound",
        "rngs",
    )

    def __init__(
        self,
        variables: Mapping[str, Any] | None = None,
        rngs: Rngs = None,
        name: str | None = None,
        mutable: Filter = False,
        parent: Scope | None = None,
        path: tuple[str, ...] = (),
        flags: Mapping[str, object] | None = None,
        *,
        _call: Call | None = None,
    ):
        self.nodes: Collections = dict(variables) if variables else {}
        self.rngs: dict[str, Stream] = as_streams(rngs)
        self.name = name
        self.parent = parent
        self.path = path
        if _call is None:
            _call = parent.call if parent is not None else Call(mutable, flags or {})
        self.call: Call = _call
        self.reservations: dict[str, set[str | None]] = {}
        self._rewound: dict[str, int] | None = None

    # --- the place ------------------------------------------------------------

    @property
    def root(self) -> Scope:
        """The scope at the top of this one."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    @property
    def path_text(self) -> str:
        """The path as text, e.g. ``/encoder/Dense_0``."""
        return "/" + "/".join(self.path)

    @property
    def mutable(self) -> Filter:
        return self.call.mutable

    @property
    def flags(self) -> Mapping[str, object]:
        return self.call.flags

    @property
    def invalid(self) -> bool:
        """Whether the call that this scope belongs to has ended."""
        return not self.call.valid

    def invalidate(self) -> None:
        """Ends the scope: any later use raises InvalidScopeError."""
        self.call.end()

    @contextlib.contextmanager
    def temporary(self) -> Iterator[Scope]:
        """Yields the scope and ends it afterwards."""
        # From here on each scope of the call notes what it holds, for `Call.end` to let go of.
        self.call.held = [self.nodes, self.rngs]
        try:
            yield self
        finally:
            self.call.end()

    def has_flag(self, key: str) -> bool:
        return key in self.call.flags

    def get_flag(self, key: str, default: object = _UNSET) -> Any:
        """Returns a flag; raises ValueError if it is not set and has no default."""
        if default is _UNSET and key not in self.call.flags:
            raise ValueError(f"{self.where()}: flag {key!r} is not set")
        return self.call.flags.get(key, default)

    def where(self) -> str:
        return where(self.path, self.call.lift)

    def check_valid(self) -> None:
        if not self.call.valid:
            raise refusals.not_valid(self)

    # --- names ----------------------------------------------------------------

    def name_reserved(self, name: str, col: str | None = None) -> bool:
        """Tells whether ``name`` is taken, for ``col`` or (None) for a child scope."""
        taken = self.reservations.get(name)
        return taken is not None and (col is None or None in taken or col in taken)

    def reserve(self, name: str, col: str | None = None) -> None:
        """Takes a name, for a variable in ``col`` or (None) for a child scope.

        Raises:
          NameInUseError: it is taken already.
          InvalidNameError: it is no text.
        """
        taken = self.reservations.get(name)
        if taken is None:
            if not isinstance(name, str):
                raise InvalidNameError(
                    f"{self.where()}: expected a text as a name; found {name!r} "
                    f"({type(name).__name__})"
                )
            self.reservations[name] = {col}
            return
        # A child has its name alone; variables share one where their collections differ, as in
        # Linen.
        if col is None or None in taken or col in taken:
            what = "a child scope" if col is None else f"a variable of {col!r}"
            raise NameInUseError(
                f"{self.where()}: the name {name!r} is in use and cannot also be {what}"
            )
        taken.add(col)

    def default_name(self, prefix: str) -> str:
        """Returns ``prefix`` with the first number that is not taken."""
        i = 0
        while f"{prefix}{i}" in self.reservations:
            i += 1
        return f"{prefix}{i}"

    def push(self, name: str | None = None, prefix: str = "", reuse: bool = False) -> Scope:
        """Returns the child scope ``name``.

        Args:
          name: the child's name; None numbers ``prefix``.
          prefix: for automatic names.
          reuse: True allows a name that is taken already.
        """
        self.check_valid()
        if name is None:
            name = self.default_name(prefix)
        if not reuse or name not in self.reservations:
            self.reserve(name)
        return self.below(name)

    def below(self, name: str) -> Scope:
        """Returns the child scope ``name``, which is taken already."""
        rngs = {n: stream.at(name) for n, stream in self.rngs.items()} if self.rngs else {}
        return Scope.make({}, rngs, name, self, (*self.path, name), self.call)

    @staticmethod
    def make(
        nodes: Collections,
        rngs: dict[str, Stream],
        name: str | None,
        parent: Scope | None,
        path: tuple[str, ...],
        root: Call,
    ) -> Scope:
        """Makes a scope of what is checked already."""
        made = Scope.__new__(Scope)
        made.nodes = nodes
        made.rngs = rngs
        made.name = name
        made.parent = parent
        made.path = path
        made.call = root
        made.reservations = {}
        made._rewound = None
        if root.held is not None:
            root.held += nodes, rngs
        return made

    def rewound(self, rewind_rngs: bool = False) -> Scope:
        """Returns this scope with no names taken: for calling a function again.

        Args:
          rewind_rngs: True restarts the streams too, so that keys repeat.
        """
        self.check_valid()
        again = Scope.make(self.nodes, self.rngs, self.name, self.parent, self.path, self.call)
        again._rewound = {} if rewind_rngs else self._rewound
        return again

    def child(
        self,
        fn: Callable[..., T],
        name: str | None = None,
        prefix: str | None = None,
        named_call: bool = True,
        **partial_kwargs: object,
    ) -> Callable[..., T]:
        """Returns ``fn`` bound to a new child scope, callable more than once.

        Args:
          fn: a function of a scope.
          name: the child's name; None makes one from ``prefix``.
          prefix: defaults to the function's name.
          named_call: True shows the name in profiles.
          **partial_kwargs: handed to ``fn`` at each call.
        """
        if name is None and prefix is None:
            prefix = fn.__name__ + "_" if hasattr(fn, "__name__") else ""
        scope = self.push(name, prefix or "")

        @functools.wraps(fn)
        def bound(*args: object, **kwargs: object) -> T:
            # Each time with no names taken, so that it finds its variables again; keys go on.
            kwargs = {**partial_kwargs, **kwargs}
            if not named_call:
                return fn(scope.rewound(), *args, **kwargs)
            with jax.named_scope(scope.name or ""):
                return fn(scope.rewound(), *args, **kwargs)

        return bound

    # --- streams --------------------------------------------------------------

    @property
    def rng_counters(self) -> dict[str, int]:
        """How many keys were drawn at this path, by stream."""
        # Kept by the call and not here: a scope that is made again at this path goes on counting.
        if self._rewound is not None:
            return self._rewound
        return self.call.counters.setdefault(self.path, {})

    def has_rng(self, name: str) -> bool:
        """Tells whether a key was handed in for the stream."""
        return name in self.rngs

    def make_rng(self, name: str = "params") -> jax.Array:
        """Draws the next key of a stream at this path.

        A stream that was not handed in falls back on ``params``.

        Raises:
          InvalidRngError: there is no key for the stream.
        """
        return self.draw(name)

    def draw(self, name: str, bases: tuple[str, ...] = ()) -> Any:
        self.check_valid()
        stream, asked = self.rngs.get(name), name
        if stream is None:
            stream = self.rngs.get("params")
            if stream is None:
                raise refusals.no_stream(self, name)
            name = "params"
        root, counters = self.call, self.rng_counters
        counter = counters[name] = counters.get(name, 0) + 1
        if root.rec is not None:
            root.rec.stream(asked, name, self.path)
        # In the body of a loop the number is settled when the body has ended, see linen_keys.
        if root.log is None:
            return stream.draw(counter)
        return log_draw(root.log, stream, counters, name, root.creating, bases)

    # --- variables ------------------------------------------------------------

    def node(self, col: str) -> Node | None:
        """Returns this scope's part of a collection for reading, None if there is none."""
        node: Any = self.nodes.get(col)
        if node is None and self.parent is not None:
            above = self.parent.node(col)
            if above is not None:
                node = above.get(str(self.name))
                if node is None:
                    return None
                if not isinstance(node, Mapping):
                    raise refusals.no_mapping(self, col, node)
                self.nodes[col] = node  # type: ignore[assignment]
        return node

    def own(self, col: str) -> Node:
        """Returns this scope's part of a collection for writing."""
        node: Any = self.node(col)
        if node is None:
            if self.parent is None:
                node = {}
            else:
                node = self.parent.own(col).setdefault(str(self.name), {})
            self.nodes[col] = node
        return node

    def collections(self) -> list[str]:
        """Returns the names of the collections of this call."""
        return list(self.root.nodes)

    def variables(self) -> Collections:
        """Returns this scope's variables, collection -> nested dict.

        Those that this call may write are a copy; the others are the caller's own.
        """
        self.check_valid()
        found = {}
        for col in self.collections():
            node = self.node(col)
            if node is not None:
                own = type(node) is dict and not self.call.is_mutable(col)
                found[col] = node if own else copy_dicts(node)
        return found

    def mutable_variables(self) -> Collections:
        """Returns those of `variables` that may be written in this call."""
        return {c: v for c, v in self.variables().items() if self.call.is_mutable(c)}

    def is_mutable_collection(self, col: str) -> bool:
        """Tells whether the collection may be written in this call."""
        return self.call.is_mutable(col)

    def is_collection_empty(self, col: str) -> bool:
        """Tells whether the collection has nothing in this scope."""
        return not self.root.nodes.get(col)

    def has_variable(self, col: str, name: str) -> bool:
        """Tells whether the variable exists here; refuses one that a lift leaves outside."""
        if self.call.held is None and not self.call.valid:
            raise refusals.not_valid(self)
        node = self.node(col)
        if node is not None and name in node:
            return True
        if self.call.outside is not None:
            refusals.check_not_hidden(self, col, name)
        return False

    def get_variable(self, col: str, name: str, default: object = None) -> Any:
        """Returns a variable's value, boxed if it is, or ``default`` if it is missing.

        Raises:
          UnnamedCollectionError: it exists, and a lift in force leaves it outside.
        """
        root = self.call
        if not root.valid:
            refusals.check_readable(self, col)
        node = self.node(col)
        if node is None or name not in node:
            if root.outside is not None:
                refusals.check_not_hidden(self, col, name)
            return default
        value = node[name]
        if root.rec is not None:
            root.rec.variable(col, (*self.path, name), boxes.unbox(value))
        return value

    def put_variable(self, col: str, name: str, value: object) -> None:
        """Writes a variable, making it if it is missing.

        A dict is merged into a dict that stands there already.

        Raises:
          ModifyScopeVariableError: the collection is not mutable in this call.
          UnnamedCollectionError: a lift in force has no role for the collection.
          LeakedTracerError: the value belongs to a transformation inside this call.
        """
        self.check_valid()
        root = self.call
        if not root.is_mutable(col):
            self.check_named(col)
            raise refusals.immutable(self, col, name)
        # With no transformation started since, only what was kept from an earlier one leaks: a
        # tracer, or one in the tuple that sow makes.
        if jax_private.current_trace() is not root.trace or isinstance(value, _MAY_LEAK):
            before = (self.node(col) or {}).get(name)
            refusals.check_leak(self, col, name, _added(before, value))
        self._merge(self.own(col), col, (*self.path, name), value)

    def _merge(self, node: Node, col: str, path: Path, value: object) -> None:
        """Writes ``value`` at ``path``, whose last name is a key of ``node``, in place."""
        current = node.get(path[-1], _UNSET)
        if isinstance(current, dict) and isinstance(value, Mapping):
            for key, part in value.items():
                self._merge(current, col, (*path, key), part)
            return
        root = self.call
        if current is _UNSET:
            if root.rec is not None:
                root.rec.variable(col, path, boxes.unbox(value))
            if not root.late:
                root.made_plain.add((col, path))
            # A loop outside marks what is made; the body must go on with the marked value.
            if root.on_birth is not None:
                value = root.on_birth(col, path, value, root.late)
        node[path[-1]] = value

    def check_named(self, col: str) -> None:
        """Raises UnnamedCollectionError where a write to ``col`` would be lost in a lift."""
        if self.call.outside is not None:
            refusals.check_named(self, col)

    def variable(
        self,
        col: str,
        name: str,
        init_fn: Function | None = None,
        *init_args: object,
        unbox: bool = True,
        **init_kwargs: object,
    ) -> Variable:
        """Declares a variable and makes it, where it is missing, from ``init_fn``.

        Args:
          col: the collection.
          name: the variable's name, unused in this scope and collection.
          init_fn: called with ``*init_args, **init_kwargs`` for the initial value;
            None declares a variable that must exist.
          unbox: False keeps a metadata box around ``value``.

        Raises:
          ScopeVariableNotFoundError: it is missing and may not be made.
        """
        self.check_valid()
        self.reserve(name, col)
        if not self.has_variable(col, name):
            if init_fn is None:
                raise refusals.not_found(self, col, name)
            self._check_may_make(col, name, init_fn)
            create = functools.partial(init_fn, *init_args, **init_kwargs)
            self.make_variable(col, name, create, create)
        return Variable(self, col, name, unbox)

    def param(
        self,
        name: str,
        init_fn: Function,
        *init_args: object,
        unbox: bool = True,
        **init_kwargs: object,
    ) -> Any:
        """Declares a parameter and returns its value.

        Args:
          name: unused in this scope's ``params``.
          init_fn: called as ``init_fn(key, *init_args, **init_kwargs)``.
          unbox: False returns the metadata box around the value.

        Raises:
          ScopeParamNotFoundError: it is missing and may not be made.
          ScopeParamShapeError: its shape is not the one that ``init_fn`` makes.
        """
        self.check_valid()
        self.reserve(name, "params")
        value = self.get_variable("params", name, _UNSET)
        if value is not _UNSET:
            if unbox and not isinstance(value, jax.Array):
                value = boxes.unbox(value)
            # Most initializers are called with the shape: then there is no need to run one, if only
            # abstractly.
            if not (init_args and getattr(value, "shape", None) == init_args[0]):
                refusals.check_shape(self, name, value, init_fn, init_args, init_kwargs)
            return value
        self._check_may_make("params", name, init_fn)

        def create() -> object:
            return init_fn(self.make_rng("params"), *init_args, **init_kwargs)

        self.make_variable("params", name, create, (init_fn, init_args, init_kwargs))
        value = self.get_variable("params", name)
        return boxes.unbox(value) if unbox else value

    def _check_may_make(self, col: str, name: str, init_fn: Function) -> None:
        """Raises where a variable that is missing may not be made, or nothing makes it."""
        if not self.call.is_mutable(col):
            # It would have been made: a lift that would lose it is told first.
            self.check_named(col)
            raise refusals.not_found(self, col, name)
        if not callable(init_fn):
            raise refusals.no_initializer(self, col, name, init_fn)

    def make_variable(
        self, col: str, name: str, create: Callable[[], object], given: object
    ) -> None:
        """Makes a variable and writes it.

        Args:
          col, name: where.
          create: returns its first value.
          given: what ``create`` makes it of, which decides whether it can be run right now.
        """
        root = self.call
        # Keys that are drawn from here on are for a variable of `col`: what a loop shares takes the
        # keys of Linen's first trace, see linen_keys.
        outside, root.creating = root.creating, col
        try:
            if root.is_run and self._is_concrete() and not may_hold_tracers(given):
                # JAX runs it in less time than it takes to trace it.
                with jax_private.now():
                    value = create()
            else:
                value = create()
            self.put_variable(col, name, value)
        finally:
            root.creating = outside

    def _is_concrete(self) -> bool:
        """Tells whether an initial value that is made now would be made of arrays alone."""
        here = jax_private.current_trace() is self.call.trace and self.call.log is None
        return here and not may_hold_tracers([stream.key for stream in self.rngs.values()])


def _added(before: object, value: Any) -> Any:
    """Returns what a tuple has that the last value had not: of what was sown, the last alone.

    The rest was looked at when it was written, and is once more when the call ends.
    """
    if type(before) is type(value) is tuple and 0 < len(before) < len(value):
        if value[len(before) - 1] is before[-1]:
            return value[len(before) :]
    return value


class Variable:
    """A named value in a collection, read and written through ``value``.

    Example:
      >>> from liftax.core import apply
      >>> def count(scope):
      ...     calls = scope.variable('state', 'calls', lambda: 0)
      ...     calls.value += 1
      ...     return calls.value
      >>> apply(count, mutable='state')({'state': {'calls': 4}})
      (5, {'state': {'calls': 5}})
    """

    __slots__ = ("collection", "name", "scope", "unbox")

    def __init__(self, scope: Scope, collection: str, name: str, unbox: bool = True):
        self.scope = scope
        self.collection = collection
        self.name = name
        self.unbox = unbox

    def __repr__(self) -> str:
        place = "/".join((self.collection, *self.scope.path, self.name))
        held = self.scope.get_variable(self.collection, self.name, _UNSET)
        said = "no value yet" if held is _UNSET else ", ".join(map(describe, jax.tree.leaves(held)))
        return f"Variable({place}: {said})"

    def __treescope_repr__(self, path: str | None, subtree_renderer: Any) -> Any:
        held = self.scope.get_variable(self.collection, self.name, None)
        parts = {"collection": self.collection, "path": "/".join((*self.scope.path, self.name))}
        return shown(self, {**parts, "value": held}, path, subtree_renderer)

    @property
    def value(self) -> Any:
        """The value, without its metadata box unless ``unbox`` is False."""
        value = self.scope.get_variable(self.collection, self.name)
        return boxes.unbox(value) if self.unbox else value

    @value.setter
    def value(self, value: object) -> None:
        if self.unbox:
            current = self.scope.get_variable(self.collection, self.name, _UNSET)
            # Without a box in it the old value says nothing of the new one's structure.
            if current is not _UNSET and boxes.holds_boxes(current):
                value = boxes.replace_boxed(current, value)
        self.scope.put_variable(self.collection, self.name, value)

    def is_mutable(self) -> bool:
        """Tells whether the collection may be written in this call."""
        return self.scope.is_mutable_collection(self.collection)


def __getattr__(name: str) -> Any:
    raise refusal(__name__, name, ["Scope", "Variable"])
