"""The models as plain functions of dicts, on ``jax.lax.scan``, ``jax.vmap`` and ``jax.checkpoint``.

This is the limit that the libraries are measured against, and the owner of the canonical
parameters: ``canonical`` makes them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import common
from benchmarks.peers.common import Array, Config, Model

NAME = common.BASELINE


def version() -> str:
    return f"jax {jax.__version__}"


def along_last(p: Array, x: Array) -> Array:
    """``p`` with as many axes as ``x``; the gradient of implied broadcasting reduces twice."""
    return p.reshape((1,) * (x.ndim - 1) + p.shape)


def dense(p: Mapping[str, Array], x: Array) -> Array:
    y = x @ p["kernel"]
    return y + along_last(p["bias"], y)


def layer_norm(p: Mapping[str, Array], x: Array) -> Array:
    """Layer norm with the variance as E[x^2] - E[x]^2, statistics in float32.

    The square comes first because the order of the two means decides the order in which their
    gradients are added, and with it XLA's fusions on the CPU: the other way round, the gradient
    of the unrolled stack has three times the instructions.
    """
    wide = x.astype(jnp.float32)
    square = jnp.square(wide)
    mean = wide.mean(-1, keepdims=True)
    variance = jnp.maximum(0.0, square.mean(-1, keepdims=True) - jnp.square(mean))
    scale = jax.lax.rsqrt(variance + common.EPSILON) * along_last(p["scale"], wide)
    return ((x - mean) * scale + along_last(p["bias"], wide)).astype(x.dtype)


def transformer_block(p: Mapping[str, Any], x: Array, heads: int) -> Array:
    h = layer_norm(p["ln1"], x)
    q, k, v = (common.split_heads(dense(p[name], h), heads) for name in ("query", "key", "value"))
    x = x + dense(p["out"], common.merge_heads(common.attend(q, k, v)))
    h = layer_norm(p["ln2"], x)
    return x + dense(p["down"], jax.nn.gelu(dense(p["up"], h)))


def body(p: Mapping[str, Any], x: Array, config: Config) -> Array:
    if config.body == "dense":
        return common.relu_body(dense(p["dense"], x))
    return transformer_block(p, x, config.heads)


def forward(params: Any, x: Array, config: Config) -> Array:
    def layer(x: Array, p: Any) -> tuple[Array, None]:
        return body(p, x, config), None

    if config.remat:
        layer = jax.checkpoint(layer, prevent_cse=not config.lengths)
    if config.unrolled:
        for p in params:
            x, _ = layer(x, p)
        return x
    for _ in config.lengths:
        layer = scanned(layer)
    return layer(x, params)[0]


def scanned(layer: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Array, p: Any) -> tuple[Array, None]:
        x, _ = jax.lax.scan(layer, x, p)
        return x, None

    return run


def build(config: Config) -> Model:
    return Model(lambda params, x: forward(params, x, config), lambda params: params)


def init_body(key: Array, config: Config) -> dict[str, dict[str, Array]]:
    kernel = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(key, len(config.denses))
    params = {
        name: {
            "kernel": kernel(k, shape, config.dtype),
            "bias": jnp.zeros(shape[1:], config.dtype),
        }
        for k, (name, shape) in zip(keys, config.denses.items(), strict=True)
    }
    for name in config.norms:
        params[name] = {
            "scale": jnp.ones(config.dim, config.dtype),
            "bias": jnp.zeros(config.dim, config.dtype),
        }
    return params


def canonical(key: Array, config: Config) -> Any:
    """Fresh canonical parameters."""
    if config.unrolled:
        return [init_body(k, config) for k in jax.random.split(key, config.unrolled)]
    make = lambda key: init_body(key, config)  # noqa: E731
    for _ in config.lengths:
        make = jax.vmap(make)
    return make(jax.random.split(key, config.lengths))


def noisy(config: Config, seed: int = 1) -> Any:
    """Canonical parameters with no two alike, so that a mix-up shows in the output.

    Drawn by numpy: nothing is compiled, and the draws need not be JAX's.
    """
    source = np.random.default_rng(seed)

    def draw(path: Any, leaf: jax.ShapeDtypeStruct) -> Array:
        values = source.standard_normal(leaf.shape, np.float32)
        name = path[-1].key
        if name == "kernel":
            values /= math.sqrt(leaf.shape[-2])
        else:
            values = 0.1 * values + (name == "scale")
        return jnp.asarray(values, leaf.dtype)

    shapes = jax.eval_shape(lambda key: canonical(key, config), jax.random.key(0))
    return jax.tree_util.tree_map_with_path(draw, shapes)


def init(config: Config, *, jit: bool) -> Callable[[Array], Any]:
    function = init_arrays(config)
    return jax.jit(function) if jit else function


def init_arrays(config: Config) -> Callable[[Array], Any]:
    return lambda key: canonical(key, config)


def mlp(params: Sequence[Mapping[str, Array]]) -> Callable[[Array], Array]:
    def apply(x: Array) -> Array:
        for p in params[:-1]:
            x = jax.nn.relu(dense(p, x))
        return dense(params[-1], x)

    return apply


def stepper(config: Config, params: Any) -> tuple[Any, Callable[..., Any]]:
    return common.functional_stepper(build(config), params)
