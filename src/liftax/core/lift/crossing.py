"""The engine: scopes as plain arrays, and plain arrays as scopes again.

A lift opens the scopes it was given (`Opening`), takes their variables by role
and their keys by stream, calls a JAX primitive on a pure function that enters
the scopes again around the user's body, and writes back what came out.

Invariants
  The user's function sees new root scopes, made inside the transformation, so
  nothing it writes can reach the scopes outside except through `write_back`.
  Of scopes that lie in one another only the outermost is opened; the others
  are found again below it, so variables that are shared stay shared.
  Counters of streams belong to paths: a body counts where its path left off, and
  the path goes on where the body left off.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, Unpack

import jax
import jax.numpy as jnp
from jax.tree_util import PyTreeDef

from ...errors import where
from ..call import Around, LiftedCall
from ..events import LiftEvent, Told
from ..filters import in_filter, names_of
from ..linen_keys import Log
from ..roles import THROUGH, Role, Roles, Row
from ..scope import Scope
from ..streams import Base, Keyed, Stream
from ..trees import copy_dicts, plain_dicts, sorted_dicts
from ..types import Collections, Function, Group, Key, Path, Tree


class Pure(Protocol):
    """The user's function as a pure one: groups in, and out what it wrote under some roles."""

    def __call__(
        self,
        variables: Sequence[Group],
        keys: Sequence[Keyed],
        args: Sequence[object],
        kwargs: Mapping[str, object] | None = None,
    ) -> tuple[Any, list[Group]]: ...


class Opening(Around):
    """The scopes of one call of a lift, opened.

    Args:
      roles: the lift's table.
      scopes: a scope or a pytree of scopes.
      target: what is lifted, for messages and the layout.
      shared: those of the scopes that all iterations share, whatever the table says.
    """

    def __init__(self, roles: Roles, scopes: Tree, target: object, shared: Sequence[Scope] = ()):
        self.roles = roles
        self.target = target
        self.tree: PyTreeDef
        leaves, self.tree = jax.tree.flatten(scopes)
        self.tops: list[Scope] = []
        self.places = _places(leaves, self.tops)
        # The log of the loop body that this call stands in.
        self.log: Log | None = None
        # Whether this call may write nothing at all.
        self.read_only = True
        self.initializing = False
        self.keyless = True  # whether there is no stream
        # Of each top's streams. JAX traces a rule of derivatives when the call may have ended, and
        # its scopes have let go of their streams.
        self.paths: list[dict[str, tuple[str | int, ...]]] = []
        for top in self.tops:
            top.check_valid()
            root = top.call
            if root.log is not None and self.log is None:
                self.log = root.log
            if not root.read_only:
                self.read_only = False
            if root.flags.get("initializing"):
                self.initializing = True
            if top.rngs:
                self.keyless = False
            self.paths.append({name: stream.path for name, stream in top.rngs.items()})

        self.no_keys: Keyed = ({},) * len(self.tops)
        # The table of each top.
        self.tables = [roles] * len(self.tops)
        if shared:
            # By place and not by identity: the scope may have been pushed again since.
            whole = {(id(scope.call), scope.path) for scope in shared}
            all_shared = roles.all_shared()
            for i, top in enumerate(self.tops):
                if (id(top.call), top.path) in whole:
                    self.tables[i] = all_shared

    @property
    def place(self) -> str:
        """Where the lift stands, for messages."""
        top = self.tops[0] if self.tops else None
        return where(top.path if top else (), top.call.lift if top else None) + f", {self.label}"

    @property
    def watched(self) -> bool:
        """Whether a loop outside wants to see the variables that this call makes."""
        return self.initializing and any(top.call.on_birth is not None for top in self.tops)

    @property
    def heard(self) -> bool:
        """Whether a loop outside wants to see some of them as they are made."""
        return self.initializing and any(
            top.call.hears_first(col) for _, top, col in self._collections()
        )

    # --- going in -------------------------------------------------------------

    def values(self, role: Role) -> Group:
        """Returns the variables that go in under ``role``."""
        return self.sorted_values((role,))[role]

    def sorted_values(self, wanted: Sequence[Role]) -> dict[Role, Group]:
        """Returns the variables that go in under each of the roles, by role."""
        groups = {role: self.empty() for role in wanted}
        for i, top in enumerate(self.tops):
            roles = self.tables[i]
            for col in top.collections():
                row = roles.of(col)
                if row is not None and row.enters and row.role in groups:
                    node = top.node(col)
                    if node is not None:
                        groups[row.role][i][col] = plain_dicts(node)
        return groups

    def empty(self) -> tuple[dict[str, Any], ...]:
        """Returns a group, or keys, with nothing in it."""
        return ({},) if len(self.tops) == 1 else tuple([{} for _ in self.tops])

    def keys(self, split: bool) -> Keyed:
        """Returns the base keys of the streams that are (not) split."""
        if self.keyless:
            return self.no_keys
        return tuple(
            {n: s.key for n, s in top.rngs.items() if roles.split(n) is split}
            for top, roles in zip(self.tops, self.tables, strict=True)
        )

    def base_keys(self) -> Keyed:
        """Returns a key of each stream that goes in, to be the base of the keys inside.

        It is the stream's key with the path folded in. For a lifted module it is what Linen
        makes it: the next key, drawn at the module's own place, and for what the module holds
        of others the stream's key without their paths.
        """
        own = getattr(self.target, "own", 0)  # how many scopes, from the first, are the module's
        groups: list[dict[str, Base]] = [
            {name: s.key if own else s.folded() for name, s in top.rngs.items()}
            for top in self.tops
        ]
        for index, path in self.places[:own]:
            scope = _below(self.tops[index], path)
            # Variables of any collection may be made of the keys of a lift inside.
            bases = ("params", *scope.collections())
            for name in scope.rngs:
                key = scope.draw(name, bases)
                if not path:
                    groups[index][name] = key
        split = self.roles.split
        return tuple({n: k for n, k in g.items() if split(n) is not None} for g in groups)

    def split_keys(self, size: int, parts: int | None = None) -> Keyed:
        """Returns the keys of the split streams, stacked along a new first axis.

        Args:
          size: how many.
          parts: of how many parts each iteration has keys of its own, along a second axis and of
            the other streams too. Part ``i`` has those of the stream's key with ``i`` folded in.
        """
        if self.keyless:
            return self.no_keys

        def of_part(key: Key, apart: bool) -> Key:
            return jax.random.split(key, size) if apart else jnp.stack([key] * size)

        def of_parts(key: Key, apart: bool) -> Key:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(parts))
            return jax.vmap(lambda key: of_part(key, apart), out_axes=1)(keys)

        stacked = of_part if parts is None else of_parts
        made: dict[tuple[int, bool], Base] = {}

        def split(key: Base, apart: bool) -> Base:
            # Scopes of one call share their base keys: one split for each.
            if (id(key), apart) not in made:
                made[id(key), apart] = jax.tree.map(lambda k: stacked(k, apart), key)
            return made[id(key), apart]

        wanted = [True] if parts is None else [True, False]
        both = [(self.keys(apart), apart) for apart in wanted]
        return tuple(
            {name: split(key, apart) for keys, apart in both for name, key in keys[i].items()}
            for i in range(len(self.tops))
        )

    def can_write(self, role: Role) -> bool:
        """Tells whether the body may write any collection under ``role``."""
        return not self.read_only and any(
            row.role == role and row.leaves and top.call.is_mutable(col)
            for row, top, col in self._collections()
        )

    def writes_in_place(self) -> bool:
        """Tells whether the body may write anything where it stands that is there already."""
        return not self.read_only and any(
            row.in_place and top.node(col) and top.call.is_mutable(col)
            for row, top, col in self._collections()
        )

    def _collections(self) -> Iterator[tuple[Row, Scope, str]]:
        """Yields what each row of each top's table names there."""
        for top, roles in zip(self.tops, self.tables, strict=True):
            for row in roles.rows:
                names = list(names_of(row.filter))
                if not names and row.filter is not False:
                    # A filter by exclusion may name any collection, also one that nobody has made.
                    known = (*top.collections(), *top.call.spelled())
                    names = [col for col in known if in_filter(row.filter, col)]
                for col in names:
                    yield row, top, col

    def enter(
        self,
        variables: Sequence[Group],
        keys: Sequence[Keyed],
        *,
        log: Log | None = None,
        folded: bool = False,
    ) -> list[Scope]:
        """Makes the scopes inside the transformation.

        Args:
          variables: groups of variables, as from `values`.
          keys: groups of keys, as from `keys` and `split_keys`.
          log: takes the draws of the body, see rngs.
          folded: whether the keys are `base_keys`, which have the path in them.
        """
        inner = []
        # Made inside the transformation, so that each scope belongs to the trace that is current
        # now.
        for i, top in enumerate(self.tops):
            root = LiftedCall(self, top, self.tables[i])
            nodes: Collections = {}
            for group in variables:
                if root.read_only:
                    # Nothing will be written: the dicts outside will do.
                    nodes.update(group[i])
                    continue
                for col, node in group[i].items():
                    nodes[col] = copy_dicts(node) if root.is_mutable(col) else node
            rngs: dict[str, Stream] = {}
            if not self.keyless:
                rngs = {
                    n: Stream(key, () if folded else self.paths[i][n])
                    for group in keys
                    for n, key in group[i].items()
                }
            scope = Scope.make(nodes, rngs, top.name, None, top.path, root)
            if log is not None:
                root.log = log
            inner.append(scope)
        return inner

    def body(
        self,
        fn: Function,
        out: Sequence[Role] = (THROUGH,),
        *,
        see: Callable[[Sequence[Scope]], None] = lambda inner: None,
        log: Log | None = None,
        folded: bool = False,
        **event: Unpack[Told],
    ) -> Pure:
        """Returns the user's function as a pure one.

        Args:
          fn: a function of scopes.
          out: the roles whose variables come out.
          see: called with the inner scopes before the function is.
          log, folded: as in `enter`.
          **event: what a recorder is told besides.

        Returns:
          ``(variables, keys, args, kwargs) -> (y, written)``, with lists of groups for
          variables, keys and, one for each role in ``out``, what was written.
        """

        def run(
            variables: Sequence[Group],
            keys: Sequence[Keyed],
            args: Sequence[object],
            kwargs: Mapping[str, object] | None = None,
        ) -> tuple[Any, list[Group]]:
            inner = self.enter(variables, keys, log=log, folded=folded)
            see(inner)
            y = self.call(fn, inner, args, kwargs or {}, **event)
            written = [self.written(inner, role) for role in out]
            self.close(inner)
            return y, written

        return run

    def hand_out(self, inner: Sequence[Scope]) -> Tree:
        """Returns the inner counterparts of the scopes, in the tree that was given."""
        found = [_below(inner[index], path) for index, path in self.places]
        return jax.tree.unflatten(self.tree, found)

    def call(
        self,
        fn: Function,
        inner: Sequence[Scope],
        args: Sequence[object],
        kwargs: Mapping[str, object],
        **event: Unpack[Told],
    ) -> Any:
        """Calls the body on the inner scopes."""
        before = []
        for top in self.tops:
            root = top.call
            if root.entered_by is not self:  # scopes of one call have one root
                # While the body runs, the scopes outside refuse: a module that was not passed in
                # has the variables of all iterations.
                before.append((root, root.valid, root.entered_by))
                root.valid, root.entered_by = False, self
        try:
            return self._run(fn, inner, self.hand_out(inner), args, kwargs, **event)
        finally:
            for root, valid, entered_by in before:
                root.valid, root.entered_by = valid, entered_by

    def call_without(
        self, fn: Function, scopes: Tree, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> Any:
        """Calls the body without its lift, on the scopes outside with no names taken.

        Where a loop outside wants to see the variables that the body makes.
        """
        again = jax.tree.map(lambda scope: scope.rewound(), scopes)
        return self._run(fn, self.tops, again, args, kwargs)

    def _run(
        self,
        fn: Function,
        seen: Sequence[Scope],
        scopes: Tree,
        args: Sequence[object],
        kwargs: Mapping[str, object],
        **event: Unpack[Told],
    ) -> Any:
        """Calls the body; who listens to the ``seen`` scopes is told."""
        rec = seen[0].call.rec if seen else None
        if rec is None:
            return fn(scopes, *args, **kwargs)
        rec.enter(self.event(**event))
        try:
            rec.took(args, kwargs)
            y = fn(scopes, *args, **kwargs)
            rec.gave(y)
            return y
        finally:
            rec.exit()

    def event(self, **event: Unpack[Told]) -> LiftEvent:
        """Returns what a recorder is told of this call."""
        return LiftEvent(
            self.roles.lift,
            self.target,
            path=self.tops[0].path,
            role_of=self.roles.role,
            split_of=self.roles.split,
            shared=tuple(
                top.path
                for top, roles in zip(self.tops, self.tables, strict=True)
                if roles is not self.roles
            ),
            **event,
        )

    # --- coming out -----------------------------------------------------------

    def written(self, inner: Sequence[Scope], role: Role) -> Group:
        """Returns the mutable variables of the inner scopes under ``role``.

        Collections are in the order in which they were made, what is in them in that of names.
        """
        if self.read_only:
            return self.empty()
        return tuple(
            {
                col: sorted_dicts(node)
                for col, node in scope.nodes.items()
                if scope.call.is_mutable(col) and roles.role(col) == role
            }
            for scope, roles in zip(inner, self.tables, strict=True)
        )

    def close(self, inner: Sequence[Scope]) -> None:
        """Ends the inner scopes."""
        for scope in inner:
            # Whoever kept one is told so when it is used, and the arrays can go.
            scope.call.end()

    def merged(self, groups: Iterable[Group]) -> Group:
        """Returns groups as one, in the order of the lift's arguments, in which Linen writes."""
        found = []
        for table, *parts in zip(self.tables, *groups, strict=True):
            items = [item for part in parts for item in part.items()]
            items.sort(key=lambda item, t=table: t.rows.index(t.of(item[0])))  # type: ignore[misc]
            found.append(dict(items))
        return tuple(found)

    def write_back(self, *groups: Group, late: bool = True, heard: bool = False) -> None:
        """Writes what came out to the scopes outside.

        Args:
          groups: the variables; those that may not be written in this call are left out.
          late: False for initial values, on which the body will still work.
          heard: whether a loop outside that wants it was told of them as they were made.
        """
        for top, collections in ((t, c) for g in groups for t, c in zip(self.tops, g, strict=True)):
            on_birth = top.call.on_birth
            if heard and top.call.wants_first:
                top.call.on_birth = None
            top.call.late = late
            for col, node in collections.items():
                if not node or not top.call.is_mutable(col):
                    continue
                for name, value in node.items():
                    top.put_variable(col, name, value)
            top.call.late, top.call.on_birth = False, on_birth


def _places(leaves: list[Scope], tops: list[Scope]) -> list[tuple[int, Path]]:
    """Fills ``tops`` with the outermost scopes; returns where each leaf is below them."""
    if len(leaves) == 1:
        tops += leaves
        return [(0, ())]
    # Of equal scopes the first stands for all: one given twice is opened once.
    given = {(id(scope.call), scope.path): scope for scope in reversed(leaves)}
    index: dict[tuple[int, Path], int] = {}
    places = []
    for leaf in leaves:
        top, scope = leaf, leaf
        path: Path = ()
        names: Path = ()
        while True:
            if (id(scope.call), scope.path) in given:
                top, path = given[id(scope.call), scope.path], names
            if scope.parent is None:
                break
            names = (scope.name or "", *names)
            scope = scope.parent
        key = (id(top.call), top.path)
        if key not in index:
            index[key] = len(tops)
            tops.append(top)
        places.append((index[key], path))
    return places


def _below(scope: Scope, path: Path) -> Scope:
    for name in path:
        scope = scope.push(name, reuse=True)
    return scope
