"""The models in the module style that flax.linen and liftax share, given the namespace ``nn``.

Both libraries run this very code, which is the point of the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from benchmarks.peers import common
from benchmarks.peers.common import Array, Config, Model


class Linenlike:
    """A peer from a namespace with linen's names."""

    def __init__(self, nn: Any) -> None:
        self.nn = nn
        self.block = block_class(nn)
        self.stack = stack_class(nn, self.block)
        self.multilayer = mlp_class(nn)

    def build(self, config: Config) -> Model:
        model = self.stack(config)
        return Model(lambda variables, x: model.apply(variables, x), lambda p: adopt(p, config))

    def init(self, config: Config, *, jit: bool) -> Callable[[Array], Any]:
        function = self.init_arrays(config)
        return jax.jit(function) if jit else function

    def init_arrays(self, config: Config) -> Callable[[Array], Any]:
        model, x = self.stack(config), config.input()
        return lambda key: model.init(key, x)

    def mlp(self, params: Sequence[Mapping[str, Array]]) -> Callable[[Array], Array]:
        model = self.multilayer(tuple(p["bias"].shape[0] for p in params))
        variables = {"params": {f"dense_{i}": dict(p) for i, p in enumerate(params)}}
        return lambda x: model.apply(variables, x)

    def stepper(self, config: Config, params: Any) -> tuple[Any, Callable[..., Any]]:
        model = self.build(config)
        return common.functional_stepper(model, model.adopt(params))


def adopt(params: Any, config: Config) -> dict[str, Any]:
    if config.unrolled:
        return {"params": {f"layers_{i}": p for i, p in enumerate(params)}}
    return {"params": {"layers": params}}


def block_class(nn: Any) -> Any:
    class Block(nn.Module):
        config: Config

        @nn.compact
        def __call__(self, x: Array, _: None = None) -> tuple[Array, None]:
            config = self.config

            def dense(name: str, h: Array) -> Array:
                features = config.denses[name][1]
                return nn.Dense(features, param_dtype=config.dtype, name=name)(h)

            def norm(name: str, h: Array) -> Array:
                return nn.LayerNorm(param_dtype=config.dtype, name=name)(h)

            if config.body == "dense":
                return common.relu_body(dense("dense", x)), None
            h = norm("ln1", x)
            heads = (
                common.split_heads(dense(name, h), config.heads)
                for name in ("query", "key", "value")
            )
            x = x + dense("out", common.merge_heads(common.attend(*heads)))
            h = norm("ln2", x)
            return x + dense("down", jax.nn.gelu(dense("up", h))), None

    return Block


def stack_class(nn: Any, block: Any) -> Any:
    class Stack(nn.Module):
        config: Config

        @nn.compact
        def __call__(self, x: Array) -> Array:
            config = self.config
            layer = block
            if config.remat:
                layer = nn.remat(layer, prevent_cse=not config.lengths)
            if config.unrolled:
                for i in range(config.unrolled):
                    x, _ = layer(config, name=f"layers_{i}")(x)
                return x
            for length in reversed(config.lengths):
                layer = nn.scan(
                    layer,
                    variable_axes={"params": 0},
                    split_rngs={"params": True},
                    length=length,
                )
            return layer(config, name="layers")(x, None)[0]

    return Stack


def mlp_class(nn: Any) -> Any:
    class MLP(nn.Module):
        sizes: tuple[int, ...]

        @nn.compact
        def __call__(self, x: Array) -> Array:
            for i, size in enumerate(self.sizes[:-1]):
                x = jax.nn.relu(nn.Dense(size, name=f"dense_{i}")(x))
            return nn.Dense(self.sizes[-1], name=f"dense_{len(self.sizes) - 1}")(x)

    return MLP
