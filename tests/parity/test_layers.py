"""Every layer with every option beside flax.linen: variables, outputs, gradients, to the last bit.

Both programs are traced. Results of the same arithmetic have the same bits; the others are run, one
primitive at a time. A case of each kind is run eagerly and under jit besides, as there the layers
call single operations in another way.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, assert_same, linen, ours
from helpers.run import MUTABLE, everything, keys, total
from layers.cases import VARIANTS, table
from layers.programs import assert_same_results

TABLE = [(name, variant) for name, case in table().items() for variant in case.variants]
KEYS = keys()


def _wide(x64: bool) -> Any:
    return jax.enable_x64(True) if x64 else contextlib.nullcontext()


def _program(lib: Library, name: str, variant: str) -> tuple[Any, Any, Sequence[Any]]:
    """Initial variables, outputs, changed collections and gradients: traced, and the inputs."""
    case, dtypes = table()[name], VARIANTS[variant]
    module, kwargs = case.module(lib.nn, dtypes), case.kwargs()

    def run(rngs: Any, args: Any) -> Any:
        return everything(module, args, rngs, compiled=True, **kwargs)

    given = (KEYS, case.args(dtypes))
    program, shapes = jax.make_jaxpr(run, return_shape=True)(*given)
    return program, shapes, jax.tree.leaves(given)


@pytest.mark.parametrize(("name", "variant"), TABLE, ids=[f"{n}-{v}" for n, v in TABLE])
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_parity(name: str, variant: str) -> None:
    with _wide(VARIANTS[variant].x64):
        found, shapes, inputs = _program(ours(), name, variant)
        expected, expected_shapes, _ = _program(linen(), name, variant)
        tree = jax.tree.structure(shapes)
        assert tree == jax.tree.structure(expected_shapes), f"{tree}"
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(shapes),
            jax.tree.leaves(expected_shapes),
            strict=True,
        ):
            assert (a.shape, a.dtype) == (b.shape, b.dtype), jax.tree_util.keystr(path)
        assert_same_results(found, expected, inputs, shapes, name)


def _paths(tree: Any) -> Any:
    return [(k, _paths(v)) for k, v in tree.items()] if isinstance(tree, dict) else None


@pytest.mark.parametrize("name", table())
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_init_makes_the_variables_in_one_order(name: str) -> None:
    """As the dicts have them that an eager `init` returns: what returns them traced sorts them."""
    case = table()[name]
    dtypes = VARIANTS[case.variants[0]]
    made: list[Any] = []
    with _wide(dtypes.x64):
        for lib in (ours(), linen()):
            init, given = case.module(lib.nn, dtypes).init, case.args(dtypes)
            keywords = case.kwargs()
            jax.eval_shape(lambda: made.append(_paths(init(KEYS, *given, **keywords))))  # noqa: B023
    assert made[0] == made[1]


TWICE = (
    "Dense", "DenseGeneral-batch", "Conv-circular", "LayerNorm", "RMSNorm", "GroupNorm-mask",
    "BatchNorm", "MultiHeadDotProductAttention-dropout", "OptimizedLSTMCell", "GRUCell",
)  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_parity_of_second_derivatives(name: str) -> None:
    """What comes back to one value from two sides is added up in one order."""
    case, dtypes = table()[name], VARIANTS["float32"]
    given, kwargs = case.args(dtypes), case.kwargs()
    made = case.module(ours().nn, dtypes).init(KEYS, *given, **kwargs)

    def program(lib: Library) -> Any:
        module = case.module(lib.nn, dtypes)

        def loss(params: Any, args: Any) -> Any:
            filled, rngs = {**made, "params": params}, {"dropout": KEYS["dropout"]}
            return total(module.apply(filled, *args, rngs=rngs, mutable=MUTABLE, **kwargs)[0])

        def steepness(*inputs: Any) -> Any:
            _, along = jax.jvp(loss, inputs, jax.tree.map(jnp.cos, inputs))
            return along + total(jax.grad(loss, (0, 1))(*inputs))

        return jax.make_jaxpr(jax.grad(steepness, (0, 1)))(*inputs)

    inputs = (made["params"], given)
    found, expected = program(ours()), program(linen())
    assert_same_results(found, expected, jax.tree.leaves(inputs), inputs, name)


EAGER = {
    "Dense": 2,
    "DenseGeneral-batch": 2,
    "Embed": 2,
    "Conv-circular": 1,
    "ConvTranspose-circular": 1,
    "LayerNorm": 2,
    "GroupNorm-mask": 1,
    "BatchNorm": 2,
    "MultiHeadDotProductAttention-dropout": 1,
    "MultiHeadDotProductAttention-decode": 1,
    "OptimizedLSTMCell": 1,
    "Dropout": 1,
    "PReLU": 1,
}


def _eagerly(lib: Library, name: str, variant: str) -> Any:
    case, dtypes = table()[name], VARIANTS[variant]
    module, kwargs, args = case.module(lib.nn, dtypes), case.kwargs(), case.args(dtypes)
    made = module.init(KEYS, *args, **kwargs)
    given = {k: v for k, v in KEYS.items() if k != "params"}
    return made, module.apply(made, *args, rngs=given, mutable=MUTABLE, **kwargs)


@pytest.mark.parametrize("name", EAGER)
def test_parity_eagerly(name: str) -> None:
    for variant in table()[name].variants[: EAGER[name]]:
        found = _eagerly(ours(), name, variant)
        assert_same(found, _eagerly(linen(), name, variant), f"{name} {variant}")


COMPILED = ("Dense", "LayerNorm", "BatchNorm", "RNN-lengths")


@pytest.mark.parametrize("name", COMPILED)
def test_parity_under_jit(name: str) -> None:
    case, dtypes = table()[name], VARIANTS["float32"]

    def run(lib: Library) -> Any:
        module, kwargs = case.module(lib.nn, dtypes), case.kwargs()
        whole = jax.jit(lambda rngs, args: everything(module, args, rngs, compiled=True, **kwargs))
        return whole(KEYS, case.args(dtypes))

    assert_same(run(ours()), run(linen()), name)
