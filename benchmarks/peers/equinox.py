"""equinox: modules of one example, ``jax.lax.scan`` over stacked ones, under ``filter_jit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from benchmarks.peers import common
from benchmarks.peers.common import Array, Config, Model

NAME = "equinox"


def version() -> str:
    return f"equinox {eqx.__version__}"


class DenseBlock(eqx.Module):
    dense: eqx.nn.Linear

    def __init__(self, config: Config, key: Array) -> None:
        self.dense = eqx.nn.Linear(config.dim, config.dim, dtype=jnp.dtype(config.dtype), key=key)

    def __call__(self, x: Array) -> Array:
        return common.relu_body(jax.vmap(self.dense)(x))


class Block(eqx.Module):
    ln1: eqx.nn.LayerNorm
    ln2: eqx.nn.LayerNorm
    query: eqx.nn.Linear
    key: eqx.nn.Linear
    value: eqx.nn.Linear
    out: eqx.nn.Linear
    up: eqx.nn.Linear
    down: eqx.nn.Linear
    heads: int = eqx.field(static=True)

    def __init__(self, config: Config, key: Array) -> None:
        dtype = jnp.dtype(config.dtype)
        keys = jax.random.split(key, len(config.denses))
        for k, (name, size) in zip(keys, config.denses.items(), strict=True):
            setattr(self, name, eqx.nn.Linear(*size, dtype=dtype, key=k))
        for name in config.norms:
            setattr(self, name, eqx.nn.LayerNorm(config.dim, eps=common.EPSILON, dtype=dtype))
        self.heads = config.heads

    def __call__(self, x: Array) -> Array:
        h = jax.vmap(self.ln1)(x)
        heads = (
            common.split_heads(jax.vmap(dense)(h), self.heads)
            for dense in (self.query, self.key, self.value)
        )
        x = x + jax.vmap(self.out)(common.merge_heads(common.attend(*heads)))
        h = jax.vmap(self.up)(jax.vmap(self.ln2)(x))
        return x + jax.vmap(self.down)(jax.nn.gelu(h))


class Stack(eqx.Module):
    layers: Any
    config: Config = eqx.field(static=True)

    def __init__(self, config: Config, key: Array) -> None:
        block = DenseBlock if config.body == "dense" else Block
        self.config = config
        if config.unrolled:
            self.layers = [block(config, k) for k in jax.random.split(key, config.unrolled)]
            return
        make = lambda key: block(config, key)  # noqa: E731
        for _ in config.lengths:
            make = eqx.filter_vmap(make)
        self.layers = make(jax.random.split(key, config.lengths))

    def __call__(self, x: Array) -> Array:
        if self.config.unrolled:
            run = lambda layer, x: layer(x)  # noqa: E731
            if self.config.remat:
                run = eqx.filter_checkpoint(run)
            for layer in self.layers:
                x = run(layer, x)
            return x

        arrays, static = eqx.partition(self.layers, eqx.is_array)

        def layer(x: Array, arrays: Any) -> tuple[Array, None]:
            return eqx.combine(arrays, static)(x), None

        if self.config.remat:
            layer = jax.checkpoint(layer, prevent_cse=False)
        for _ in self.config.lengths:
            layer = scanned(layer)
        return layer(x, arrays)[0]


def scanned(layer: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Array, arrays: Any) -> tuple[Array, None]:
        x, _ = jax.lax.scan(layer, x, arrays)
        return x, None

    return run


def is_abstract(leaf: object) -> bool:
    return isinstance(leaf, jax.ShapeDtypeStruct)


def with_params(block: Any, params: Mapping[str, Any]) -> Any:
    """``block`` with its arrays replaced by the canonical ones; kernels are kept transposed."""

    def leaves(block: Any) -> list[Any]:
        return [getattr(getattr(block, name), leaf) for name, leaf, _ in replacements]

    replacements = []
    for name, p in params.items():
        if "kernel" in p:
            replacements.append((name, "weight", jnp.swapaxes(p["kernel"], -1, -2)))
        else:
            replacements.append((name, "weight", p["scale"]))
        replacements.append((name, "bias", p["bias"]))
    return eqx.tree_at(leaves, block, [value for *_, value in replacements])


def build(config: Config) -> Model:
    skeleton = eqx.filter_eval_shape(lambda key: Stack(config, key), jax.random.key(0))
    arrays, static = eqx.partition(skeleton, is_abstract)

    def adopt(params: Any) -> Any:
        if config.unrolled:
            layers = [with_params(b, p) for b, p in zip(arrays.layers, params, strict=True)]
        else:
            layers = with_params(arrays.layers, params)
        return eqx.tree_at(lambda stack: stack.layers, arrays, layers)

    def forward(arrays: Any, x: Array) -> Array:
        return jax.vmap(eqx.combine(arrays, static))(x)

    return Model(forward, adopt)


def init(config: Config, *, jit: bool) -> Callable[[Array], Any]:
    make = lambda key: Stack(config, key)  # noqa: E731
    return eqx.filter_jit(make) if jit else make


def init_arrays(config: Config) -> Callable[[Array], Any]:
    return lambda key: eqx.filter(Stack(config, key), eqx.is_array)


class MLP(eqx.Module):
    layers: list[eqx.nn.Linear]

    def __call__(self, x: Array) -> Array:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def mlp(params: Sequence[Mapping[str, Array]]) -> Callable[[Array], Array]:
    layers = []
    for p in params:
        linear = eqx.nn.Linear(*p["kernel"].shape, key=jax.random.key(0))
        values = (p["kernel"].T, p["bias"])
        layers.append(eqx.tree_at(lambda m: (m.weight, m.bias), linear, values))
    model = MLP(layers)
    return lambda x: jax.vmap(model)(x)


def stepper(config: Config, params: Any) -> tuple[Any, Callable[..., Any]]:
    skeleton = eqx.filter_eval_shape(lambda key: Stack(config, key), jax.random.key(0))
    _, static = eqx.partition(skeleton, is_abstract)
    model = eqx.combine(build(config).adopt(params), static)

    @eqx.filter_value_and_grad
    def loss(model: Stack, x: Array, y: Array) -> Array:
        return common.square_error(jax.vmap(model)(x), y)

    @eqx.filter_jit(donate="all-except-first")
    def step(batch: tuple[Array, Array], model: Stack) -> tuple[Stack, Array]:
        value, gradients = loss(model, *batch)
        updates = jax.tree.map(lambda g: -common.LEARNING_RATE * g, gradients)
        return eqx.apply_updates(model, updates), value

    return model, lambda model, x, y: step((x, y), model)
