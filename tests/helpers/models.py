"""Small modules for tables of tests: a carry and one input go in, a carry and one output come out.

Each entry of `BLOCKS` builds the same class for either library. Widths are tiny and initialisers
cheap, as a table compiles each block under every lift; default initialisers have their own tests.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .compare import Library

WIDTH = 3


STACKED = {"params": 0, "batch_stats": 0, "intermediates": 0}
SPLIT = {"params": True, "dropout": True}
LAYERS = {"partition_name": "layers"}
SHARED: dict[str, Any] = {
    "variable_axes": {},
    "variable_broadcast": "params",
    "split_rngs": {"params": False, "dropout": True},
}


def scanned(lib: Library, target: Any, **options: Any) -> Any:
    """`target` scanned with its variables stacked at axis 0, unless `options` say otherwise."""
    defaults = {"variable_axes": STACKED, "split_rngs": SPLIT, "metadata_params": LAYERS}
    return lib.nn.scan(target, **{**defaults, **options})


def mapped(lib: Library, target: Any, **options: Any) -> Any:
    """`target` mapped with its variables stacked at axis 0, unless `options` say otherwise."""
    defaults = {"variable_axes": STACKED, "split_rngs": SPLIT, "metadata_params": LAYERS}
    return lib.nn.vmap(target, **{**defaults, **options})


def cheap(key: Any, shape: Any, dtype: Any = jnp.float32, *rest: Any) -> Any:
    """An initialiser that compiles fast and still tells keys apart."""
    bits = key_bits(key)
    index = jnp.arange(math.prod(shape), dtype=jnp.float32).reshape(shape)
    return jnp.sin(index + bits).astype(dtype)


def key_bits(key: Any) -> Any:
    """A number in [0, 997) read off a key of either style, at no cost in compiled code."""
    if jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key):
        key = jax.random.key_data(key)
    return (key[..., -1] % 997).astype(jnp.float32)


def _dense(lib: Library, features: int = WIDTH, **kwargs: Any) -> Any:
    return lib.nn.Dense(features, kernel_init=cheap, bias_init=cheap, **kwargs)


def _dense_compact(lib: Library) -> type:
    nn = lib.nn

    class DenseBlock(nn.Module):
        features: int = WIDTH

        @nn.compact
        def __call__(self, c, x):
            y = jnp.tanh(_dense(lib, self.features)(c) + x)
            return y, y * 2.0

    return DenseBlock


def _dense_setup(lib: Library) -> type:
    nn = lib.nn

    class SetupBlock(nn.Module):
        features: int = WIDTH

        def setup(self):
            self.first = _dense(lib, self.features)
            self.rest = [_dense(lib, self.features, use_bias=False) for _ in range(2)]
            self.named = {"a": _dense(lib, self.features)}

        def __call__(self, c, x):
            y = self.rest[1](jnp.tanh(self.first(c)))
            return c + self.named["a"](y), self.rest[0](x)

    return SetupBlock


def _direct_param(lib: Library) -> type:
    nn = lib.nn

    class DirectParam(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            w = self.param("w", cheap, (WIDTH,))
            b = self.param("b", cheap, (WIDTH,))
            c = jnp.sin(c * w + b)
            return c, c + x

    return DirectParam


def _direct_setup_param(lib: Library) -> type:
    nn = lib.nn

    class DirectSetupParam(nn.Module):
        def setup(self):
            self.w = self.param("w", cheap, (WIDTH,))
            self.inner = _dense(lib)
            self.b = self.param("b", cheap, (WIDTH,))

        def __call__(self, c, x):
            c = jnp.sin(self.inner(c) * self.w + self.b)
            return c, c + x

    return DirectSetupParam


def _dropout(lib: Library) -> type:
    nn = lib.nn

    class DropoutBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            y = nn.Dropout(0.5, deterministic=False)(_dense(lib)(c))
            return c + y, nn.Dropout(0.5, deterministic=False)(x)

    return DropoutBlock


def _direct_rng(lib: Library) -> type:
    nn = lib.nn

    class DirectRng(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            first = key_bits(self.make_rng("dropout"))
            w = self.param("w", cheap, (WIDTH,))
            second = key_bits(self.make_rng("dropout"))
            return c * w + first, x + second

    return DirectRng


def _batch_norm(lib: Library) -> type:
    nn = lib.nn

    class NormBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            norm = nn.BatchNorm(use_running_average=False, momentum=0.5, axis=0)
            return norm(c + x), x * 2.0

    return NormBlock


def _embed_norm(lib: Library) -> type:
    nn = lib.nn

    class EmbedNorm(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            token = jnp.argmax(x, axis=-1)
            y = nn.Embed(5, WIDTH, embedding_init=cheap)(token)
            return nn.LayerNorm(scale_init=cheap)(c + y), y

    return EmbedNorm


def _recurrent(lib: Library) -> type:
    nn = lib.nn

    class RecurrentBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            cell = nn.GRUCell(WIDTH, kernel_init=cheap, recurrent_kernel_init=cheap)
            return cell(c, x)

    return RecurrentBlock


def _lstm(lib: Library) -> type:
    nn = lib.nn

    class LstmBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            cell = nn.OptimizedLSTMCell(WIDTH, kernel_init=cheap, recurrent_kernel_init=cheap)
            (a, b), y = cell((c, jnp.cos(c)), x)
            return a * b, y

    return LstmBlock


def _sow(lib: Library) -> type:
    nn = lib.nn

    class SowBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            y = _dense(lib)(c)
            self.sow("intermediates", "hidden", y)
            self.sow("intermediates", "hidden", y * 2.0)
            return y, x

    return SowBlock


def _state(lib: Library) -> type:
    nn = lib.nn

    class StateBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            ready = self.has_variable("batch_stats", "mean")
            mean = self.variable("batch_stats", "mean", lambda: jnp.zeros((WIDTH,)))
            if ready and self.is_mutable_collection("batch_stats"):
                mean.value = 0.5 * mean.value + jax.lax.stop_gradient(c)
            return _dense(lib)(c - mean.value), x

    return StateBlock


def _boxed(lib: Library) -> type:
    nn = lib.nn

    class BoxedBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            kernel = nn.with_partitioning(cheap, ("in", "out"))
            y = nn.Dense(WIDTH, kernel_init=kernel, bias_init=cheap)(c)
            return y, x + y

    return BoxedBlock


def _nested(lib: Library) -> type:
    nn = lib.nn
    inner = block("dense", lib)

    class NestedBlock(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            c, y = inner()(c, x)
            c, z = inner(name="second")(c, y)
            return c, z + self.param("scale", cheap, ())

    return NestedBlock


def _nested_rng(lib: Library) -> type:
    nn = lib.nn
    inner = block("direct_rng", lib)

    class NestedRng(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            c, y = inner()(c, x)
            noise = key_bits(self.make_rng("dropout"))
            c, z = inner()(c, y + noise)
            return c, z

    return NestedRng


_MAKERS: dict[str, Callable[[Library], type]] = {
    "dense": _dense_compact,
    "setup": _dense_setup,
    "direct_param": _direct_param,
    "direct_setup_param": _direct_setup_param,
    "dropout": _dropout,
    "direct_rng": _direct_rng,
    "batch_norm": _batch_norm,
    "embed_norm": _embed_norm,
    "gru": _recurrent,
    "lstm": _lstm,
    "sow": _sow,
    "state": _state,
    "boxed": _boxed,
    "nested": _nested,
    "nested_rng": _nested_rng,
}

BLOCKS = tuple(_MAKERS)


@functools.cache
def block(name: str, lib: Library) -> type:
    """The block `name` as a module class of `lib`."""
    return _MAKERS[name](lib)


def blocks_but(*left_out: str) -> tuple[str, ...]:
    """All block names except those given."""
    return tuple(name for name in BLOCKS if name not in left_out)
