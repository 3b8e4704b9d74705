"""Every layer under the lifts, beside flax.linen: variables and outputs to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, linen, ours
from helpers.run import MUTABLE, keys, total
from layers.cases import VARIANTS, table
from layers.programs import assert_same_results

FLOAT32 = VARIANTS["float32"]
KEYS = keys()
AXES = {"params": 0, "batch_stats": 0, "cache": 0, "intermediates": 0}
SPLIT = {"params": True, "dropout": True}

# One case of each layer. A layer that is made in a wrapper is lifted with it.
LAYERS = [
    *(
        "BatchNorm Bidirectional Conv ConvLSTMCell ConvLocal ConvTranspose Dense DenseGeneral"
    ).split(),
    *(
        "Dropout Einsum-plain Embed GRUCell GroupNorm InstanceNorm LSTMCell LayerNorm MGUCell"
    ).split(),
    *("MultiHeadAttention MultiHeadDotProductAttention-dropout OptimizedLSTMCell PReLU").split(),
    *("RMSNorm RNN-lengths SelfAttention Sequential SimpleCell SpectralNorm WeightNorm").split(),
]


# Where the two differ, and ought to: in flax, layers that are passed to one jitted function get the
# same key.
LEFT_OUT = {
    "Bidirectional": ("jit",),
    "RNN-lengths": ("jit",),
    "Sequential": ("jit",),
}


def _twice(args: Any) -> Any:
    return jax.tree.map(lambda x: jnp.stack([x, x]), args)


def _lifts(
    nn: Any, model: Any, make: Callable[[], Any], call: dict[str, Any], args: Any, left_out: Any
) -> Any:
    """The layer called as it is and under each lift; what comes out, by lift."""
    initializing = model.is_initializing()

    def body(layer: Any, *args: Any) -> Any:
        return layer(*args, **call)

    def loop(layer: Any, carry: Any, *args: Any) -> Any:
        return carry + 1, layer(*args, **call)

    mapped = nn.vmap(body, variable_axes=AXES, split_rngs=SPLIT)
    scanned = nn.scan(loop, variable_axes=AXES, split_rngs=SPLIT)
    changed = nn.map_variables(body, "params", init=initializing, mutable=True)
    plain = make()
    found = {"plain": body(plain, *args)}
    for name, run in {
        "vmap": lambda layer: mapped(layer, *_twice(args)),
        "scan": lambda layer: scanned(layer, 0, *_twice(args)),
        "remat": lambda layer: nn.remat(body)(layer, *args),
        "jit": lambda layer: nn.jit(body)(layer, *args),
        "map_variables": lambda layer: changed(layer, *args),
    }.items():
        if name not in left_out:
            found[name] = run(make())
    found["cond"] = nn.cond(jnp.sum(_float(args)) > 0, body, body, plain, *args)
    found["switch"] = nn.switch(jnp.int32(1), [body, body], plain, *args)
    found["grad"] = nn.value_and_grad(lambda layer: total(body(layer, *args)), plain)
    return found


def _float(args: Any) -> jax.Array:
    return jnp.asarray(jax.tree.leaves(args)[-1], jnp.float32)


def _program(lib: Library, name: str) -> tuple[Any, Any, Any]:
    case = table()[name]
    kwargs = case.kwargs()

    class Model(lib.nn.Module):  # type: ignore[name-defined, misc]
        @lib.nn.compact
        def __call__(self, *args: Any) -> Any:
            def make() -> Any:
                return case.module(lib.nn, FLOAT32)

            return _lifts(lib.nn, self, make, kwargs, args, LEFT_OUT.get(name, ()))

    def run(rngs: Any, args: Any) -> Any:
        made = Model().init(rngs, *args)
        given = {name: key for name, key in rngs.items() if name != "params"}
        return made, Model().apply(made, *args, rngs=given, mutable=MUTABLE)

    given = (KEYS, case.args(FLOAT32))
    program, shapes = jax.make_jaxpr(run, return_shape=True)(*given)
    return program, shapes, jax.tree.leaves(given)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_under_lifts(name: str) -> None:
    found, shapes, inputs = _program(ours(), name)
    expected, expected_shapes, _ = _program(linen(), name)
    assert jax.tree.map(str, shapes) == jax.tree.map(str, expected_shapes)
    assert_same_results(found, expected, inputs, shapes, name)
