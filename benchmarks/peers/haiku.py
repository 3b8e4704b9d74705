"""haiku: transformed functions, stacked by ``hk.layer_stack``.

Not its transparent form, which keeps the parameters of the layers apart and stacks them anew in
each call: the program would do more than the others.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import haiku as hk
import jax

from benchmarks.peers import common
from benchmarks.peers.common import Array, Config, Model

NAME = "haiku"

_LEAVES = {"w": "kernel", "b": "bias", "scale": "scale", "offset": "bias"}


def version() -> str:
    return f"dm-haiku {hk.__version__}"


class Block(hk.Module):
    def __init__(self, config: Config, name: str | None = None) -> None:
        super().__init__(name=name)
        self.config = config

    def __call__(self, x: Array) -> Array:
        config = self.config

        def dense(name: str, h: Array) -> Array:
            return hk.Linear(config.denses[name][1], name=name)(h)

        def norm(name: str, h: Array) -> Array:
            return hk.LayerNorm(
                -1, create_scale=True, create_offset=True, eps=common.EPSILON, name=name
            )(h)

        if config.body == "dense":
            return common.relu_body(dense("dense", x))
        h = norm("ln1", x)
        heads = (
            common.split_heads(dense(name, h), config.heads) for name in ("query", "key", "value")
        )
        x = x + dense("out", common.merge_heads(common.attend(*heads)))
        return x + dense("down", jax.nn.gelu(dense("up", norm("ln2", x))))


def transformed(config: Config) -> Any:
    def stack(x: Array) -> Array:
        if config.unrolled:
            for i in range(config.unrolled):
                run = Block(config, name=f"layers_{i}")
                x = (hk.remat(run) if config.remat else run)(x)
            return x
        run = lambda x: Block(config, name="layers")(x)  # noqa: E731
        if config.remat:
            run = hk.remat(run, prevent_cse=False)
        for length in reversed(config.lengths):
            run = stacked(run, length)
        return run(x)

    return hk.without_apply_rng(hk.transform(stack))


def stacked(run: Callable[[Array], Array], length: int) -> Callable[[Array], Array]:
    return lambda x: hk.layer_stack(length)(run)(x)


def build(config: Config) -> Model:
    if config.dtype != "float32":
        raise common.Missing("haiku's modules take their dtype from a policy outside the model")
    model = transformed(config)
    shapes = jax.eval_shape(model.init, jax.random.key(0), config.abstract_input())

    def adopt(params: Any) -> dict[str, dict[str, Any]]:
        variables: dict[str, dict[str, Any]] = {}
        for path, leaves in shapes.items():
            index = re.search(r"layers_(\d+)", path)
            source = params[int(index.group(1))] if index else params
            named = source[path.rsplit("/", 1)[-1]]
            variables[path] = {leaf: named[_LEAVES[leaf]] for leaf in leaves}
        return variables

    return Model(lambda variables, x: model.apply(variables, x), adopt)


def init(config: Config, *, jit: bool) -> Callable[[Array], Any]:
    function = init_arrays(config)
    return jax.jit(function) if jit else function


def init_arrays(config: Config) -> Callable[[Array], Any]:
    model, x = transformed(config), config.input()
    return lambda key: model.init(key, x)


def mlp(params: Sequence[Mapping[str, Array]]) -> Callable[[Array], Array]:
    sizes = [p["bias"].shape[0] for p in params]

    def forward(x: Array) -> Array:
        for i, size in enumerate(sizes):
            x = hk.Linear(size, name=f"dense_{i}")(x)
            if i < len(sizes) - 1:
                x = jax.nn.relu(x)
        return x

    model = hk.without_apply_rng(hk.transform(forward))
    variables = {f"dense_{i}": {"w": p["kernel"], "b": p["bias"]} for i, p in enumerate(params)}
    return lambda x: model.apply(variables, x)


def stepper(config: Config, params: Any) -> tuple[Any, Callable[..., Any]]:
    model = build(config)
    return common.functional_stepper(model, model.adopt(params))
