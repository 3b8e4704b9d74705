"""The lifted jit: one compiled program for equal modules, arguments and counters."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import jax

from ... import jax_private
from ...errors import StaticArgumentError
from ...pytrees import Rest
from ..cache_keys import typed, weakly
from ..roles import THROUGH
from ..scope import Scope
from ..streams import Keyed
from ..types import Function, Group, Tree
from .births import Kind, Marks
from .counters import Counted, counted, draw_again, drawn_since, fingerprint, set_counters
from .crossing import Opening
from .forms import choice
from .one_trace import Loop
from .options import Through, lift_of
from .places import Variables, flat, nested, rewritten
from .static_arguments import Inputs, Static, StaticBody, is_traceable

__all__ = ["jit"]

_PROGRAMS = 1024  # programs that one lifted class or function keeps


class _Program:
    """What `jax.jit` made of the bodies of one key.

    A function of its own: jax keeps one cache for each function, and drops it with the
    function. The body waits by thread, as nothing of a model may be among the arguments,
    which stay in jax's caches.
    """

    def __init__(self, options: Jit):
        waiting = self.waiting = threading.local()

        def run(
            variables: Group, keys: Keyed, kept: list[Any], donated: dict[int, Any]
        ) -> tuple[list[Any], list[Group], _Effects]:
            body, opening = waiting.call
            dynamic = [donated.get(i, x) for i, x in enumerate(kept)]
            out, written = body(variables, keys, dynamic)
            side = getattr(opening.target, "side", lambda: None)
            return out, written, _Effects(body.rest, counted(opening), side())

        self.jitted = jax.jit(run, donate_argnums=(3,) if options.donated else (), **options.of_jax)

    def __call__(self, body: StaticBody, opening: Opening, *inputs: object) -> Any:
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
      outputs: what the body returned, without what is traced.
      counters: how many keys were drawn.
      side: what the modules remember, e.g. how many submodules they named.

    Equal ones are one key of jax's caches, which then do not grow with every model.
    """

    def __init__(self, outputs: Rest, counters: Counted, side: object):
        self.outputs = outputs
        self.counters = counters
        self.side = side
        leaves, taken, treedef = outputs
        self.key = typed(([_plain(leaf) for leaf in leaves], taken, treedef, counters, side))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Effects) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


def _plain(leaf: object) -> Hashable:
    # What Python returned is handed on as the very object that it was.
    return leaf if leaf is None or isinstance(leaf, (str, bytes)) else id(leaf)


@dataclasses.dataclass(frozen=True, eq=False)
class Jit(Through):
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

    lift = "jit"

    static_argnums: int | Iterable[int] = ()
    static_argnames: str | Iterable[str] = ()
    donate_argnums: int | Iterable[int] = ()
    device: object = None
    backend: str | None = None
    inline: bool = False
    # By key. They go with the lift, and so with the class or function that was lifted.
    programs: dict[Hashable, _Program] = dataclasses.field(
        default_factory=dict, init=False, repr=False
    )

    @functools.cached_property
    def donated(self) -> frozenset[int]:
        """The numbers of donated arguments."""
        numbers = self.donate_argnums
        return frozenset((numbers,) if isinstance(numbers, int) else numbers)

    @functools.cached_property
    def of_jax(self) -> dict[str, Any]:
        """Those options of `jax.jit` that differ from its defaults; it warns of some when given."""
        options = {"device": self.device, "backend": self.backend, "inline": self.inline or None}
        return {name: value for name, value in options.items() if value is not None}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "programs": {}}  # programs stay behind

    def program(self, key: Hashable) -> _Program:
        """Returns the program of a key, made where there is none."""
        found = self.programs.get(key)
        if found is None:
            while len(self.programs) >= _PROGRAMS:
                self.programs.pop(next(iter(self.programs), None), None)
            found = self.programs.setdefault(key, _Program(self))
        return found

    def run(self, fn: Function, scopes: Tree, /, *args: Tree, **kwargs: object) -> Any:
        """Runs a function as a compiled program, found by all that Python looks at in it."""
        opening = Opening(self.roles, scopes, fn)
        static = Static(opening, args, kwargs, self.static_argnums, self.static_argnames)
        keys = opening.base_keys()
        if opening.heard and not jax_private.jit_is_disabled():
            return _in_parts(self, opening, fn, static, keys)
        body = StaticBody(opening.body(fn, folded=True), static)
        # A method of a module says what makes two modules one program; a function is itself.
        identity = getattr(fn, "identity", None)
        key = (identity() if identity is not None else fn, fingerprint(opening), static.key())

        # A listener must hear every call.
        shared = all(top.call.rec is None for top in opening.tops)
        shared = shared and not getattr(fn, "heard", False)
        log = opening.log
        if not shared:
            program = _Program(self)
        elif log is None:
            program = self.program(weakly(key))
        else:
            # Draws that a loop outside still has to settle are found again by equal calls
            # in its body, for which they will be settled alike, and by no others.
            if (self, key) not in log.kept:
                log.kept[self, key] = _Program(self), {}
            program, drawn = log.kept[self, key]
            before = len(log)

        donated = _donated(self.donated, args, static)
        kept = Inputs(None if i in donated else x for i, x in enumerate(static.dynamic))
        given = {i: static.dynamic[i] for i in donated}
        inputs = opening.values(THROUGH), keys, kept, given
        out, written, effects = static.call(program, body, opening, *inputs)

        # What a program that was found again did not do, because Python did not run.
        if shared and log is not None:
            if len(log) > before:
                drawn[effects] = entries = drawn_since(opening, before)
                if entries is None:
                    del log.kept[self, key]
            else:
                draw_again(opening, drawn.get(effects, ()))
        set_counters(opening, effects.counters)
        getattr(fn, "restore", lambda side: None)(effects.side)
        opening.write_back(*written)
        return effects.outputs.filled(out)


jit = lift_of("jit", Jit)


def _in_parts(options: Jit, opening: Opening, fn: Function, static: Static, keys: Keyed) -> object:
    """Runs a body inside a loop that shares what it makes, as two programs.

    In Linen's second trace of the loop the variables are there: the first program makes them,
    the second has them among its inputs.
    """
    marks = Marks()
    values = opening.values(THROUGH)
    before = flat(values)

    def see(inner: Sequence[Scope]) -> None:
        marks.listen(inner, {THROUGH: Kind.EACH}, opening.tops)
        for scope in inner:
            scope.call.wants_first = True

    body = StaticBody(opening.body(fn, folded=True, see=see), static)

    def traced(dynamic: Inputs, x: None) -> tuple[object, ...]:
        out, (after,) = body(values, keys, dynamic)
        written = rewritten(after, {**before, **marks.values})
        return [], {}, (out, written), ({}, None)

    loop = Loop(traced, static.dynamic, None, marks, opening)

    def then(dynamic: Inputs, born: Variables) -> Any:
        return loop.step({}, dynamic, born, None)[2]

    again = jax.jit(then, **options.of_jax)
    if not marks.births:  # all that it makes is there
        out, written = again(static.dynamic, {})
    else:
        whole = jax.jit(lambda dynamic: loop.whole({}, dynamic, {}, None), **options.of_jax)
        (_, _, first), births = whole(static.dynamic)
        born = loop.write(births)
        collections = [place[1] for place in marks.births]
        out, written = choice(first, again(static.dynamic, born), collections)
    opening.write_back(nested(written, len(opening.tops)))
    return body.outputs(out)


def _donated(numbers: frozenset[int], args: tuple[Tree, ...], static: Static) -> set[int]:
    """Returns which dynamic leaves belong to donated arguments."""
    if not numbers:
        return set()
    for number in numbers:
        if not -len(args) <= number < len(args):
            raise StaticArgumentError(
                f"{static.at.place}: donate_argnums has {number}, the call has {len(args)} "
                f"positional arguments besides the module"
            )
    # JAX counts the leaves that the program takes: those that can be traced.
    wanted = {number % len(args) for number in numbers}
    owners = [i for i, arg in enumerate(args) for x in jax.tree.leaves(arg) if is_traceable(x)]
    return {n for n, i in enumerate(owners[: len(static.dynamic)]) if i in wanted}
