"""Bad shapes and contradictory options: a clear error, before anything is made."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import liftax as nn
from liftax.errors import LayerError

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
X = jnp.ones((2, 6, 4))
IMAGE = jnp.ones((2, 6, 5, 4))
DOT, CONVOLVE = jax.lax.dot_general, jax.lax.conv_general_dilated


def attention(**fields: Any) -> Any:
    return nn.MultiHeadDotProductAttention(num_heads=2, **fields)


def only_three(query: Any, key: Any, value: Any) -> Any:
    return value


ON = {"deterministic": False}
# What is made, what it is called with, and what the message says.
CASES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any], str]] = {
    "Dense-scalar": (nn.Dense(3), (jnp.float32(1),), {}, "Dense: the input is a scalar"),
    "Dense-two-dots": (
        nn.Dense(3, dot_general=DOT, dot_general_cls=lambda: DOT),
        (X,),
        {},
        "both dot_general and dot_general_cls",
    ),
    "Dense-negative": (nn.Dense(-1), (X,), {}, "features=-1 is not an int, 0 or more"),
    "Dense-float": (nn.Dense(2.5), (X,), {}, "features=2.5 is not an int"),  # type: ignore[arg-type]
    "Dense-string": (nn.Dense("4"), (X,), {}, "features='4' is not an int"),  # type: ignore[arg-type]
    "Dense-tuple": (nn.Dense((4,)), (X,), {}, "is not an int"),  # type: ignore[arg-type]
    "DenseGeneral-float": (nn.DenseGeneral((2, 2.5)), (X,), {}, "is not made of ints"),  # type: ignore[arg-type]
    "DenseGeneral-axis-float": (nn.DenseGeneral(2, axis=0.5), (X,), {}, "axis=0.5 is not made of"),  # type: ignore[arg-type]
    "Einsum-size": (nn.Einsum((5, 4), "abc,cd->abd"), (X,), {}, "'c' .* has size 4 .*, 5 in the"),
    "Embed-none": (nn.Embed(0, 4), (X,), {}, "num_embeddings=0 is not an int, 1 or more"),
    "Conv-features": (nn.Conv(-3, (3,)), (X,), {}, "features=-3 is not an int"),
    "Conv-kernel-float": (nn.Conv(3, (2.5,)), (X,), {}, "kernel_size=.* is not made of ints"),  # type: ignore[arg-type]
    "Conv-stride-float": (nn.Conv(3, (3,), strides=0.5), (X,), {}, "strides=0.5 is not a pos"),  # type: ignore[arg-type]
    "ConvTranspose-features": (nn.ConvTranspose(-3, (3,)), (X,), {}, "features=-3 is not an int"),
    "LayerNorm-groups": (
        nn.LayerNorm(axis_index_groups=[[0, 1]]),
        (X,),
        {},
        "axis_name is not set",
    ),
    "BatchNorm-groups": (
        nn.BatchNorm(use_running_average=False, axis_index_groups=[[0, 1]]),
        (X,),
        {},
        "axis_name is not set",
    ),
    "WeightNorm-filter": (
        nn.WeightNorm(nn.Dense(3), variable_filter="kernel"),
        (X,),
        {},
        "variable_filter='kernel' is a string",
    ),
    "attention-rate": (attention(dropout_rate=1.5), (X,), ON, "dropout_rate=1.5 is not in 0 to 1"),
    "attention-mask": (attention(), (X,), {"mask": jnp.ones((2, 1, 5, 5))}, "mask of shape"),
    "attention-values": (attention(), (X, X, X[:, :5]), {}, "6 keys and 5 values"),
    "attention-dots": (
        attention(qkv_dot_general=DOT, qkv_dot_general_cls=lambda: DOT),
        (X,),
        {},
        "both qkv_dot_general and qkv_dot_general_cls",
    ),
    "Sequential-string": (
        nn.Sequential([nn.relu, "relu"]),
        (X,),
        {},
        r"layers\[1\] is of type str",
    ),  # type: ignore[list-item]
    "RNN-class": (nn.RNN(nn.LSTMCell), (X,), {}, "cell is .*LSTMCell.*, not a cell"),  # type: ignore[arg-type]
    "LSTMCell-carry": (nn.LSTMCell(4), (X[:, 0], X[:, 0]), {}, r"shape \(2, 4\) is not a pair"),
    "DenseGeneral-axis": (nn.DenseGeneral(3, axis=3), (X,), {}, r"axis=\(3,\) does not name"),
    "DenseGeneral-axis-twice": (nn.DenseGeneral(3, axis=(0, -3)), (X,), {}, "distinct axes"),
    "DenseGeneral-batch": (nn.DenseGeneral(3, batch_dims=(1,)), (X,), {}, "leading axes"),
    "DenseGeneral-overlap": (
        nn.DenseGeneral(3, axis=0, batch_dims=(0,)),
        (X,),
        {},
        "share an axis",
    ),
    "Einsum-none": (nn.Einsum((4, 5)), (X,), {}, "einsum_str is not set"),
    "Einsum-twice": (
        nn.Einsum((4, 5), "abc,cd->abd"),
        (X,),
        {"einsum_str": "abc,cd->abd"},
        "einsum_str is set by the constructor .* and by the call",
    ),
    "Einsum-implicit": (nn.Einsum((4, 5), "abc,cd"), (X,), {}, 'no "->"'),
    "Einsum-three": (nn.Einsum((4, 5), "abc,cd,d->a"), (X,), {}, "two operands"),
    "Einsum-input": (nn.Einsum((4, 5), "ac,cd->ad"), (X,), {}, "'ac' .* does not fit the input"),
    "Einsum-kernel": (nn.Einsum((4, 5), "abc,cde->abd"), (X,), {}, "does not fit the kernel"),
    "Einsum-output": (nn.Einsum((4, 5), "abc,cd->abe"), (X,), {}, "'e' .* is in neither"),
    "Embed-floats": (nn.Embed(3, 4), (X,), {}, "of dtype float32, not of an integer"),
    "Embed-attend": (nn.Embed(3, 5), (X,), {"method": "attend"}, "must be features=5"),
    "Conv-padding": (nn.Conv(3, (3,), padding="SOME"), (X,), {}, "padding='SOME' is not one of"),
    "Conv-padding-count": (nn.Conv(3, (3,), padding=(1, 2)), (X,), {}, "1 entries"),
    "Conv-causal": (nn.Conv(3, (3, 2), padding="CAUSAL"), (IMAGE,), {}, "needs one dimension"),
    "Conv-strides": (nn.Conv(3, (3,), strides=(1, 2)), (X,), {}, r"strides=\(1, 2\) is not"),
    "Conv-stride-zero": (nn.Conv(3, (3,), strides=0), (X,), {}, "strides=0 is not a positive int"),
    "Conv-kernel": (nn.Conv(3, (0,)), (X,), {}, "kernel_size=.* 1 or more"),
    "Conv-groups": (nn.Conv(3, (3,), feature_group_count=2), (X,), {}, "does not divide both"),
    "Conv-rank": (nn.Conv(3, (3, 3)), (jnp.ones((6, 4)),), {}, "too few axes"),
    "Conv-mask": (nn.Conv(3, (3,), mask=jnp.ones((3, 4))), (X,), {}, r"mask has shape \(3, 4\)"),
    "Conv-dilation": (nn.Conv(3, (3,), input_dilation=2), (X,), {}, "does not go with input_dil"),
    "Conv-two-functions": (
        nn.Conv(3, 3, conv_general_dilated=CONVOLVE, conv_general_dilated_cls=lambda: CONVOLVE),
        (X,),
        {},
        "both conv_general_dilated and",
    ),
    "ConvLocal-groups": (
        nn.ConvLocal(4, (3,), feature_group_count=2),
        (X,),
        {},
        "feature_group_count=2 is not supported",
    ),
    "ConvLocal-window": (
        nn.ConvLocal(4, (7,), padding="VALID", kernel_init=lambda key, shape, _: 1 / shape[0]),
        (X,),
        {},
        "the window fits nowhere",
    ),
    "ConvTranspose-causal": (
        nn.ConvTranspose(3, (3,), padding="CAUSAL"),
        (X,),
        {},
        "is not one of SAME, VALID, CIRCULAR",
    ),
    "ConvTranspose-mask": (
        nn.ConvTranspose(3, (3,), transpose_kernel=True, mask=jnp.ones((3, 4, 3))),
        (X,),
        {},
        r"the kernel \(3, 3, 4\)",
    ),
    "LayerNorm-axes": (nn.LayerNorm(reduction_axes=4), (X,), {}, "reduction_axes"),
    "LayerNorm-mask": (nn.LayerNorm(), (X,), {"mask": jnp.ones((3, 4))}, "mask of shape"),
    "RMSNorm-axes": (nn.RMSNorm(feature_axes=(0, 0)), (X,), {}, "feature_axes"),
    "GroupNorm-both": (nn.GroupNorm(2, group_size=2), (X,), {}, "just one of them"),
    "GroupNorm-none": (nn.GroupNorm(None), (X,), {}, "just one of them"),
    "GroupNorm-groups": (nn.GroupNorm(3), (X,), {}, "num_groups=3 does not divide the 4 channels"),
    "GroupNorm-size": (nn.GroupNorm(None, group_size=3), (X,), {}, "group_size=3 does not divide"),
    "GroupNorm-axes": (nn.GroupNorm(2, reduction_axes=(1,)), (X,), {}, "leave out the last axis"),
    "InstanceNorm-batch": (nn.InstanceNorm(feature_axes=0), (X,), {}, "the first axis, the batch"),
    "BatchNorm-none": (nn.BatchNorm(), (X,), {}, "use_running_average is not set"),
    "BatchNorm-twice": (
        nn.BatchNorm(use_running_average=True),
        (X, False),
        {},
        "set by the constructor",
    ),
    "SpectralNorm-steps": (
        nn.SpectralNorm(nn.Dense(3), n_steps=0),
        (X,),
        {"update_stats": True},
        "n_steps=0",
    ),
    "SpectralNorm-matrix": (
        nn.SpectralNorm(nn.Conv(3, (2,)), error_on_non_matrix=True),
        (X,),
        {"update_stats": True},
        "kernel has 3 axes",
    ),
    "Attention-heads": (
        nn.MultiHeadDotProductAttention(num_heads=3),
        (X,),
        {},
        "num_heads=3 does not divide the 4 features",
    ),
    "Attention-qkv": (attention(qkv_features=5), (X,), {}, "the 5 qkv_features"),
    "Attention-kv": (attention(), (X, X), {"inputs_kv": X}, "together with inputs_k"),
    "Attention-values": (attention(), (X, None, X), {}, "without inputs_k"),
    "Attention-batch": (attention(), (X, X[:1]), {}, "same batch axes"),
    "Attention-mask-third": (attention(), (X, X, jnp.ones((2, 1, 6, 6))), {}, "a keyword, mask="),
    "Attention-dropout": (attention(dropout_rate=0.1), (X,), {}, "deterministic is not set"),
    "Attention-fn-mask": (
        attention(attention_fn=only_three),
        (X,),
        {"mask": jnp.ones((2, 1, 6, 6))},
        "attention_fn does not take mask",
    ),
    "Attention-fn-dropout": (
        attention(attention_fn=only_three, dropout_rate=0.5),
        (X,),
        ON,
        "does not take dropout_rng, dropout_rate",
    ),
    "Attention-fn-softmax": (
        attention(attention_fn=only_three, force_fp32_for_softmax=True),
        (X,),
        {},
        "does not take force_fp32_for_softmax",
    ),
    "Attention-fn-sow": (
        attention(attention_fn=only_three),
        (X,),
        {"sow_weights": True},
        "does not take module",
    ),
    "Attention-fused-dropout": (
        attention(attention_fn=nn.fused_dot_product_attention, dropout_rate=0.5),
        (X,),
        ON,
        "does not take dropout_rng",
    ),
    "Attention-einsum": (
        attention(qk_attn_weights_einsum_cls=lambda: jnp.einsum),
        (X,),
        {},
        "one of qk_attn_weights_einsum and",
    ),
    "Attention-einsum-precision": (
        attention(
            qk_attn_weights_einsum_cls=lambda: jnp.einsum,
            attn_weights_value_einsum_cls=lambda: jnp.einsum,
            precision="highest",
        ),
        (X,),
        {},
        "together with precision",
    ),
    "GRU-carry": (nn.GRUCell(3), (jnp.array(1.0), X), {}, "the carry is a scalar"),
    "ConvLSTM-carry": (nn.ConvLSTMCell(3, (3,)), ((X, X), X), {}, "the carry has shapes"),
    "ConvLSTM-valid": (
        nn.ConvLSTMCell(4, (3,), padding="VALID"),
        ((X, X), X),
        {},
        "would change its shape",
    ),
    "ConvLSTM-strides": (nn.ConvLSTMCell(4, (3,), strides=(2,)), ((X, X), X), {}, "would change"),
    "RNN-rank": (nn.RNN(nn.GRUCell(3)), (jnp.ones(4),), {}, "too few axes"),
    "RNN-lengths": (
        nn.RNN(nn.GRUCell(3)),
        (X,),
        {"seq_lengths": jnp.ones(3, int)},
        r"seq_lengths has shape \(3,\), the batch \(2,\)",
    ),
    "Bidirectional-reverse": (
        nn.Bidirectional(nn.RNN(nn.GRUCell(3)), nn.RNN(nn.GRUCell(3))),
        (X,),
        {"reverse": True},
        "reverse=True, but one network goes each way",
    ),
    "Dropout-rate": (nn.Dropout(1.5), (X,), ON, "rate=1.5 is not in 0 to 1"),
    "Dropout-unset": (nn.Dropout(0.5), (X,), {}, "deterministic is not set"),
    "Dropout-twice": (
        nn.Dropout(0.5, deterministic=True),
        (X,),
        ON,
        r"set by the constructor \(True\) and by the call \(False\)",
    ),
    "Dropout-ints": (nn.Dropout(0.5), (jnp.arange(3),), ON, "dtype int32, which cannot be scaled"),
    "Dropout-axes": (nn.Dropout(0.5, broadcast_dims=(5,)), (X,), ON, "broadcast_dims"),
    "Sequential-empty": (nn.Sequential([]), (X,), {}, "layers is empty"),
}


@pytest.mark.filterwarnings("ignore:.*may be meant for a mask:DeprecationWarning")
@pytest.mark.parametrize("name", CASES)
def test_layers(name: str) -> None:
    module, args, kwargs, message = CASES[name]
    with pytest.raises(LayerError, match=message) as caught:
        module.init(KEYS, *args, **kwargs)
    text = str(caught.value)
    assert len(text.splitlines()) <= 12
    assert "Array(" not in text


def test_sequence_of_layers() -> None:
    with pytest.raises(LayerError, match="layers is of type Dense, not a sequence"):
        nn.Sequential(nn.Dense(2))


def test_path_of_the_module() -> None:
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.GroupNorm(3, name="norm")(x)

    with pytest.raises(LayerError, match="module /norm: GroupNorm: num_groups=3"):
        Outer().init(KEYS, X)


def test_full_cache() -> None:
    layer = nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
    variables = layer.init(KEYS, X[:, :1])
    params = {"params": variables["params"]}
    _, new = layer.apply(variables, X[:, :1], mutable=["cache"])
    with pytest.raises(LayerError, match="the cache is full: it has 1 positions"):
        layer.apply({**params, **new}, X[:, :1], mutable=["cache"])
    with pytest.raises(LayerError, match="takes one position of shape"):
        layer.apply(variables, X, mutable=["cache"])


def test_functions() -> None:
    q = jnp.ones((2, 3, 2, 4))
    attend, fused = nn.dot_product_attention, nn.fused_dot_product_attention
    for call, message in (
        (lambda: attend(q[0], q, q), "same number of axes"),
        (lambda: attend(q[:1], q, q), "batch axes must be the same"),
        (lambda: attend(q[:, :, :1], q, q), "same number of heads"),
        (lambda: attend(q, q[..., :2], q), "same depth"),
        (lambda: attend(q, q, q[:, :2]), "same length"),
        (lambda: attend(q, q, q, mask=jnp.ones((4, 3))), "mask of shape .* does not broadcast"),
        (lambda: attend(q, q, q, bias=jnp.ones((4, 3))), "bias of shape .* does not broadcast"),
        (lambda: attend(q, q, q, dropout_rate=0.5), "dropout_rate=0.5 needs a key"),
        (lambda: fused(q, q, q, dropout_rate=0.5), "has no dropout"),
        (lambda: fused(q, q, q, mask=jnp.ones((4, 3))), "mask of shape .* does not broadcast"),
        (lambda: nn.combine_masks(q, q[0]), "same number of axes"),
        (lambda: nn.max_pool(X, 2), "window_shape=2 is not a tuple"),
        (lambda: nn.max_pool(X, (0,)), r"window_shape=\(0,\) is not made of ints, each 1 or more"),
        (lambda: nn.max_pool(X, (2,), (0,)), r"strides=\(0,\) is not made of ints"),
        (lambda: attend(q, q, q, dropout_rate=-0.5), "dropout_rate=-0.5 is not in 0 to 1"),
        (lambda: nn.max_pool(X, (2,), (1, 1)), "strides=.* is not one int for each"),
        (lambda: nn.avg_pool(X, (2, 2, 2)), "needs 3 axes of space"),
        (lambda: nn.min_pool(X, (2,), padding="CIRCULAR"), "is not one of SAME"),
        (lambda: nn.BatchApply(jnp.sum)(jnp.ones(2)), "not the same for all"),
    ):
        with pytest.raises(LayerError, match=message):
            call()


def test_dtype_that_is_not_inexact() -> None:
    with pytest.raises(ValueError, match="must be a floating or complex dtype, got int32"):
        nn.Dense(3, dtype=jnp.int32).init(KEYS, X)


def test_cells_must_say_how_they_begin() -> None:
    cell = nn.RNNCellBase()
    with pytest.raises(NotImplementedError, match="RNNCellBase must define initialize_carry"):
        cell.initialize_carry(KEYS["params"], (1,))
    with pytest.raises(NotImplementedError, match="must define num_feature_axes"):
        _ = cell.num_feature_axes


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell, nn.SimpleCell], ids=str)
def test_the_first_carry_is_asked_of_a_cell(cell) -> None:
    with pytest.raises(LayerError, match="^initialize_carry: it is called on a class"):
        cell.initialize_carry(KEYS["params"], (16,), 5)
