"""Random nests of lifts, and the Python loops that they equal.

A `Level` is one lift with its options, a nest is a tuple of levels, outermost first. `lifted`
builds the nest with the library; `Loops` computes the same with `for` loops over numpy arrays
around the body alone, un-lifted. All numbers are small integers in float32: exact in any order.

One thing is not what the loops would give by themselves. Linen runs the body of a scan twice, and
the counters of its streams go on from the first run to the second; liftax runs it once and draws
the same keys. `draws_before` plays Linen's runs through to know which draw is the one that counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

from .compare import Library
from .models import key_bits

WIDTH = 2
LOOPS = ("scan", "vmap", "pipeline")
TURNS = ("scan", "pipeline")  # loops that hand a carry on
DERIVATIVES = ("vjp", "jacfwd", "jacrev")


@dataclasses.dataclass(frozen=True)
class Level:
    """One lift. `params` and `stats` are axes; None: shared (params), carried (stats)."""

    kind: str
    size: int = 1
    params: int | None = 0
    stats: int | None = 0
    split: bool = True
    x_axis: int | None = 0
    c_axis: int = 0
    y_axis: int = 0
    k_axis: int | None = 0
    reverse: bool = False
    unroll: int | bool = 1
    sized: bool = False

    @property
    def is_loop(self) -> bool:
        return self.kind in LOOPS

    @property
    def hands_on(self) -> bool:
        return self.kind in TURNS


Nest = tuple[Level, ...]
Draws = tuple[int, int]
_AXES = st.sampled_from([0, 1, -1])
_ENDS = st.sampled_from([0, -1])


@st.composite
def levels(draw: Any, kinds: Sequence[str], carries: bool) -> Level:
    kind = draw(st.sampled_from(list(kinds)))
    if kind not in LOOPS:
        return Level(kind)
    shared = draw(st.booleans())
    if kind == "pipeline":
        # Of one microbatch, which is the whole carry; what comes out has an axis of microbatches.
        return Level(
            kind,
            size=draw(st.integers(1, 3)),
            params=None if shared else draw(_AXES),
            stats=draw(_AXES),
            split=draw(st.booleans()),
            x_axis=None if draw(st.integers(0, 4)) == 0 else draw(_ENDS),
        )
    return Level(
        kind,
        size=draw(st.integers(1, 3)),
        params=None if shared else draw(_AXES),
        stats=None if kind == "scan" and carries and draw(st.booleans()) else draw(_AXES),
        split=draw(st.booleans()),
        x_axis=None if draw(st.integers(0, 4)) == 0 else draw(_ENDS),
        c_axis=draw(_ENDS),
        y_axis=draw(_ENDS),
        k_axis=None if shared and draw(st.booleans()) else draw(_ENDS),
        reverse=draw(st.booleans()),
        unroll=draw(st.sampled_from([1, 1, 2, 3, True, False])),
        sized=draw(st.booleans()),
    )


@st.composite
def nests(draw: Any, kinds: Sequence[str], carries: bool = True, deepest: int = 4) -> Nest:
    """Nests with at least one loop, at most 18 runs of the body, gradients only innermost."""
    found = draw(st.lists(levels(kinds, carries), min_size=1, max_size=deepest))
    if not any(level.is_loop for level in found):
        found.append(draw(levels([kind for kind in kinds if kind in LOOPS], carries)))
    # What comes out of these is the same in all iterations to who looks, but not to a program.
    branches = any(level.kind in ("cond", "switch", "pipeline") for level in found)
    kept: list[Level] = []
    runs = 1
    for level in found:
        level = dataclasses.replace(level, size=min(level.size, max(1, 18 // runs)))
        if branches and level.k_axis is None:
            level = dataclasses.replace(level, k_axis=0)
        if level.kind == "shard_map" and any(one.kind == "shard_map" for one in kept):
            continue  # devices are given out once
        runs *= level.size
        if level.kind not in DERIVATIVES:
            kept.append(level)
    return (*kept, *[level for level in found if level.kind in DERIVATIVES][:1])


# --- The body -----------------------------------------------------------------------------------


def whole(key: Any, shape: Any) -> Any:
    """Small whole numbers from a key."""
    index = jnp.arange(np.prod(shape, dtype=int), dtype=jnp.float32).reshape(shape)
    return jnp.mod(key_bits(key) + 3.0 * index, 7.0) - 3.0


def _step(owner: Any, c: Any, x: Any, k: Any) -> Any:
    w = owner.param("w", whole, (WIDTH,))
    m = owner.param("m", whole, (WIDTH, 1))
    n = owner.variable("stats", "n", jnp.zeros, (WIDTH,))
    noise = 0.0
    if owner.has_rng("dropout"):
        noise = jnp.mod(key_bits(owner.make_rng("dropout")), 5.0)
    c = jnp.mod(w * x - c + noise + k, 97.0)
    if owner.is_mutable_collection("stats"):
        n.value = jnp.mod(2.0 * n.value + c, 89.0)
    return c, (c - n.value + m[:, 0], 2.0 * k + jnp.sum(w))


def body_function(scope: Any, c: Any, x: Any, k: Any, before: Draws = (0, 0)) -> Any:
    """The body over a scope; what it owns lies in a child scope."""
    inner = scope.push("inner")
    if not inner.has_variable("params", "w"):
        for _ in range(before[0]):
            inner.make_rng("params")
    for _ in range(before[1] if inner.has_rng("dropout") else 0):
        inner.make_rng("dropout")
    return _step(inner, c, x, k)


def draws_before(nest: Nest, mode: str) -> Draws:
    """How many draws precede the ones that count: of ``params`` and of ``dropout``."""
    drawn = {"params": 0, "dropout": 0}

    def body(missing: bool) -> Draws:
        before = drawn["params"], drawn["dropout"]
        drawn["params"] += 2 if missing else 0
        drawn["dropout"] += 1
        return before

    def play(levels: Nest, missing: bool) -> Draws:
        if not levels:
            return body(missing)
        first = play(levels[1:], missing)
        twice = levels[0].hands_on or (levels[0].kind == "map" and mode == "init")
        if not twice:
            return first
        # Shared parameters are those of the first run, and are there in the second.
        shared = levels[0].kind == "map" or levels[0].params is None
        second = play(levels[1:], missing and not shared)
        return (first if shared else second)[0], second[1]

    return play(nest, mode == "init")


@functools.cache
def body_class(lib: Library) -> Any:
    """The body as a module."""
    nn = lib.nn

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, c, x, k):
            return _step(self, c, x, k)

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x, k):
            return Inner(name="inner")(c, x, k)

    return Body


def with_gradients(vjp: Callable[..., Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    """The body, with the cotangents of everything that goes in beside its output."""

    def run(owner: Any, c: Any, x: Any, k: Any) -> Any:
        (c2, (y, seen)), back = vjp(fn, owner, c, x, k)
        grads, dc, dx, dk = back(jax.tree.map(jnp.ones_like, (c2, (y, seen))))
        sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(grads)]
        return c2, ({"y": y, "dc": dc, "dx": dx, "dk": dk, "dw": sums}, seen)

    return run


def with_jacobians(jacobians: Callable[..., Any], fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same without the variables': a cotangent of ones is the sum over a Jacobian's outputs."""

    def both(owner: Any, c: Any, x: Any, k: Any) -> Any:
        out = fn(owner, c, x, k)
        return out, out

    def run(owner: Any, c: Any, x: Any, k: Any) -> Any:
        found, (c2, (y, seen)) = jacobians(both, owner, c, x, k, has_aux=True)
        sums = []
        for i, given in enumerate((c, x, k)):
            rows = [leaf.reshape(-1, *jnp.shape(given)) for leaf in jax.tree.leaves(found)[i::3]]
            sums.append(jnp.sum(jnp.concatenate(rows), 0))
        return c2, (dict(zip(("y", "dc", "dx", "dk"), (y, *sums), strict=True)), seen)

    return run


def _doubled(collections: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * 2.0, collections)


def _halved(collections: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf * 0.5, collections)


# --- With the library ---------------------------------------------------------------------------


def _lift(lib: Library, lifts: Any, target: Any, level: Level) -> Any:
    kind = level.kind
    if kind == "scan":
        stacked = {"params": level.params, "stats": level.stats}
        return lifts.scan(
            target,
            variable_axes={name: axis for name, axis in stacked.items() if axis is not None},
            variable_broadcast="params" if level.params is None else False,
            variable_carry="stats" if level.stats is None else False,
            split_rngs={"params": level.params is not None, "dropout": level.split},
            in_axes=(lib.broadcast if level.x_axis is None else level.x_axis, lib.broadcast),
            out_axes=(level.y_axis, lib.broadcast if level.k_axis is None else level.k_axis),
            length=level.size if level.sized or level.x_axis is None else None,
            reverse=level.reverse,
            unroll=level.unroll,
        )
    if kind == "pipeline":
        return lifts.pipeline(
            target,
            level.size,
            1,
            bubbles="nan",  # on one device a pipeline is a scan else
            variable_axes={"stats": level.stats}
            | ({} if level.params is None else {"params": level.params}),
            variable_broadcast="params" if level.params is None else False,
            split_rngs={"params": level.params is not None, "dropout": level.split},
            in_axes=(lib.broadcast if level.x_axis is None else level.x_axis, lib.broadcast),
            length=level.size,
            microbatched={"stats": None},
        )
    if kind == "shard_map":
        mesh = jax.make_mesh((1,), ("one",), axis_types=(jax.sharding.AxisType.Auto,))
        whole = jax.sharding.PartitionSpec()
        return lifts.shard_map(
            target, mesh=mesh, in_specs=(whole,) * 3, out_specs=whole, check_vma=False
        )
    if kind == "vmap":
        return lifts.vmap(
            target,
            variable_axes={"params": level.params, "stats": level.stats},
            split_rngs={"params": level.params is not None, "dropout": level.split},
            in_axes=(level.c_axis, level.x_axis, None),
            out_axes=(level.c_axis, (level.y_axis, level.k_axis)),
            axis_size=level.size if level.sized else None,
        )
    if kind == "map":
        return lifts.map_variables(target, "params", _doubled, _halved, init=True)
    if kind == "cond":

        def branch(owner: Any, c: Any, x: Any, k: Any) -> Any:
            other = lambda owner, c, x, k: target(owner, -c, x, k)  # noqa: E731
            return lifts.cond(jnp.sum(x) > 0.0, target, other, owner, c, x, k)

        return branch
    if kind == "switch":

        def choose(owner: Any, c: Any, x: Any, k: Any) -> Any:
            branches = [
                lambda owner, c, x, k, by=by: target(owner, c * by, x, k) for by in (1.0, -1.0, 2.0)
            ]
            index = jnp.mod(jnp.sum(x), 3.0).astype(jnp.int32)
            return lifts.switch(index, branches, owner, c, x, k)

        return choose
    if kind == "vjp":
        return with_gradients(lifts.vjp, target)
    if kind in ("jacfwd", "jacrev"):
        return with_jacobians(getattr(lifts, kind), target)
    if kind == "checkify":
        return lambda owner, *args: lifts.checkify(target)(owner, *args)[1]
    return getattr(lifts, kind)(target)


def lifted(lib: Library, nest: Nest, style: str) -> tuple[Any, Any]:
    """``(init, apply)`` of the nest over functions of a scope or over module classes.

    ``init(rngs, c, x, k)`` gives (output, variables); ``apply(variables, rngs, mutable, c, x, k)``
    gives (output, changed).
    """
    target: Any = body_function if style == "functions" else body_class(lib)
    for level in reversed(nest):
        target = _lift(lib, lib.lift if style == "functions" else lib.nn, target, level)
    if style == "functions":
        init = lib.core.init(target)

        def apply(variables: Any, rngs: Any, mutable: Any, *args: Any) -> Any:
            out = lib.core.apply(target, mutable=mutable)(variables, *args, rngs=rngs)
            return out if mutable else (out, {})

        return init, apply
    model = target()

    def apply_model(variables: Any, rngs: Any, mutable: Any, *args: Any) -> Any:
        out = model.apply(variables, *args, rngs=rngs, mutable=mutable)
        return out if mutable else (out, {})

    return model.init_with_output, apply_model


# --- With Python loops --------------------------------------------------------------------------


def _take(tree: Any, axis: int | None, index: int) -> Any:
    if axis is None:
        return tree
    return jax.tree.map(lambda leaf: np.take(np.asarray(leaf), index, axis), tree)


def _stack(trees: Sequence[Any], axis: int | None) -> Any:
    if axis is None:
        return trees[0]
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(v) for v in leaves], axis), *trees)


@dataclasses.dataclass(frozen=True)
class Loops:
    """The nest as Python loops around the body: ``mode`` is "init", "train" or "eval"."""

    lib: Library
    mode: str

    def run(self, nest: Nest, variables: Any, keys: Any, c: Any, x: Any, k: Any) -> Any:
        """``((c, (y, k)), variables)``."""
        return self._run(nest, draws_before(nest, self.mode), variables, keys, c, x, k)

    def _run(
        self, nest: Nest, before: Draws, variables: Any, keys: Any, c: Any, x: Any, k: Any
    ) -> Any:
        if not nest:
            return _leaf(self.lib, self.mode, before)(variables, keys, c, x, k)
        level, inner = nest[0], nest[1:]
        if level.is_loop:
            return self._loop(level, inner, before, variables, keys, c, x, k)
        if level.kind in DERIVATIVES:
            found = _leaf_with_gradients(self.lib, self.mode, before)(variables, keys, c, x, k)
            if level.kind != "vjp":
                del found[0][1][0]["dw"]
            return found
        if level.kind == "map":
            mapped = dict(variables)
            if "params" in mapped:
                mapped["params"] = _doubled(mapped["params"])
            out, changed = self._run(inner, before, mapped, keys, c, x, k)
            if "params" in changed:
                changed = {**changed, "params": _halved(changed["params"])}
            return out, changed
        if level.kind == "cond":
            c = c if np.sum(x) > 0 else -c
        if level.kind == "switch":
            c = c * (1.0, -1.0, 2.0)[int(np.mod(np.sum(x), 3.0))]
        return self._run(inner, before, variables, keys, np.asarray(c), x, k)

    def _loop(
        self,
        level: Level,
        inner: Nest,
        before: Draws,
        variables: Any,
        keys: Any,
        c: Any,
        x: Any,
        k: Any,
    ) -> Any:
        n, scan = level.size, level.hands_on
        axes = {"params": level.params, "stats": level.stats}
        parts = level.kind == "pipeline" and self.mode != "init"
        rows = _rows(level, keys, parts)
        variables = dict(variables)
        outs: list[Any] = [None] * n
        made: list[Any] = [None] * n
        carries: list[Any] = [None] * n
        for i in _order(level):
            here = {col: _take(tree, axes[col], i) for col, tree in variables.items()}
            key = {stream: row[i] for stream, row in rows.items()}
            start = c if scan else _take(c, level.c_axis, i)
            given = _take(x, level.x_axis, i)
            found, made[i] = self._run(inner, before, here, key, start, given, k)
            carries[i], outs[i] = found
            if parts:
                outs[i] = jax.tree.map(lambda leaf: np.asarray(leaf)[None], outs[i])
            if scan:
                c = carries[i]
            # What all iterations share, the first one that runs makes; what is carried, each.
            variables.update({col: t for col, t in made[i].items() if axes[col] is None})
        if not scan:
            c = _stack(carries, level.c_axis)
        y = _stack([out[0] for out in outs], level.y_axis)
        seen = _stack([out[1] for out in outs], level.k_axis)
        changed = {
            col: variables[col] if axes[col] is None else _stack([m[col] for m in made], axes[col])
            for col in made[0]
        }
        return (c, (y, seen)), changed


def _order(level: Level) -> Any:
    order = range(level.size)
    return reversed(order) if level.kind == "scan" and level.reverse else order


def _rows(level: Level, keys: Any, parts: bool = False) -> dict[str, Any]:
    split = {"params": level.params is not None, "dropout": level.split}
    if parts:  # the keys of the first microbatch
        keys = {stream: jax.random.fold_in(key, 0) for stream, key in keys.items()}
    return {
        stream: jax.random.split(key, level.size) if split[stream] else [key] * level.size
        for stream, key in keys.items()
    }


MODES: dict[str, Any] = {"init": True, "train": ["stats"], "eval": False}


@functools.cache
def _leaf(lib: Library, mode: str, before: Draws) -> Any:
    mutable = MODES[mode]

    def leaf(variables: Any, keys: Any, *args: Any) -> Any:
        run = lib.core.apply(body_function, mutable=mutable)
        out = run(variables, *args, before, rngs=keys)
        return out if mutable else (out, {})

    return jax.jit(leaf)


@functools.cache
def _leaf_with_gradients(lib: Library, mode: str, before: Draws) -> Any:
    plain = _leaf(lib, mode, before)

    def leaf(variables: Any, keys: Any, *args: Any) -> Any:
        rest = {col: tree for col, tree in variables.items() if col != "params"}
        changed: dict[str, Any] = {}

        def vjp(fn: Any, params: Any, *args: Any) -> Any:
            out, back, aux = jax.vjp(fn, params, *args, has_aux=True)
            changed.update(aux)
            return out, back

        def call(params: Any, *args: Any) -> Any:
            return plain({**rest, "params": params}, keys, *args)

        out = with_gradients(vjp, call)(variables["params"], *args)
        return out, changed

    return jax.jit(leaf)


# --- Back through the loops ---------------------------------------------------------------------


@functools.cache
def _leaf_forward(lib: Library, before: Draws) -> Any:
    plain = _leaf(lib, "eval", before)
    return jax.jit(lambda variables, keys, c, x, k: plain(variables, keys, c, x, k)[0])


@functools.cache
def _leaf_backward(lib: Library, before: Draws) -> Any:
    forward = _leaf_forward(lib, before)

    def backward(variables: Any, keys: Any, c: Any, x: Any, k: Any, cotangents: Any) -> Any:
        def call(params: Any, c: Any, x: Any) -> Any:
            return forward({**variables, "params": params}, keys, c, x, k)

        return jax.vjp(call, variables["params"], c, x)[1](cotangents)

    return jax.jit(backward)


def forward_and_back(
    lib: Library, nest: Nest, before: Draws, variables: Any, keys: Any, c: Any, x: Any, k: Any
) -> Any:
    """``(out, back)``, where ``back(cotangents of out)`` gives those of (params, c, x)."""
    if not nest:
        args = (variables, keys, c, x, k)
        out = _leaf_forward(lib, before)(*args)
        return out, lambda cotangents: _leaf_backward(lib, before)(*args, cotangents)
    level, inner = nest[0], nest[1:]
    if not level.is_loop:
        return forward_and_back(lib, inner, before, variables, keys, c, x, k)
    n, scan = level.size, level.kind == "scan"
    axes = {"params": level.params, "stats": level.stats}
    rows = _rows(level, keys)
    outs: list[Any] = [None] * n
    backs: list[Any] = [None] * n
    for i in _order(level):
        here = {col: _take(tree, axes[col], i) for col, tree in variables.items()}
        key = {stream: row[i] for stream, row in rows.items()}
        start = c if scan else _take(c, level.c_axis, i)
        given = _take(x, level.x_axis, i)
        outs[i], backs[i] = forward_and_back(lib, inner, before, here, key, start, given, k)
        c = outs[i][0] if scan else c
    if not scan:
        c = _stack([out[0] for out in outs], level.c_axis)
    y = _stack([out[1][0] for out in outs], level.y_axis)
    seen = _stack([out[1][1] for out in outs], level.k_axis)

    def back(cotangents: Any) -> Any:
        dc, (dy, dseen) = cotangents
        found: list[Any] = [None] * n
        for position, i in enumerate(reversed(list(_order(level)))):
            start = dc if scan else _take(dc, level.c_axis, i)
            # A broadcast output is one iteration's; give its cotangent to one.
            seen_here = _take(dseen, level.k_axis, i)
            if level.k_axis is None and position:
                seen_here = np.zeros_like(dseen)
            found[i] = backs[i]((start, (_take(dy, level.y_axis, i), seen_here)))
            dc = found[i][1] if scan else dc
        if not scan:
            dc = _stack([f[1] for f in found], level.c_axis)
        return (
            _together([f[0] for f in found], level.params),
            dc,
            _together([f[2] for f in found], level.x_axis),
        )

    return (c, (y, seen)), back


def _together(cotangents: Sequence[Any], axis: int | None) -> Any:
    if axis is not None:
        return _stack(cotangents, axis)
    return jax.tree.map(lambda *leaves: sum(np.asarray(leaf) for leaf in leaves), *cotangents)
