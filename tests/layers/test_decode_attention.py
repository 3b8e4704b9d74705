"""Attention of one query by sums: numbers of dot_product_attention but for rounding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liftax as nn
from liftax.errors import LayerError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

HEADS, DEPTH, V_DEPTH = 2, 4, 3
KEY = jax.random.key(0)


def arrays(batch, length, dtype=jnp.float32, queries=1, depth=DEPTH):
    shapes = ((queries, depth), (length, depth), (length, V_DEPTH))
    keys = jax.random.split(KEY, 3)
    return [
        jax.random.normal(key, (*batch, n, HEADS, d), dtype)
        for key, (n, d) in zip(keys, shapes, strict=True)
    ]


def mask(batch, length):
    # The first position is never hidden.
    return jax.random.bernoulli(KEY, 0.5, (*batch, 1, 1, length)).at[..., 0].set(True)


def bias(length):
    return jax.random.normal(KEY, (HEADS, 1, length))


CASES = {
    "plain": (arrays((2,), 6), {}),
    "odd sizes": (arrays((2,), 7, depth=5), {"mask": mask((2,), 7)}),
    "one position": (arrays((2,), 1, depth=1), {}),
    "no batch": (arrays((), 6), {"mask": mask((), 6), "bias": bias(6)}),
    "two batch axes": (arrays((2, 3), 5), {"mask": mask((1, 3), 5), "bias": bias(5)}),
    "nothing seen": (arrays((2,), 6), {"mask": jnp.zeros((1, 1, 6))}),
    "half": (arrays((2,), 65, jnp.bfloat16, depth=64), {"mask": mask((2,), 65)}),
    "half, softmax wide": (
        arrays((2,), 6, jnp.bfloat16),
        {"force_fp32_for_softmax": True, "bias": bias(6).astype(jnp.bfloat16)},
    ),
    "dtype": (arrays((2,), 6), {"dtype": jnp.bfloat16}),
    "dropout": (arrays((2,), 6), {"dropout_rng": KEY, "dropout_rate": 0.5}),
    "dropout apart": (
        arrays((2,), 6),
        {"dropout_rng": KEY, "dropout_rate": 0.5, "broadcast_dropout": False},
    ),
    "no dropout": (arrays((2,), 6), {"dropout_rate": 0.5, "deterministic": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_dot_product_attention(case):
    given, options = CASES[case]
    found, expected = (
        jax.jit(functools.partial(fn, **options))(*given)
        for fn in (nn.decode_attention, nn.dot_product_attention)
    )
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    rounding = 2e-2 if found.dtype == jnp.bfloat16 else 1e-5
    np.testing.assert_allclose(
        found.astype(jnp.float32), expected.astype(jnp.float32), rtol=rounding, atol=rounding
    )


class Sows(nn.Module):
    fn: object

    def __call__(self, *given):
        return self.fn(*given, module=self)


@pytest.mark.parametrize("queries", [1, 3])
def test_heads_of_keys_serve_several_of_the_queries(queries):
    q = jax.random.normal(KEY, (2, queries, 6, DEPTH))
    _, k, _ = arrays((2,), 7)
    v, hidden = k[..., ::-1], mask((2,), 7)
    found = jax.jit(functools.partial(nn.decode_attention, mask=hidden))(q, k, v)
    expected = jax.nn.dot_product_attention(q, k, v, mask=hidden)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for few in (q[:, :, :5], q[:, :, :0]):
        with pytest.raises(LayerError, match=r"^decode_attention: .*key \(2, 7, 2, 4\).* of heads"):
            nn.decode_attention(few, k, v)


def test_keys_that_serve_several_heads_are_written_out_nowhere():
    q, k = (jax.ShapeDtypeStruct((2, n, h, 32), "float32") for n, h in ((1, 8), (512, 2)))
    program = jax.jit(nn.decode_attention).lower(q, k, k).compile()
    once = 2 * 4 * np.prod(k.shape)
    assert program.cost_analysis()["bytes accessed"] < 1.75 * once
    assert program.memory_analysis().temp_size_in_bytes < once / 2


@pytest.mark.parametrize("axes", [AxisType.Auto, AxisType.Explicit])
def test_heads_that_are_split_stay_where_they_are(axes):
    mesh = jax.make_mesh((2,), ("heads",), axis_types=(axes,))
    place = NamedSharding(mesh, PartitionSpec(None, None, "heads", None))
    q, k, v = jax.random.normal(KEY, (2, 1, 4, DEPTH)), *arrays((2,), 7)[1:]
    with jax.set_mesh(mesh):
        given = [jax.device_put(x, place) for x in (q, k, v)]
        program = jax.jit(nn.decode_attention).lower(*given).compile()
        y = program(*given)
    assert y.sharding.spec[2] == "heads"
    assert "all-gather" not in program.as_text()
    np.testing.assert_allclose(y, nn.decode_attention(q, k, v), rtol=1e-5, atol=1e-5)


def test_sums_of_half_precision_are_wide():
    """Sums of ones in bfloat16 would stop at 256: logits at 4, of weights each of 1/300 sooner."""
    q, k, v = (jnp.ones((1, n, 1, 4096), jnp.bfloat16) for n in (1, 300, 300))
    # As heavy as the others by its bias alone.
    k = k.at[:, 0].set(0)
    bias = jnp.zeros((1, 1, 300), jnp.bfloat16).at[..., 0].set(64)
    run = jax.jit(functools.partial(Sows(nn.decode_attention).apply, mutable=["intermediates"]))
    y, found = run({}, q, k, v, bias)
    np.testing.assert_allclose(y.astype(jnp.float32), 1, rtol=1e-2)
    (weights,) = found["intermediates"]["attention_weights"]
    assert weights.shape == (1, 1, 1, 300) and weights.dtype == jnp.bfloat16
    np.testing.assert_allclose(weights.astype(jnp.float32), 1 / 300, rtol=1e-2)


def test_longer_queries_are_those_of_dot_product_attention():
    given = arrays((2,), 6, queries=3)
    found, expected = (
        jax.jit(functools.partial(fn, precision="highest"))(*given)
        for fn in (nn.decode_attention, nn.dot_product_attention)
    )
    np.testing.assert_array_equal(found, expected)


def test_derivatives_and_maps():
    given = arrays((2,), 7)

    def loss(fn, *given):
        return jnp.sin(fn(*given)).sum()

    def all_of(fn):
        of = functools.partial(loss, fn)
        grads = jax.grad(of, (0, 1, 2))(*given)
        hessian = jax.jvp(jax.grad(of), given, given)[1]
        # One cache, several queries; one query each, several caches.
        shared = jax.vmap(fn, (0, None, None))(jnp.stack([given[0], -given[0]]), *given[1:])
        return grads, hessian, shared, jax.vmap(fn)(*(x[None] for x in given))

    found, expected = (
        jax.jit(functools.partial(all_of, fn))()
        for fn in (nn.decode_attention, nn.dot_product_attention)
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_misuse_is_told_under_its_name():
    q, k, v = arrays((2,), 6)
    with pytest.raises(LayerError, match="^decode_attention: .* the same length"):
        nn.decode_attention(q, k, v[:, :3])
    with pytest.raises(LayerError, match="needs a key"):
        nn.decode_attention(q, k, v, dropout_rate=0.5)
