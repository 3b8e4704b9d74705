"""One token through a scanned decoder with a cache: time, tokens per second and memory by run.

The cache of a stack is written where it stands. Beside it the same layers in loops by hand, one
that hands each layer its slice of the cache and stacks what comes back, and one that carries the
cache and updates it at its layer; flax.linen's ``nn.scan``; and the time in which the machine reads
weights and cache once. Each of liftax's ways stands with Linen's attention and with
``nn.decode_attention``. A program counts only if its output is that by hand.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.table import BASELINE, Cell, Table, error_text
from benchmarks.timing import Settings, interleave

MIB = 2**20
READS_ONCE = ", decode_attention"
Step = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(params, cache, x) -> (y, cache)``."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Those of the model, its batch and its cache."""

    depth: int = 12
    width: int = 256
    heads: int = 8
    batch: int = 8
    length: int = 512


def run(settings: Settings, sizes: Sizes = Sizes()) -> list[Table]:
    ways = {
        BASELINE: functools.partial(sliced_by_hand, sizes),
        "by hand, in place": functools.partial(in_place_by_hand, sizes),
        **liftax(sizes),
        **linen(sizes),
    }
    stacked = variables(sizes)
    apart = [jax.tree.map(lambda a, i=i: a[i], stacked) for i in range(sizes.depth)]
    x = jax.random.normal(jax.random.key(1), (sizes.batch, 1, sizes.width))
    total = sum(leaf.nbytes for leaf in jax.tree.leaves(stacked))

    table = Table(
        "decode", f"one token through {sizes.depth} scanned layers with a cache", list(ways)
    )
    programs, caches, calls = {}, {}, {}
    expected = None
    for name, step in ways.items():
        given = apart if "by layers" in name else stacked
        params, cache = part(given, "params"), jax.tree.map(jnp.copy, part(given, "cache"))
        try:
            program = jax.jit(step, donate_argnums=1).lower(params, cache, x).compile()
            y, caches[name] = program(params, cache, x)
            expected = y if expected is None else expected
            np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)
        except Exception as error:  # one way's fault must not hide the others' figures
            table.note(f"{name}: failed, {error_text(error)}")
            continue
        programs[name] = program

        def call(name: str = name, program: Any = program, params: Any = params) -> None:
            y, caches[name] = program(params, caches[name], x)
            y.block_until_ready()

        calls[name] = call
    samples = interleave(calls, settings)
    table.put_samples("one token", samples)
    for name, program in programs.items():
        temporary = program.memory_analysis().temp_size_in_bytes / MIB
        table.put("temporary memory", name, Cell(f"{temporary:.0f} MiB", temporary))
        # XLA counts the body of a loop once, whatever it iterates.
        turns = 1 if "loop" in name else sizes.depth
        touched = turns * program.cost_analysis()["bytes accessed"] / total
        table.put("bytes over weights and cache", name, Cell(f"{touched:.2f}", touched))
        rate = sizes.batch / samples[name].median
        table.put("tokens a second", name, Cell(f"{rate:,.0f}", rate))
    limit = read_once(total, settings)
    table.note(f"weights and cache are {total / MIB:.0f} MiB, read once in {1e3 * limit:.1f} ms")
    return [table]


def read_once(size: int, settings: Settings) -> float:
    """The seconds in which as many bytes are read by a sum."""
    array = jnp.ones(size // 4, jnp.float32)
    total = jax.jit(jnp.sum)
    sample = interleave({"sum": lambda: total(array).block_until_ready()}, settings)
    return float(sample["sum"].median)


def part(tree: Any, name: str) -> Any:
    return [layer[name] for layer in tree] if isinstance(tree, list) else tree[name]


def layer_class(nn: Any, sizes: Sizes, **options: Any) -> Any:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any = None) -> Any:
            attention = nn.MultiHeadDotProductAttention(
                sizes.heads, decode=True, name="attention", **options
            )
            x = x + attention(nn.LayerNorm(name="norm_0")(x))
            y = nn.gelu(nn.Dense(4 * sizes.width, name="up")(nn.LayerNorm(name="norm_1")(x)))
            return x + nn.Dense(sizes.width, name="down")(y)

    return Layer


@functools.cache
def variables(sizes: Sizes) -> Any:
    import liftax as nn

    stack = nn.Stack(layer_class(nn, sizes)(), depth=sizes.depth)
    made = stack.init(jax.random.key(0), jnp.ones((sizes.batch, sizes.length, sizes.width)))
    return {collection: made[collection]["block_0"] for collection in ("params", "cache")}


# --- the ways -----------------------------------------------------------------------------


def liftax(sizes: Sizes) -> dict[str, Step]:
    import liftax as nn

    def step_of(model: Any, layered: bool) -> Step:
        def wrap(tree: Any) -> Any:
            if not layered:
                return {"block_0": tree}
            return {f"layers_{i}": layer for i, layer in enumerate(tree)}

        def step(params: Any, cache: Any, x: Any) -> tuple[Any, Any]:
            given = {"params": wrap(params), "cache": wrap(cache)}
            y, new = model.apply(given, x, mutable=["cache"])
            return y, list(new["cache"].values()) if layered else new["cache"]["block_0"]

        return step

    reads_once = {"attention_fn": nn.decode_attention}
    ways = {}
    for name, options in (("", {}), (READS_ONCE, reads_once)):
        stack = functools.partial(nn.Stack, layer_class(nn, sizes, **options)(), depth=sizes.depth)
        ways[f"scan{name}"] = step_of(stack(), False)
        ways[f"loop{name}"] = step_of(stack(run="loop"), False)
        ways[f"loop, by layers{name}"] = step_of(stack(run="loop", store="layers"), True)
    return ways


def linen(sizes: Sizes) -> dict[str, Step]:
    try:
        import flax.linen as nn
    except ImportError:
        return {}

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x: Any, _: Any) -> Any:
            return layer_class(nn, sizes)(name="layer")(x), None

    model = nn.scan(
        Body,
        variable_axes={"params": 0, "cache": 0},
        split_rngs={"params": True},
        length=sizes.depth,
    )()

    def step(params: Any, cache: Any, x: Any) -> tuple[Any, Any]:
        given = {"params": {"layer": params}, "cache": {"layer": cache}}
        (y, _), new = model.apply(given, x, None, mutable=["cache"])
        return y, new["cache"]["layer"]

    return {"flax.linen": step}


def normed(p: Any, x: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    spread = lax.rsqrt(jnp.square(x - mean).mean(-1, keepdims=True) + 1e-6)
    return (x - mean) * spread * p["scale"] + p["bias"]


def projected(p: Any, x: Any) -> Any:
    return jnp.einsum("bqw,whd->bqhd", x, p["kernel"]) + p["bias"]


def finished(sizes: Sizes, p: Any, x: Any, query: Any, keys: Any, values: Any, now: Any) -> Any:
    """A layer after its keys and values are in the cache."""
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, keys) / np.sqrt(sizes.width // sizes.heads)
    scores = jnp.where(jnp.arange(sizes.length) <= now, scores, jnp.finfo(scores.dtype).min)
    found = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), values)
    out = p["attention"]["out"]
    x = x + jnp.einsum("bqhd,hdw->bqw", found, out["kernel"]) + out["bias"]
    y = jax.nn.gelu(normed(p["norm_1"], x) @ p["up"]["kernel"] + p["up"]["bias"])
    return x + y @ p["down"]["kernel"] + p["down"]["bias"]


def heads(p: Any, x: Any) -> list[Any]:
    y = normed(p["norm_0"], x)
    return [projected(p["attention"][name], y) for name in ("query", "key", "value")]


def sliced_by_hand(sizes: Sizes, params: Any, cache: Any, x: Any) -> tuple[Any, Any]:
    def step(x: Any, given: Any) -> Any:
        p, old = given[0], given[1]["attention"]
        query, key, value = heads(p, x)
        now = old["cache_index"]
        place = (0, now, 0, 0)
        keys = lax.dynamic_update_slice(old["cached_key"], key, place)
        values = lax.dynamic_update_slice(old["cached_value"], value, place)
        new = {"cached_key": keys, "cached_value": values, "cache_index": now + 1}
        return finished(sizes, p, x, query, keys, values, now), {"attention": new}

    return lax.scan(step, x, (params, cache))


def in_place_by_hand(sizes: Sizes, params: Any, cache: Any, x: Any) -> tuple[Any, Any]:
    old = cache["attention"]

    def step(state: Any, given: Any) -> Any:
        x, keys, values = state
        p, now, i = given
        query, key, value = heads(p, x)
        place = (i, 0, now, 0, 0)
        keys = lax.dynamic_update_slice(keys, key[None], place)
        values = lax.dynamic_update_slice(values, value[None], place)
        mine = [lax.dynamic_index_in_dim(a, i, 0, keepdims=False) for a in (keys, values)]
        return (finished(sizes, p, x, query, *mine, now), keys, values), now + 1

    start = (x, old["cached_key"], old["cached_value"])
    given = (params, old["cache_index"], jnp.arange(sizes.depth, dtype=jnp.int32))
    (x, keys, values), index = lax.scan(step, start, given)
    new = {"cached_key": keys, "cached_value": values, "cache_index": index}
    return x, {"attention": new}
