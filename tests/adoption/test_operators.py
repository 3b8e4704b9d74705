"""Operators and kernels of others inside layers of liftax, against the same layers of Linen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import ON_FLAX, Library, both

import liftax as nn

pytestmark = pytest.mark.skipif(ON_FLAX, reason="liftax.from_linen is what is tested")
KEYS = {"params": jax.random.key(0)}
X = jnp.asarray(np.sin(np.arange(32.0)).reshape(2, 4, 4), jnp.float32)


def as_is(lib: Library, module: Any) -> Any:
    return module if lib.name == "flax" else nn.from_linen(module)


LAYERS: dict[str, Callable[[Any, Any], Any]] = {
    "dense": lambda nn, operator: nn.Dense(4, dot_general_cls=operator),
    "general": lambda nn, operator: nn.DenseGeneral((2, 2), dot_general_cls=operator),
    "attention": lambda nn, operator: nn.MultiHeadDotProductAttention(
        2, qkv_dot_general_cls=operator, out_dot_general_cls=operator
    ),
}
LIFTS: dict[str, Callable[[Any, Any], Any]] = {
    "plain": lambda nn, cls: cls,
    "remat": lambda nn, cls: nn.remat(cls),
    "scan": lambda nn, cls: nn.scan(
        cls, variable_axes={True: 0}, split_rngs={"params": True}, length=2
    ),
}


def ran(lib: Library, operator: Any, layer: str, lift: str) -> Any:
    """Variables, outputs, changed collections and gradients of a layer with an operator."""

    class Layer(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, x, _=None):
            y = LAYERS[layer](lib.nn, operator)(x)
            return jnp.tanh(y).reshape(x.shape), None

    class Model(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, x):
            return LIFTS[lift](lib.nn, Layer)()(x, None)[0]

    variables = Model().init(KEYS, X)
    mutable = [col for col in variables if col != "params"]

    def loss(given: Any) -> Any:
        y, changed = Model().apply(given, X, rngs=KEYS, mutable=mutable)
        return (y**2).sum(), (y, changed)

    grads, out = jax.jit(jax.grad(loss, has_aux=True, allow_int=True))(variables)
    return variables, out, grads["params"]


def test_eight_bits() -> None:
    operator = flax.linen.Fp8DirectDotGeneralOp
    both(lambda lib: ran(lib, as_is(lib, operator), "dense", "scan"))


@pytest.mark.parametrize(
    ("layer", "lift"), [("attention", "plain"), ("dense", "scan"), ("general", "remat")]
)
@pytest.mark.filterwarnings("ignore")
def test_aqt(layer: str, lift: str) -> None:
    """As AQT's users give it: its class with the configuration."""
    aqt_flax = pytest.importorskip("aqt.jax.v2.flax.aqt_flax", exc_type=ImportError)
    from aqt.jax.v2 import config

    def run(lib: Library) -> Any:
        operator = as_is(lib, aqt_flax.AqtDotGeneral)
        given = config.fully_quantized(fwd_bits=8, bwd_bits=8, use_stochastic_rounding=False)
        return ran(lib, functools.partial(operator, given), layer, lift)

    both(run)


@pytest.mark.filterwarnings("ignore")
def test_an_einsum_of_aqt() -> None:
    aqt_flax = pytest.importorskip("aqt.jax.v2.flax.aqt_flax", exc_type=ImportError)
    from aqt.jax.v2 import config

    def run(lib: Library) -> Any:
        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x):
                kernel = self.param("kernel", lib.nn.initializers.lecun_normal(), (4, 3))
                einsum = as_is(lib, aqt_flax.AqtEinsum)(config.config_v3(), name="einsum")
                return einsum("bti,ij->btj", x, kernel)

        return Model().init_with_output(KEYS, X)

    both(run)


def fused(query: Any, key: Any, value: Any, mask: Any = None, **_: Any) -> Any:
    """JAX's own attention, for the layers' `attention_fn`."""
    return jax.nn.dot_product_attention(query, key, value, mask=mask)


def blocks(query: Any, key: Any, value: Any, mask: Any = None, **_: Any) -> Any:
    """A kernel of one's own in Pallas: a program for each head of each sequence."""
    from jax.experimental import pallas as pl

    def kernel(q: Any, k: Any, v: Any, out: Any) -> None:
        scores = jnp.einsum("td,sd->ts", q[...], k[...])
        out[...] = jnp.einsum("ts,sd->td", jax.nn.softmax(scores), v[...])

    def one(q: Any, k: Any, v: Any) -> Any:
        return pl.pallas_call(kernel, jax.ShapeDtypeStruct(q.shape, q.dtype), interpret=True)(
            q, k, v
        )

    heads = jax.vmap(jax.vmap(one, in_axes=-2, out_axes=-2))
    return heads(query, key, value)


@pytest.mark.parametrize("kernel", [fused, blocks])
def test_a_kernel_of_others_for_attention(kernel: Any) -> None:
    def run(lib: Library) -> Any:
        class Layer(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x, _=None):
                return lib.nn.MultiHeadDotProductAttention(2, attention_fn=kernel)(x), None

        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x):
                return LIFTS["scan"](lib.nn, Layer)()(x, None)[0]

        variables = Model().init(KEYS, X)
        return variables, jax.jit(Model().apply)(variables, X)

    both(run)
