"""Models of a few lines, between them every lift and the layers that hold state.

Each is built from either library; `x` is (4, 3), its numbers differ along both axes.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from helpers.models import cheap
from jax.ad_checkpoint import checkpoint_name

WIDTH = 3
DEPTH = 3
EVERY = {"params": 0, "batch_stats": 0, "intermediates": 0, "cache": 0}
SPLIT = {"params": True, "dropout": True}
MODELS: dict[str, Callable[[ModuleType], Any]] = {}
WRITES = {
    "scan_shared": ["intermediates"],
    "batch_norm_in_scan": ["batch_stats"],
    "decoding": ["cache"],
}


def probe(build: Callable[[ModuleType], Any]) -> Callable[[ModuleType], Any]:
    MODELS[build.__name__] = build
    return build


def dense(nn: ModuleType, features: int = WIDTH, **options: Any) -> Any:
    return nn.Dense(features, kernel_init=cheap, bias_init=cheap, **options)


def sequences(x: Any) -> Any:
    """Four sequences of two steps."""
    return jnp.stack([x, jnp.cos(x)], axis=1)


def compact(nn: ModuleType, call: Callable[[Any, Any], Any]) -> type:
    """A module class whose compact body is `call(self, x)`."""

    class Probe(nn.Module):
        @nn.compact
        def __call__(self, x):
            return call(self, x)

    return Probe


def layer(nn: ModuleType, init: Any = cheap) -> type:
    """`x -> x` with a named value in the middle."""

    def call(self: Any, x: Any) -> Any:
        h = nn.Dense(WIDTH, kernel_init=init, bias_init=init)(x)
        return x + jnp.tanh(checkpoint_name(jnp.cos(h), "inner"))

    return compact(nn, call)


def step(nn: ModuleType, call: Callable[[Any, Any], Any]) -> type:
    """The body of a loop: a carry and nothing else, each value also an output."""

    class Step(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            c = call(self, c)
            return c, jnp.sum(c)

    return Step


def loop(nn: ModuleType, body: type, **options: Any) -> Any:
    settings = {"variable_axes": EVERY, "split_rngs": SPLIT, "length": DEPTH, **options}
    return compact(nn, lambda self, x: nn.scan(body, **settings)()(x, None))()


@probe
def scan(nn: ModuleType) -> Any:
    return loop(nn, step(nn, lambda self, c: jnp.tanh(dense(nn)(c))), reverse=True)


@probe
def scan_shared(nn: ModuleType) -> Any:
    def call(self: Any, c: Any) -> Any:
        self.sow("intermediates", "seen", jnp.max(c))
        return c + self.param("scale", cheap, (WIDTH,)) * dense(nn)(c)

    axes = {"variable_axes": {"intermediates": 0}, "variable_broadcast": "params"}
    return loop(nn, step(nn, call), **axes, split_rngs={"params": False, "dropout": True})


@probe
def remat_scan(nn: ModuleType) -> Any:
    return nn.remat_scan(layer(nn), lengths=(2, 2))()


@probe
def scan_of_vmap_of_scan(nn: ModuleType) -> Any:
    inner = nn.scan(
        step(nn, lambda self, c: jnp.sin(dense(nn)(c))),
        variable_axes={"params": 1},
        split_rngs={"params": True},
        length=2,
    )
    mapped = nn.vmap(
        inner, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=(0, None)
    )
    return loop(nn, step(nn, lambda self, c: mapped()(c, None)[0]))


@probe
def batch_norm_in_scan(nn: ModuleType) -> Any:
    def call(self: Any, c: Any) -> Any:
        return nn.BatchNorm(use_running_average=False, momentum=0.5)(dense(nn)(c))

    return loop(nn, step(nn, call))


@probe
def dropout(nn: ModuleType) -> Any:
    def call(self: Any, c: Any) -> Any:
        return c + nn.Dropout(0.5, deterministic=False)(dense(nn)(c))

    return loop(nn, step(nn, call))


@probe
def lstm(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        cell = nn.OptimizedLSTMCell(WIDTH, kernel_init=cheap, recurrent_kernel_init=cheap)
        return nn.RNN(cell)(sequences(x))

    return compact(nn, call)()


def _stack(nn: ModuleType, policy: Any, **plan: Any) -> Any:
    # The layers of a stack have keys of their own, so initial values do without.
    block = layer(nn, init=lambda key, *of: cheap(jnp.zeros(1, jnp.uint32), *of))
    if hasattr(nn, "Stack"):
        return nn.Stack(block(), depth=DEPTH, remat=nn.Remat(**plan))
    again = nn.remat(block, policy=policy, prevent_cse=False)

    def call(self: Any, x: Any) -> Any:
        scanned = nn.scan(
            lambda mdl, c, _: (again(name="block_0")(c), None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=DEPTH,
        )
        return scanned(self, x, None)[0]

    return compact(nn, call)()


@probe
def stack_that_saves(nn: ModuleType) -> Any:
    return _stack(nn, jax.checkpoint_policies.save_only_these_names("inner"), save="inner")


@probe
def stack_that_offloads(nn: ModuleType) -> Any:
    policy = jax.checkpoint_policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=["inner"],
        offload_src="device",
        offload_dst="pinned_host",
    )
    return _stack(nn, policy, offload="inner")


@probe
def remat(nn: ModuleType) -> Any:
    return nn.remat(layer(nn), policy=jax.checkpoint_policies.dots_saveable)()


@probe
def jit(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        twice = nn.jit(layer(nn))
        return nn.jit(lambda mdl, x: mdl(x) * 2.0)(twice(), twice()(x))

    return compact(nn, call)()


@probe
def cond(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        inner = dense(nn)
        inner(x)
        return nn.cond(
            jnp.sum(x) > 0, lambda mdl, x: mdl(x), lambda mdl, x: jnp.sin(mdl(x)), inner, x
        )

    return compact(nn, call)()


@probe
def switch(nn: ModuleType) -> Any:
    class Heads(nn.Module):
        def setup(self):
            self.heads = [dense(nn) for _ in range(3)]

        def __call__(self, x):
            branches = [lambda mdl, x, i=i: mdl.heads[i](x) for i in range(3)]
            if self.is_initializing():
                for branch in branches:
                    branch(self, x)
            return nn.switch(jnp.argmax(jnp.sum(x, axis=0)), branches, self, x)

    return Heads()


@probe
def while_loop(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        inner = dense(nn)
        inner(x)
        done = nn.while_loop(
            lambda mdl, state: state[0] < 3,
            lambda mdl, state: (state[0] + 1, jnp.tanh(mdl(state[1]))),
            inner,
            (0, jax.lax.stop_gradient(x)),
            carry_variables="batch_stats",
            split_rngs={"params": False},
        )
        return jax.lax.stop_gradient(done)

    return compact(nn, call)()


@probe
def vjp(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        out, back = nn.vjp(lambda mdl, x: mdl(x), layer(nn)(), x)
        return out, back(jnp.ones_like(out))[1:]

    return compact(nn, call)()


@probe
def grad(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        inner = layer(nn)()
        inner(x)
        return nn.value_and_grad(lambda mdl, x: jnp.sum(jnp.sin(mdl(x))), inner, x)

    return compact(nn, call)()


@probe
def jvp(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        inner = layer(nn)()
        inner(x)
        tangents = {"params": jax.tree.map(jnp.ones_like, inner.variables["params"])}
        return nn.jvp(lambda mdl, x: mdl(x), inner, (x,), (jnp.cos(x),), tangents)

    return compact(nn, call)()


@probe
def custom_vjp(nn: ModuleType) -> Any:
    def forward(mdl: Any, x: Any) -> Any:
        return nn.vjp(lambda mdl, x: mdl(x), mdl, x)

    def backward(back: Any, cotangent: Any) -> Any:
        params, x = back(cotangent)
        return jax.tree.map(jnp.sign, params), x * 2.0

    def call(self: Any, x: Any) -> Any:
        signed = nn.custom_vjp(lambda mdl, x: mdl(x), forward_fn=forward, backward_fn=backward)
        return signed(layer(nn)(), x)

    return compact(nn, call)()


@probe
def map_variables(nn: ModuleType) -> Any:
    def half(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf * 0.5, tree)

    def double(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf * 2.0, tree)

    mapped = nn.map_variables(nn.Dense, "params", double, half, init=True)
    return mapped(WIDTH, kernel_init=cheap, bias_init=cheap)


@probe
def fold_rngs(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        drop = nn.Dropout(0.5, deterministic=False)
        return nn.fold_rngs(lambda mdl, x: mdl(x))(drop, dense(nn)(x))

    return compact(nn, call)()


@probe
def decoding(nn: ModuleType) -> Any:
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, x):
            attention = nn.MultiHeadDotProductAttention(
                num_heads=1, decode=True, kernel_init=cheap, deterministic=True
            )
            x = sequences(x)
            if self.is_initializing():
                return attention(x)
            first = attention(x[:, :1])
            return attention(x[:, 1:]) + first

    return Decoder()


@probe
def language_model(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        embed = nn.Embed(5, WIDTH, embedding_init=cheap)
        hidden = nn.LayerNorm(scale_init=cheap)(embed(jnp.argmax(x, axis=-1)) + x)
        return nn.log_softmax(embed.attend(hidden))

    return compact(nn, call)()


@probe
def convolution(nn: ModuleType) -> Any:
    def call(self: Any, x: Any) -> Any:
        y = nn.Conv(4, (3,), kernel_init=cheap, bias_init=cheap)(x[..., None])
        y = nn.relu(nn.GroupNorm(num_groups=2, scale_init=cheap)(y))
        return nn.avg_pool(y, (2,), strides=(1,))

    return compact(nn, call)()


@probe
def default_initializers(nn: ModuleType) -> Any:
    return compact(nn, lambda self, x: nn.Dense(2)(nn.gelu(nn.Dense(4)(x))))()
