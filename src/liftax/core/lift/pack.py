"""Lifts of one's own over functions of scopes, as Linen has them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax

from ..events import LiftEvent, Recorder
from ..filters import Filter, in_filter
from ..filters import group as by_filter
from ..roles import Roles, Row
from ..streams import Keyed
from ..types import Collections, Function, Group, Path, Tree
from .crossing import Opening

__all__ = ["pack", "tree_map_rngs"]

# A user's lift is written over scopes, and is called by one of modules: nothing in its signature
# could hand this on.
lifting: ContextVar[Any] = ContextVar("liftax_lifting", default=None)
"""What a lift of modules is made of, for a lift of the user's that sees its scopes alone."""


class _Packed(Roles):
    """The table of `pack`: in which group a collection goes in, and in which it comes out.

    Args:
      lift: the lift's name.
      ins, outs: the filters of the groups, by direction.
      rngs: those of the streams.
      mutable: what may be written besides.
    """

    advice = "a filter for {0!r} in in_variable_filters and in out_variable_filters"

    def __init__(
        self,
        lift: str,
        ins: Sequence[Filter],
        outs: Sequence[Filter],
        rngs: Sequence[Filter],
        mutable: Filter = True,
    ):
        # One name may stand in several filters here: the first one takes it.
        super().__init__(lift, [], [])
        self.ins, self.outs, self.mutable = ins, outs, mutable
        self.streams = tuple((rng, False) for rng in rngs)
        self.rows = (
            *(Row(f, "", "in_variable_filters", leaves=False) for f in ins),
            *(Row(f, _out(j), "out_variable_filters") for j, f in enumerate(outs)),
        )

    def of(self, col: str) -> Row | None:
        if col not in self._rows:
            # In and out are asked apart, since a collection may go in by one filter and come out by
            # another.
            enters = any(in_filter(f, col) for f in self.ins)
            found = (_out(j) for j, f in enumerate(self.outs) if in_filter(f, col))
            role = next(found, None) if in_filter(self.mutable, col) else None
            # Not in the table at all is another answer than in it and written nowhere: messages
            # differ.
            self._rows[col] = None
            if enters or role is not None:
                argument = "in_variable_filters" if enters else "out_variable_filters"
                self._rows[col] = Row(col, role or "", argument, enters, role is not None)
        return self._rows[col]


def _out(number: int) -> str:
    return f"group {number}"


def pack(
    fn: Callable[..., tuple[Any, Sequence[Group]]],
    in_variable_filters: Sequence[Filter],
    out_variable_filters: Sequence[Filter],
    rng_filters: Sequence[Filter],
    name: str | None = None,
    enable_kwargs: bool = False,
) -> Function:
    """A lift of one's own, as Linen's own ones are written; `liftax.lift` asks for less.

    Args:
      fn: called as ``fn(scope_fn, repack_fn, variable_groups, rng_groups, *args)``; returns the
        output and what ``repack_fn`` returned. ``scope_fn(variable_groups, rng_groups)`` makes
        scopes of groups, inside of a transformation; it takes ``mutable_filter``, which
        collections may be written at most. ``repack_fn(scopes)`` ends them and returns what may be
        written of their variables.
      in_variable_filters: the collections of each group that goes in. A group has a dict of
        collections for each scope.
      out_variable_filters: those of each group that comes out.
      rng_filters: the streams of each group of keys.
      name: the lift's name, for messages and the layout.
      enable_kwargs: whether ``fn`` gets keyword arguments; they are ignored otherwise.

    Returns:
      a function of a scope, or of a pytree of scopes, and the arguments.

    Example:
      >>> import jax
      >>> from liftax.core import apply, lift
      >>> def doubled(fn):
      ...     def inner(scope_fn, repack, variables, keys, x):
      ...         halved = jax.tree.map(lambda v: v / 2, variables)
      ...         scope = scope_fn(halved, keys)
      ...         y = fn(scope, x)
      ...         return 2 * y, repack(scope)
      ...     return lift.pack(inner, (True,), (True,), (True,), name='doubled')
      >>> layer = doubled(lambda scope, x: scope.get_variable('params', 'w') ** 2 * x)
      >>> apply(layer)({'params': {'w': 4.0}}, 3.0)
      24.0
    """
    label = name or str(getattr(fn, "__name__", "pack"))
    roles = _Packed(label, in_variable_filters, out_variable_filters, rng_filters)

    @functools.wraps(fn)
    def packed(scope_tree: Tree, /, *args: object, **kwargs: object) -> Any:
        if kwargs and not enable_kwargs:
            warnings.warn(
                f"{roles.lift}: keyword arguments are ignored ({', '.join(kwargs)}); "
                f"pass enable_kwargs=True to pack",
                RuntimeWarning,
                stacklevel=2,
            )
            kwargs = {}
        opening = _Packing(roles, scope_tree, _target(scope_tree, fn))
        y, written = fn(
            opening.scope_fn,
            opening.repack_fn,
            opening.groups(in_variable_filters),
            opening.key_groups(rng_filters),
            *args,
            **kwargs,
        )
        opening.write_back(*written)
        return y

    return packed


def tree_map_rngs(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Maps a function of keys, `jax.random.split` for example, over groups of them.

    Example:
      >>> import jax
      >>> keys = ({'params': jax.random.key(0)},)
      >>> tree_map_rngs(lambda key: jax.random.split(key, 3), keys)[0]['params'].shape
      (3,)
    """
    return jax.tree.map(fn, tree)


def _target(scope_tree: Tree, fn: Function) -> Any:
    """What is lifted: the module's method whose scopes these are, or the function itself."""
    body = lifting.get()
    if body is None:
        return fn
    # A lift inside of the module may be called on other scopes; then the function is what is
    # lifted.
    mine = {id(scope) for scope in body.detached.scopes}
    return body if all(id(scope) in mine for scope in jax.tree.leaves(scope_tree)) else fn


class _Packing(Opening):
    """The scopes of one call of `pack`."""

    roles: _Packed

    def groups(self, filters: Sequence[Filter]) -> tuple[Group, ...]:
        """Returns the variables by group."""
        found: list[list[Collections]] = [[] for _ in filters]
        for top in self.tops:
            names = by_filter(top.collections(), filters)
            for group, cols in zip(found, names, strict=True):
                nodes = {col: top.node(col) for col in cols}
                group.append({col: node for col, node in nodes.items() if node is not None})
        return tuple(map(tuple, found))

    def key_groups(self, filters: Sequence[Filter]) -> tuple[Keyed, ...]:
        """Returns the base keys of the streams by group."""
        found: list[list[dict[str, Any]]] = [[] for _ in filters]
        for top in self.tops:
            for group, names in zip(found, by_filter(top.rngs, filters), strict=True):
                group.append({name: top.rngs[name].key for name in names})
        return tuple(map(tuple, found))

    def scope_fn(
        self,
        variable_groups: Sequence[Group],
        rng_groups: Sequence[Keyed],
        mutable_filter: Filter = True,
    ) -> Any:
        """Makes scopes around variables and keys."""
        tables, roles = self.tables, self.roles
        # For this call of `scope_fn` alone: the next one may ask for another.
        if mutable_filter is not True:
            streams = [rng for rng, _ in roles.streams]
            narrow = _Packed(roles.lift, roles.ins, roles.outs, streams, mutable_filter)
            self.tables = [narrow] * len(tables)
        inner = self.enter(variable_groups, rng_groups)
        self.tables = tables
        if inner and inner[0].call.rec is not None:
            # Nobody says when the body begins and ends, so whoever listens is told each time.
            within = _Within(inner[0].call.rec, self.event())
            for scope in inner:
                scope.call.rec = within
        return self.hand_out(inner)

    def repack_fn(self, inner_scope_tree: Tree) -> tuple[Group, ...]:
        """Ends the scopes; returns what may be written of their variables, by group."""
        # By call: the user may hand back scopes below those that were made, or several of one.
        found = {id(scope.call): scope.root for scope in jax.tree.leaves(inner_scope_tree)}
        inner = list(found.values())
        written = tuple(self.written(inner, _out(j)) for j in range(len(self.roles.outs)))
        self.close(inner)
        return written


class _Within:
    """A recorder for what happens in a lift."""

    def __init__(self, rec: Recorder, event: LiftEvent):
        self.rec = rec
        self.event = event

    def enter(self, event: LiftEvent) -> None:
        self.rec.enter(self.event)
        self.rec.enter(event)

    def exit(self) -> None:
        self.rec.exit()
        self.rec.exit()

    def took(self, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
        self.rec.took(args, kwargs)

    def gave(self, value: object) -> None:
        self.rec.gave(value)

    def variable(self, collection: str, path: Path, value: Tree) -> None:
        self.rec.enter(self.event)
        self.rec.variable(collection, path, value)
        self.rec.exit()

    def stream(self, asked: str, name: str, path: Path) -> None:
        self.rec.enter(self.event)
        self.rec.stream(asked, name, path)
        self.rec.exit()
