"""flax.nnx: modules made by ``nnx.vmap`` and run by ``nnx.scan``, trained under ``nnx.jit``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
from flax import nnx

from benchmarks.peers import common
from benchmarks.peers.common import Array, Config, Model

NAME = "flax.nnx"


def version() -> str:
    return f"flax {flax.__version__}"


class Block(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        for name, (size_in, size_out) in config.denses.items():
            setattr(self, name, nnx.Linear(size_in, size_out, param_dtype=config.dtype, rngs=rngs))
        for name in config.norms:
            setattr(self, name, nnx.LayerNorm(config.dim, param_dtype=config.dtype, rngs=rngs))

    def __call__(self, x: Array) -> Array:
        if self.config.body == "dense":
            return common.relu_body(self.dense(x))
        h = self.ln1(x)
        heads = (
            common.split_heads(dense(h), self.config.heads)
            for dense in (self.query, self.key, self.value)
        )
        x = x + self.out(common.merge_heads(common.attend(*heads)))
        return x + self.down(jax.nn.gelu(self.up(self.ln2(x))))


class Stack(nnx.Module):
    def __init__(self, config: Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        if config.unrolled:
            self.layers = nnx.List([Block(config, rngs=rngs) for _ in range(config.unrolled)])
            return
        make = lambda rngs: Block(config, rngs=rngs)  # noqa: E731
        for length in reversed(config.lengths):
            make = nnx.split_rngs(splits=length)(nnx.vmap(make, in_axes=0, out_axes=0))
        self.layers = make(rngs)

    def __call__(self, x: Array) -> Array:
        def run(x: Array, layer: Block) -> Array:
            return layer(x)

        if self.config.remat:
            run = nnx.remat(run, prevent_cse=not self.config.lengths)
        if self.config.unrolled:
            for layer in self.layers:
                x = run(x, layer)
            return x
        for _ in self.config.lengths:
            run = nnx.scan(run, in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.layers)


def abstract(config: Config) -> tuple[Any, Any]:
    return nnx.split(nnx.eval_shape(lambda: Stack(config, rngs=nnx.Rngs(0))))


def build(config: Config) -> Model:
    graph, _ = abstract(config)

    def adopt(params: Any) -> Any:
        _, state = abstract(config)
        tree = dict(enumerate(params)) if config.unrolled else params
        nnx.replace_by_pure_dict(state, {"layers": tree})
        return state

    return Model(lambda state, x: nnx.merge(graph, state)(x), adopt)


def init(config: Config, *, jit: bool) -> Callable[[Array], Any]:
    def make(key: Array) -> Stack:
        return Stack(config, rngs=nnx.Rngs(key))

    return nnx.jit(make) if jit else make


def init_arrays(config: Config) -> Callable[[Array], Any]:
    return lambda key: nnx.state(Stack(config, rngs=nnx.Rngs(key)))


class MLP(nnx.Module):
    def __init__(self, sizes: Sequence[tuple[int, int]], *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([nnx.Linear(*size, rngs=rngs) for size in sizes])

    def __call__(self, x: Array) -> Array:
        for layer in self.layers[:-1]:
            x = jax.nn.relu(layer(x))
        return self.layers[-1](x)


def mlp(params: Sequence[Mapping[str, Array]]) -> Callable[[Array], Array]:
    model = MLP([p["kernel"].shape for p in params], rngs=nnx.Rngs(0))
    state = nnx.state(model)
    nnx.replace_by_pure_dict(state, {"layers": dict(enumerate(params))})
    nnx.update(model, state)
    return model


def stepper(config: Config, params: Any) -> tuple[Any, Callable[..., Any]]:
    graph, _ = abstract(config)
    model = nnx.merge(graph, build(config).adopt(params))

    @nnx.jit(donate_argnums=0)
    def train(model: Stack, x: Array, y: Array) -> Array:
        loss = lambda model: common.square_error(model(x), y)  # noqa: E731
        value, gradients = nnx.value_and_grad(loss)(model)
        nnx.update(model, jax.tree.map(common.sgd, nnx.state(model), gradients))
        return value

    return model, lambda model, x, y: (model, train(model, x, y))
