"""Lifts that stage the body out: remat and jit."""

from __future__ import annotations

import inspect
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ..core.filters import Filter
from ..core.keys import typed, weakly
from ..core.pack import Opening
from ..core.rngs import describe
from ..core.roles import THROUGH, through_roles
from ..errors import StaticArgumentError
from .axes import Placed
from .looperrors import check_options


def remat(
    fn: Callable[..., Any],
    variables: Filter = True,
    rngs: Filter = True,
    concrete: bool = False,
    prevent_cse: bool = True,
    static_argnums: int | Sequence[int] = (),
    policy: Callable[..., bool] | None = None,
    static_argnames: str | Sequence[str] = (),
) -> Callable[..., Any]:
    """`liftax.remat` over a function of a scope.

    Args:
      fn: called as ``fn(scope, *args, **kwargs)``; ``static_argnums`` counts
        ``args``.

    The other arguments are those of `liftax.remat`.

    Example:
      >>> import jax
      >>> import jax.numpy as jnp
      >>> from liftax.core import apply, lift
      >>> def layer(scope, x):
      ...     return jnp.sin(x * scope.param('w', lambda key: 1.0))
      >>> run = apply(lift.remat(layer))
      >>> float(jax.grad(lambda v: run(v, 0.0))({'params': {'w': 2.0}})['params']['w'])
      0.0
    """
    lift = rematter(variables, rngs, concrete, prevent_cse, policy, static_argnames)
    return lift(fn, static_argnums)


checkpoint = remat


def rematter(
    variables: Filter,
    rngs: Filter,
    concrete: bool,
    prevent_cse: bool,
    policy: Callable[..., bool] | None,
    static_argnames: str | Sequence[str],
) -> Callable[..., Callable[..., Any]]:
    """Returns `remat` with its arguments read, ``(fn, static_argnums) -> lifted``."""
    roles = through_roles("remat", variables, rngs)
    check_options("remat", policy=policy, prevent_cse=prevent_cse, concrete=concrete)
    # JAX says itself that it no longer supports concrete=True.
    unsupported: Any = {"concrete": True} if concrete else {}
    options = {"policy": policy, "prevent_cse": prevent_cse, **unsupported}

    def lift(
        fn: Callable[..., Any], static_argnums: int | Sequence[int] = ()
    ) -> Callable[..., Any]:
        def rematted(scope: Any, *args: Any, **kwargs: Any) -> Any:
            opening = Opening(roles, scope, fn)
            static = Static(opening, args, kwargs, static_argnums, static_argnames)
            if opening.watched and variables is True and rngs is True:
                # Nothing is differentiated while variables are made.
                return opening.call_without(fn, scope, args, kwargs)
            body = _Body(opening.body(fn), static)
            values, keys = opening.values(THROUGH), opening.keys(False)
            try:
                y, written = jax.checkpoint(body.__call__, **options)(values, keys, static.dynamic)
            except TypeError as cause:
                static.check_needed(opening, cause)
                raise
            y = body.outputs(y)
            opening.write_back(*written)
            return y

        return rematted

    return lift


# How JAX names the argument that Python needed, by the names of the functions it traces here.
_NEEDED = re.compile(r"value of the argument (?:kept|dynamic)\[(\d+)\]")
_POSITIONAL = inspect.Parameter.POSITIONAL_OR_KEYWORD
_PROGRAMS = 1024  # programs that one lifted class or function keeps


class _Body:
    """A pure body with its static arguments, and what Python remembers of its result."""

    def __init__(self, run: Callable[..., Any], static: Static):
        self.run = run
        self.static = static
        self.leaves: list[Any] = []
        self.treedef: Any = None
        self.traced: list[int] = []

    def __call__(self, variables: Any, keys: Any, dynamic: list[Any]) -> Any:
        args, kwargs = self.static.fill(dynamic)
        y, written = self.run([variables], [keys], args, kwargs)
        self.leaves, self.treedef = jax.tree.flatten(y)
        self.traced = [i for i, leaf in enumerate(self.leaves) if is_traceable(leaf)]
        return [self.leaves[i] for i in self.traced], written

    def outputs(self, traced: list[Any]) -> Any:
        """Puts the outputs together: those of the program and those of Python."""
        leaves = list(self.leaves)
        for i, value in zip(self.traced, traced, strict=True):
            leaves[i] = value
        return jax.tree.unflatten(self.treedef, leaves)


def is_traceable(leaf: Any) -> bool:
    """Tells whether JAX can trace a value: an array or a number."""
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, bool, int, float, complex))


class _Positional(NamedTuple):
    """The positional parameters of a function after the scope or module.

    Attributes:
      names: theirs.
      more: whether it takes any number.
    """

    names: list[str]
    more: bool


def _positional_names(fn: Any) -> _Positional:
    parameters = inspect.signature(fn).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return _Positional(names[1:], any(p.kind is p.VAR_POSITIONAL for p in parameters))


def positional(fn: Any) -> float:
    """Returns how many positional arguments a function takes, the scope or module among them."""
    own = _positional_names(fn)
    return math.inf if own.more else len(own.names) + 1


def _has_arrays(value: Any) -> bool:
    return any(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(value))


class Static:
    """The arguments of a staged call, static ones set apart.

    What is neither an array nor a number is static by itself.

    As in `jax.jit`, an argument named or numbered is static whichever way the call passes it.
    Passed the other way, an array stays traced, as in Linen, where it always is.

    Args:
      at: what knows where the lift stands.
      args, kwargs: of the call.
      argnums: positions of static arguments, negative ones from the end.
      argnames: names of static arguments.

    Raises:
      StaticArgumentError: a position is out of range.
    """

    def __init__(
        self,
        at: Placed,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        argnums: int | Iterable[int],
        argnames: str | Iterable[str],
    ):
        self.at = at
        numbers = [argnums] if isinstance(argnums, int) else list(argnums)
        names = {argnames} if isinstance(argnames, str) else set(argnames)
        fixed = {number % len(args) for number in numbers if -len(args) <= number < len(args)}
        absent = [number for number in numbers if not -len(args) <= number < len(args)]
        if absent or (names and args):
            self._cover(args, kwargs, absent, fixed, names)
        marked = (
            [_Fixed(a) if i in fixed else a for i, a in enumerate(args)],
            {k: _Fixed(v) if k in names else v for k, v in kwargs.items()},
        )
        self.leaves, self.treedef = jax.tree.flatten(marked)
        self.where = [i for i, leaf in enumerate(self.leaves) if is_traceable(leaf)]
        self.dynamic = [self.leaves[i] for i in self.where]

    def _cover(
        self,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        absent: Iterable[int],
        fixed: set[int],
        names: set[str],
    ) -> None:
        """Adds what is named and passed by position to ``fixed``, and the reverse to ``names``."""
        target = getattr(self.at, "target", None)
        own = _positional_names(getattr(target, "method", target))
        # Linen counts the module too, so there may be one number more.
        limit = len(own.names) + hasattr(target, "method") if not own.more else math.inf
        by_position = [i for i, name in enumerate(own.names[: len(args)]) if name in names]
        for number in absent:
            if not 0 <= number < limit:
                raise StaticArgumentError(
                    f"{self.at.place}: static_argnums has {number}, the call has {len(args)} "
                    f"positional arguments besides the module; expected {-len(args)} to "
                    f"{len(args) - 1} (the module itself is not counted), or static_argnames for "
                    f"keywords"
                )
            # An argument that is left to its default is in neither place.
            name = own.names[min(number, len(own.names) - 1)] if own.names else ""
            if name in kwargs and not _has_arrays(kwargs[name]):
                names.add(name)
        fixed.update(i for i in by_position if not _has_arrays(args[i]))

    def fill(self, dynamic: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Returns the arguments with other values for the dynamic ones."""
        leaves = list(self.leaves)
        for i, value in zip(self.where, dynamic, strict=True):
            leaves[i] = value
        args, kwargs = jax.tree.unflatten(self.treedef, leaves)
        args = tuple(a.value if isinstance(a, _Fixed) else a for a in args)
        return args, {k: v.value if isinstance(v, _Fixed) else v for k, v in kwargs.items()}

    def key(self) -> Any:
        """Returns what makes one set of static arguments equal to another."""
        fixed = [
            None if i in set(self.where) else self._typed(i, leaf)
            for i, leaf in enumerate(self.leaves)
        ]
        return tuple(fixed), self.treedef

    def _typed(self, i: int, leaf: Any) -> Any:
        try:
            return typed(leaf.value if isinstance(leaf, _Fixed) else leaf)
        except StaticArgumentError as error:
            text = f"{self.at.place}: {self._name(i)}: {error}"
            raise StaticArgumentError(text) from error.__cause__

    def _name(self, leaf: int) -> str:
        """Names the argument that a leaf belongs to."""
        marked = jax.tree.unflatten(self.treedef, range(len(self.leaves)))
        path = jax.tree_util.tree_leaves_with_path(marked)[leaf][0]
        key = path[1]
        if not isinstance(key, jax.tree_util.SequenceKey):
            return f"argument {getattr(key, 'key', key)!r}"
        method = getattr(getattr(self.at, "target", None), "method", None)
        names = list(inspect.signature(method).parameters.values()) if method else []
        # The first one is the module.
        if key.idx + 1 < len(names) and names[key.idx + 1].kind is _POSITIONAL:
            return f"argument {names[key.idx + 1].name!r}"
        return f"argument {key.idx + 1}"

    def check_needed(self, opening: Opening, cause: Exception) -> None:
        """Raises StaticArgumentError where Python needed the value of a traced argument."""
        found = _NEEDED.search(str(cause))
        if found is None or int(found[1]) >= len(self.where):
            return
        i = self.where[int(found[1])]
        raise StaticArgumentError(
            f"{opening.place}: Python needs the value of {self._name(i)}, e.g. in an if or for a "
            f"shape, but it is traced.\n"
            f"found: {describe(jax.typeof(self.leaves[i]))}\n"
            f"expected: it in static_argnums (by keyword: static_argnames), or nn.cond or "
            f"jnp.where to choose by a traced value"
        ) from cause


class _Fixed:
    """A leaf that is not traced."""

    def __init__(self, value: Any):
        self.value = value


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
    """`jit` over functions of scopes, with one cache for all functions of one key.

    Args are those of `jit`, and ``drawn`` as in `collections.folder`: Linen's modules draw a key.
    """

    def __init__(
        self,
        variables: Filter,
        rngs: Filter,
        static_argnums: int | Iterable[int],
        static_argnames: str | Iterable[str],
        donate_argnums: int | Iterable[int],
        options: Mapping[str, Any],
        drawn: bool = False,
    ):
        self.roles = through_roles("jit", variables, rngs)
        self.drawn = drawn
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
            keys = opening.base_keys(self.drawn)
            body = _Body(opening.body(fn, folded=True), static)
            identity = getattr(fn, "identity", None)
            key = (
                identity() if identity is not None else fn,
                opening.fingerprint(),
                static.key(),
            )
            # A listener must hear every call.
            shared = all(t._root.rec is None for t in opening.tops)
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
    outside = [None if i in body.traced else leaf for i, leaf in enumerate(body.leaves)]
    outputs = (tuple(outside), tuple(body.traced), body.treedef)
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
