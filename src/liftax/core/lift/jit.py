"""Lifts that stage the body out: remat and jit."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax

from ...errors import StaticArgumentError
from ..cache_keys import typed, weakly
from ..filters import Filter
from ..roles import THROUGH, through_roles
from .crossing import Opening
from .static_arguments import Static, _Body, is_traceable

_PROGRAMS = 1024  # programs that one lifted class or function keeps


class _Program:
    """What `jax.jit` made of the bodies of one key.

    A function of its own: jax keeps one cache for each function, and drops it with the
    function. The body waits by thread, as nothing of a model may be among the arguments,
    which stay in jax's caches.
    """

    def __init__(self, donate: bool, options: Mapping[str, Any]):
        waiting = self.waiting = threading.local()

        def run(variables: Any, keys: Any, kept: Any, donated: Any) -> Any:
            body, opening = waiting.call
            return _staged_call(body, opening, variables, keys, kept, donated)

        self.jitted = jax.jit(run, donate_argnums=(3,) if donate else (), **options)

    def __call__(self, body: _Body, opening: Opening, *inputs: Any) -> Any:
        before = getattr(self.waiting, "call", None)
        self.waiting.call = body, opening
        try:
            return self.jitted(*inputs)
        finally:
            self.waiting.call = before


@jax.tree_util.register_static
class _Effects:
    """What Python remembers of a body: data that leaves a program with its results.

    Attributes:
      outputs: the leaves that are not traced, their places, and the structure.
      counters: relative path -> stream -> how many keys were drawn.
      side: what the modules remember, e.g. how many submodules they named.

    Equal ones are one key of jax's caches, which then do not grow with every model.
    """

    def __init__(self, outputs: Any, counters: Any, side: Any):
        self.outputs = outputs
        self.counters = counters
        self.side = side
        leaves, traced, treedef = outputs
        self.key = typed(([_plain(leaf) for leaf in leaves], traced, treedef, counters, side))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Effects) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _plain(leaf: Any) -> Any:
    return leaf if leaf is None or isinstance(leaf, (str, bytes)) else id(leaf)


class Jit:
    """`jit` over functions of scopes, with one cache for all functions of one key."""

    def __init__(
        self,
        variables: Filter,
        rngs: Filter,
        static_argnums: int | Iterable[int],
        static_argnames: str | Iterable[str],
        donate_argnums: int | Iterable[int],
        options: Mapping[str, Any],
    ):
        self.roles = through_roles("jit", variables, rngs)
        self.static_argnums = static_argnums
        self.static_argnames = static_argnames
        self.donate = {donate_argnums} if isinstance(donate_argnums, int) else set(donate_argnums)
        self.options = dict(options)
        self.programs: dict[Any, _Program] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "programs": {}}  # programs stay behind

    def _program(self, key: Any) -> _Program:
        found = self.programs.get(key)
        if found is None:
            while len(self.programs) >= _PROGRAMS:
                self.programs.pop(next(iter(self.programs), None), None)
            found = self.programs.setdefault(key, self._new_program())
        return found

    def _new_program(self) -> _Program:
        return _Program(bool(self.donate), self.options)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        def jitted(scope: Any, *args: Any, **kwargs: Any) -> Any:
            opening = Opening(self.roles, scope, fn)
            static = Static(opening, args, kwargs, self.static_argnums, self.static_argnames)
            keys = opening.base_keys()
            body = _Body(opening.body(fn, folded=True), static)
            identity = getattr(fn, "identity", None)
            key = (
                identity() if identity is not None else fn,
                opening.fingerprint(),
                static.key(),
            )
            # A listener must hear every call.
            shared = all(t.call.rec is None for t in opening.tops)
            shared = shared and not getattr(fn, "heard", False)
            log = opening.log
            if not shared:
                run = self._new_program()
            elif log is None:
                run = self._program(weakly(key))
            else:
                # Draws that a loop outside still has to settle are found again by equal calls
                # in its body, for which they will be settled alike, and by no others.
                if (self, key) not in log.kept:
                    log.kept[self, key] = self._new_program(), {}
                run, drawn = log.kept[self, key]
                before = len(log)
            donated = self._donated(args, static)
            kept = [None if i in donated else x for i, x in enumerate(static.dynamic)]
            given = {i: static.dynamic[i] for i in donated}
            values = opening.values(THROUGH)
            try:
                out, written, effects = run(body, opening, values, keys, kept, given)
            except TypeError as cause:
                static.check_needed(opening, cause)
                raise
            leaves, traced, treedef = effects.outputs
            leaves = list(leaves)
            for i, value in zip(traced, out, strict=True):
                leaves[i] = value
            if shared and log is not None:
                if len(log) > before:
                    drawn[effects] = entries = opening.drawn_since(before)
                    if entries is None:
                        del log.kept[self, key]
                else:
                    opening.draw_again(drawn.get(effects, ()))
            opening.set_counters(effects.counters)
            restore = getattr(fn, "restore", None)
            if restore is not None:
                restore(effects.side)
            opening.write_back(*written)
            return jax.tree.unflatten(treedef, leaves)

        return jitted

    def _donated(self, args: tuple[Any, ...], static: Static) -> set[int]:
        """Returns which dynamic leaves belong to donated arguments."""
        if not self.donate:
            return set()
        for number in self.donate:
            if not -len(args) <= number < len(args):
                raise StaticArgumentError(
                    f"{static.at.place}: donate_argnums has {number}, the call has {len(args)} "
                    f"positional arguments besides the module"
                )
        wanted = {number % len(args) for number in self.donate}
        found, n = set(), 0
        for i, arg in enumerate(args):
            for leaf in jax.tree.leaves(arg):
                if is_traceable(leaf):
                    if i in wanted and n < len(static.dynamic):
                        found.add(n)
                    n += 1
        return found


def _staged_call(
    body: _Body, opening: Opening, variables: Any, keys: Any, kept: Any, donated: Any
) -> Any:
    dynamic = [donated.get(i, x) for i, x in enumerate(kept)]
    out, written = body(variables, keys, dynamic)
    outputs = (tuple(body.leaves), tuple(body.traced), body.treedef)
    side = getattr(opening.target, "side", None)
    effects = _Effects(outputs, opening.counted(), side() if side is not None else None)
    # In the order of their names, as `jax.jit` has them, where it is not disabled.
    return out, jax.tree.map(lambda leaf: leaf, written), effects


def jit(
    fn: Callable[..., Any],
    variables: Filter = True,
    rngs: Filter = True,
    static_argnums: int | Iterable[int] = (),
    static_argnames: str | Iterable[str] = (),
    donate_argnums: int | Iterable[int] = (),
    device: Any = None,
    backend: str | None = None,
    inline: bool = False,
) -> Callable[..., Any]:
    """`liftax.jit` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``; the argument numbers count
        ``args``.

    The other arguments are those of `liftax.jit`.

    Example:
      >>> from liftax.core import apply, lift
      >>> traces = []
      >>> def double(scope, x):
      ...     traces.append(x)
      ...     return x * 2
      >>> run = apply(lift.jit(double))
      >>> float(run({}, 3.0)), float(run({}, 4.0)), len(traces)
      (6.0, 8.0, 1)
    """
    options = jit_options(device, backend, inline)
    return Jit(variables, rngs, static_argnums, static_argnames, donate_argnums, options)(fn)


def jit_options(device: Any, backend: str | None, inline: bool) -> dict[str, Any]:
    """Returns those options of `jax.jit` that differ from its defaults."""
    options = {"device": device, "backend": backend, "inline": inline or None}
    return {name: value for name, value in options.items() if value is not None}
