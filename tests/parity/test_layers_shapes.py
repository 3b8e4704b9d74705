"""Random shapes, windows and paddings: what flax.linen makes of them, and what they mean."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Library, linen, ours
from hypothesis import example, given, settings
from hypothesis import strategies as st

KEY = jax.random.key(0)
SIZES = st.integers(1, 7)
ZEROS = jax.nn.initializers.zeros  # makes an empty kernel on every version of JAX


def _shapes(lib: Library, name: str, fields: dict[str, Any], shape: tuple[int, ...]) -> Any:
    """The shapes of the variables and the output, or None where the layer refuses."""
    layer = getattr(lib.nn, name)(**fields)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        made = jax.eval_shape(layer.init_with_output, KEY, x)
    except (ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError):
        return None
    return jax.tree.map(lambda leaf: leaf.shape, made)


def _agree(name: str, fields: dict[str, Any], shape: tuple[int, ...]) -> Any:
    found, expected = (_shapes(lib, name, fields, shape) for lib in (ours(), linen()))
    assert found == expected
    return found


@st.composite
def convolutions(draw: Any, name: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Fields of a convolution, and the shape of an input that goes with them."""
    rank = draw(st.integers(1, 3))

    def each(values: Any) -> Any:
        return draw(st.one_of(values, st.tuples(*[values] * rank)))

    few = st.integers(1, 3)
    pairs = st.one_of(st.integers(0, 3), st.tuples(st.integers(0, 2), st.integers(0, 2)))
    names = ["SAME", "VALID", "CIRCULAR"]
    if name != "ConvTranspose":
        names += ["REFLECT", "SAME_LOWER"] + (["CAUSAL"] if rank == 1 else [])
    fields: dict[str, Any] = {
        "features": draw(st.sampled_from([2, 4])),
        "kernel_size": draw(st.tuples(*[few] * rank)),
        "strides": each(few),
        "kernel_dilation": each(st.integers(1, 2)),
        "padding": draw(st.one_of(st.sampled_from(names), st.tuples(*[pairs] * rank), few)),
        "use_bias": draw(st.booleans()),
    }
    channels = draw(st.sampled_from([1, 2, 4]))
    if name == "Conv":
        fields["feature_group_count"] = draw(
            st.sampled_from([g for g in (1, 2) if not channels % g])
        )
    if name == "ConvTranspose":
        fields["transpose_kernel"] = draw(st.booleans())
    elif not isinstance(fields["padding"], str):
        fields["input_dilation"] = each(st.integers(1, 2))
    batch = draw(st.lists(st.integers(1, 3), max_size=2))
    space = draw(st.tuples(*[SIZES] * rank))
    return fields, (*batch, *space, channels)


@given(convolutions("Conv"))
@settings(max_examples=60)
def test_conv(case: Any) -> None:
    fields, shape = case
    found = _agree("Conv", fields, shape)
    padding = fields["padding"]
    if found is not None and isinstance(padding, str) and padding != "VALID":
        # These paddings divide the input by the strides, rounding up.
        rank = len(fields["kernel_size"])
        strides = np.broadcast_to(fields["strides"], rank)
        space = np.array(shape[len(shape) - rank - 1 : -1])
        assert found[0][len(shape) - rank - 1 : -1] == tuple(-(-space // strides))


@given(convolutions("ConvLocal"))
@example(({"features": 2, "kernel_size": (2,), "padding": "VALID"}, (1, 1)))
@example(({"features": 2, "kernel_size": (2, 3), "padding": "VALID"}, (2, 4, 2, 3)))
@example(({"features": 2, "kernel_size": 3, "padding": "VALID", "kernel_init": ZEROS}, (2, 2, 4)))
@settings(max_examples=30)
def test_conv_local(case: Any) -> None:
    _agree("ConvLocal", *case)


@given(convolutions("ConvTranspose"))
@settings(max_examples=50)
def test_conv_transpose(case: Any) -> None:
    fields, shape = case
    found = _agree("ConvTranspose", fields, shape)
    if found is not None and fields["padding"] in ("SAME", "CIRCULAR"):
        rank = len(fields["kernel_size"])
        strides = np.broadcast_to(fields["strides"], rank)
        space = np.array(shape[len(shape) - rank - 1 : -1])
        assert found[0][len(shape) - rank - 1 : -1] == tuple(space * strides)


@given(
    size=st.integers(1, 3),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["CIRCULAR", "REFLECT", "CAUSAL"]),
    length=st.integers(5, 6),
)
@settings(max_examples=12)
def test_what_the_paddings_mean(size: int, dilation: int, mode: str, length: int) -> None:
    """A convolution by hand, over an input that NumPy pads."""
    x = np.random.default_rng(0).normal(size=(1, length, 2)).astype(np.float32)
    layer = ours().nn.Conv(3, (size,), kernel_dilation=dilation, padding=mode, use_bias=False)
    y, variables = layer.init_with_output(KEY, jnp.asarray(x))
    kernel = np.asarray(variables["params"]["kernel"])
    reach = (size - 1) * dilation
    if mode == "CAUSAL":
        wide = np.pad(x, ((0, 0), (reach, 0), (0, 0)))
    else:
        how = "wrap" if mode == "CIRCULAR" else "reflect"
        wide = np.pad(x, ((0, 0), (reach // 2, reach - reach // 2), (0, 0)), mode=how)
    taps = [wide[:, k * dilation : k * dilation + length] @ kernel[k] for k in range(size)]
    np.testing.assert_allclose(y, sum(taps), rtol=1e-4, atol=1e-5)


@st.composite
def pools(draw: Any) -> tuple[tuple[int, ...], dict[str, Any]]:
    rank = draw(st.integers(1, 2))
    few = st.integers(1, 3)
    pads = st.tuples(st.integers(0, 2), st.integers(0, 2))
    padding = st.one_of(st.sampled_from(["SAME", "VALID"]), st.tuples(*[pads] * rank))
    options = {
        "window_shape": draw(st.tuples(*[few] * rank)),
        "strides": draw(st.one_of(st.none(), st.tuples(*[few] * rank))),
        "padding": draw(padding),
    }
    batch = draw(st.lists(st.integers(1, 2), max_size=2))
    space = draw(st.tuples(*[st.integers(3, 6)] * rank))
    return (*batch, *space, 2), options


@given(pools())
@settings(max_examples=40)
def test_pools(case: Any) -> None:
    shape, options = case
    x, rank = jax.ShapeDtypeStruct(shape, jnp.float32), len(options["window_shape"])

    def made(lib: Library, name: str) -> Any:
        return jax.eval_shape(lambda x: getattr(lib.nn, name)(x, **options), x)

    for name in ("max_pool", "avg_pool"):
        found = made(ours(), name)
        # flax does not take pairs together with several batch axes.
        if isinstance(options["padding"], str) or len(shape) <= rank + 2:
            assert found == made(linen(), name)
        assert found.shape[: len(shape) - rank - 1] == shape[: len(shape) - rank - 1]


@given(window=st.integers(1, 3), stride=st.integers(1, 3), low=st.integers(0, 1))
@settings(max_examples=12)
def test_what_the_pools_mean(window: int, stride: int, low: int) -> None:
    x = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    options = {"strides": (stride,), "padding": ((low, 0),)}
    windows = [x[max(0, start) : start + window] for start in range(-low, 6 - window + 1, stride)]
    nn, size = ours().nn, (window,)
    kept = [w for w in windows if len(w)]
    if len(kept) == len(windows):
        largest = np.stack([w.max(0) for w in windows])
        np.testing.assert_array_equal(nn.max_pool(x, size, **options), largest)
        smallest = np.stack([w.min(0) for w in windows])
        np.testing.assert_array_equal(nn.min_pool(x, size, **options), smallest)
        mean = np.stack([w.mean(0) for w in windows])
        found = nn.avg_pool(x, size, **options, count_include_pad=False)
        np.testing.assert_allclose(found, mean, rtol=1e-5, atol=1e-6)


@st.composite
def maps(draw: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Axes of a general dense layer, counted from either end."""
    shape = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=4)))
    ndim = len(shape)
    batch = draw(st.integers(0, ndim - 1))
    rest = list(range(batch, ndim))
    axis = draw(st.lists(st.sampled_from(rest), min_size=1, unique=True))
    axis = [a - ndim if draw(st.booleans()) else a for a in axis]
    features = draw(st.one_of(st.integers(1, 3), st.tuples(st.integers(1, 3), st.integers(1, 3))))
    return {"features": features, "axis": axis, "batch_dims": tuple(range(batch))}, shape


@given(maps())
@settings(max_examples=40)
def test_dense_general(case: Any) -> None:
    assert _agree("DenseGeneral", *case) is not None


@st.composite
def equations(draw: Any) -> tuple[dict[str, Any], tuple[int, ...]]:
    """An einsum of two operands, with or without an ellipsis in the input."""
    sizes = {label: draw(st.integers(1, 3)) for label in "abcde"}
    left = draw(st.permutations("abc"))[: draw(st.integers(1, 3))]
    right = draw(st.permutations("cde" if "c" in left else "de"))[: draw(st.integers(1, 2))]
    out = draw(st.permutations(sorted({*left, *right})))
    out = out[: draw(st.integers(0, len(out)))]
    dots, hidden = draw(st.sampled_from([("", ()), ("...", (2,)), ("...", (3, 1))]))
    equation = f"{dots}{''.join(left)},{''.join(right)}->{dots}{''.join(out)}"
    kernel = tuple(sizes[label] for label in right)
    fields = {"shape": kernel, "einsum_str": equation, "kernel_init": jax.nn.initializers.ones}
    return fields, (*hidden, *(sizes[label] for label in left))


@given(equations())
@settings(max_examples=40)
def test_einsum(case: Any) -> None:
    assert _agree("Einsum", *case) is not None


@pytest.mark.parametrize(
    ("batch", "masked", "biased"), [((2,), True, False), ((), False, True), ((2, 1), True, True)]
)
def test_fused_attention(batch: tuple[int, ...], masked: bool, biased: bool) -> None:
    """The fused kernel gives what the plain function gives, but for rounding."""
    nn, rng, lengths = ours().nn, np.random.default_rng(2), (3, 5)
    q, k, v = (
        jnp.asarray(rng.normal(size=(*batch, n, 2, 4)), jnp.float32)
        for n in (lengths[0], lengths[1], lengths[1])
    )
    full = (*batch, 2, *lengths)
    # The first key is never hidden.
    mask = jnp.asarray(rng.random(full) < 0.5).at[..., 0].set(True) if masked else None
    bias = jnp.asarray(rng.normal(size=full[-2:]), jnp.float32) if biased else None
    found = nn.fused_dot_product_attention(q, k, v, bias, mask)
    expected = nn.dot_product_attention(q, k, v, bias, mask)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
