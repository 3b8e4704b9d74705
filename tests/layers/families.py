"""The rows of the table of layers, one function a family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from layers.cases import (
    ALL,
    BF16,
    NORMAL,
    SOME,
    Case,
    Late,
    array,
    cell,
    holes,
    index,
    layer,
    rnn,
    wrapped,
)

EINSUMS = {
    "qk_attn_weights_einsum_cls": Late(lambda nn: lambda: jnp.einsum),
    "attn_weights_value_einsum_cls": Late(lambda nn: lambda: jnp.einsum),
}
DOTS = {"qkv_dot_general": jax.lax.dot_general, "out_dot_general": jax.lax.dot_general}
DROP = {"dropout_rate": 0.4}
ON = {"deterministic": False}


def _linear() -> Iterator[tuple[str, Case]]:
    x = ((2, 3, 4),)
    yield "Dense", Case(layer("Dense", features=5), x, variants=ALL)
    yield "Dense-bias-init", Case(layer("Dense", features=5, bias_init=NORMAL), x)
    yield "Dense-no-bias", Case(layer("Dense", features=5, use_bias=False), ((4,),), variants=SOME)
    yield "Dense-int", Case(layer("Dense", features=2), (index(1, 2, 3),))
    yield "Dense-precision", Case(layer("Dense", features=5, precision="highest"), x)
    yield "Dense-dot", Case(layer("Dense", features=5, dot_general=jax.lax.dot_general), x)
    dot_cls = Late(lambda nn: lambda: jax.lax.dot_general)
    yield "Dense-dot-cls", Case(layer("Dense", features=5, dot_general_cls=dot_cls), x)
    for name, options in {
        "features": {"features": (4, 5)},
        "axes": {"features": (4, 5), "axis": (1, -1)},
        "axes-unsorted": {"features": 6, "axis": (-1, 1)},
        "batch": {"features": 6, "batch_dims": (0,), "bias_init": NORMAL},
        "batch-axes": {"features": (2, 3), "axis": (1, 2), "batch_dims": (0,)},
        "batch-two": {"features": 6, "batch_dims": (0, 1)},
        "no-bias": {"features": 6, "axis": 0, "use_bias": False},
        "all-axes": {"features": (2, 2), "axis": (0, 1, 2)},
    }.items():
        yield f"DenseGeneral-{name}", Case(layer("DenseGeneral", **options), x, variants=SOME)
    yield "DenseGeneral", Case(layer("DenseGeneral", features=(2, 5)), x, variants=ALL)
    for name, (shape, equation) in {
        "plain": ((4, 5, 6), "abc,cde->abde"),
        "dots": ((4, 5, 6), "...c,cde->...de"),
        "moved": ((7, 3, 4), "abc,dbc->bad"),
        "batch": ((2, 4, 5), "abc,acd->abd"),
        "kernel-dots": ((5, 1, 3, 4), "...c, ...c -> ...c"),
        "sum": ((4, 5), "abc,cd->d"),
        "scalar": ((4, 5), "abc,cd->"),
    }.items():
        fields = {"shape": shape, "einsum_str": equation, "bias_init": initializer(name)}
        yield f"Einsum-{name}", Case(layer("Einsum", **fields), x, variants=SOME)
    late = {"einsum_str": "abc,cd->abd"}
    yield "Einsum-call", Case(layer("Einsum", shape=(4, 5), use_bias=False), x, late)
    accumulate = {"shape": (4, 5), "einsum_str": "abc,cd->abd"}
    yield (
        "Einsum-preferred",
        Case(
            layer("Einsum", preferred_element_type=jnp.float32, **accumulate),
            x,
            variants=("all-bfloat16",),
        ),
    )
    ids = (lambda: jnp.asarray([[0, 4, -1], [2, 7, 1]]),)
    yield "Embed", Case(layer("Embed", num_embeddings=5, features=3), ids, variants=ALL)
    yield "Embed-one", Case(layer("Embed", num_embeddings=1, features=3), ids, variants=SOME)
    attend = {"method": "attend"}
    yield (
        "Embed-attend",
        Case(layer("Embed", num_embeddings=5, features=4), x, attend, variants=ALL),
    )


def initializer(name: str) -> Any:
    """Normal numbers, except for a scalar, where each library makes a zero."""
    return NORMAL if name != "scalar" else Late(lambda nn: nn.initializers.zeros)


def _conv() -> Iterator[tuple[str, Case]]:
    one, two, three = ((2, 6, 4),), ((2, 6, 5, 4),), ((1, 4, 3, 5, 2),)
    yield "Conv", Case(layer("Conv", features=4, kernel_size=(3,)), one, variants=ALL)
    for name, x, options in (
        ("2d", two, {"kernel_size": (3, 2), "strides": 2, "padding": "VALID"}),
        ("3d", three, {"kernel_size": (2, 1, 3), "strides": (2, 1, 2)}),
        ("circular", two, {"kernel_size": (3, 2), "strides": (1, 2), "padding": "CIRCULAR"}),
        ("reflect", two, {"kernel_size": (3, 2), "padding": "REFLECT", "kernel_dilation": (2, 1)}),
        ("causal", one, {"kernel_size": 3, "padding": "CAUSAL", "kernel_dilation": 2}),
        ("pad-int", two, {"kernel_size": (3, 2), "padding": 1}),
        ("pad-ints", two, {"kernel_size": (3, 2), "padding": (1, 2)}),
        ("pad-pairs", two, {"kernel_size": [3, 2], "padding": ((2, 1), 0)}),
        ("same-lower", one, {"kernel_size": (2,), "padding": "same_lower"}),
        ("groups", one, {"kernel_size": (3,), "feature_group_count": 2}),
        ("depthwise", one, {"kernel_size": (3,), "feature_group_count": 4, "features": 8}),
        ("input-dilation", one, {"kernel_size": (3,), "input_dilation": 2, "padding": 2}),
        ("mask", one, {"kernel_size": (3,), "mask": np.tril(np.ones((3, 4, 4), np.float32))}),
        ("no-bias", one, {"kernel_size": (3,), "use_bias": False, "strides": None}),
        ("no-batch", ((6, 4),), {"kernel_size": (3,)}),
        ("two-batches", two, {"kernel_size": (3,)}),
        ("custom", one, {"kernel_size": 3, "conv_general_dilated": jax.lax.conv_general_dilated}),
    ):
        fields = {"features": 4, "bias_init": NORMAL, **options}
        yield f"Conv-{name}", Case(layer("Conv", **fields), x, variants=SOME)
    for name, x, options in (
        ("1d", one, {"kernel_size": (3,)}),
        ("2d", two, {"kernel_size": (3, 2), "strides": (2, 1), "padding": "CIRCULAR"}),
        ("dilated", two, {"kernel_size": (3, 2), "kernel_dilation": (2, 1)}),
        ("valid", two, {"kernel_size": (3, 2), "padding": "VALID", "use_bias": False}),
        ("causal", one, {"kernel_size": (3,), "padding": "CAUSAL"}),
        ("mask", one, {"kernel_size": 3, "mask": np.tri(72, 4, -20).reshape(6, 12, 4)}),
        ("no-batch", ((6, 4),), {"kernel_size": (3,)}),
    ):
        case = Case(layer("ConvLocal", features=4, bias_init=NORMAL, **options), x, variants=SOME)
        yield f"ConvLocal-{name}", case
    yield "ConvLocal", Case(layer("ConvLocal", features=3, kernel_size=(2,)), one, variants=ALL)
    yield (
        "ConvTranspose",
        Case(layer("ConvTranspose", features=3, kernel_size=3, strides=2), one, variants=ALL),
    )
    for name, x, options in (
        ("valid", two, {"kernel_size": (3, 2), "strides": (2, 3), "padding": "VALID"}),
        ("circular", two, {"kernel_size": (3, 2), "strides": (2, 3), "padding": "CIRCULAR"}),
        ("circular-wide", two, {"kernel_size": (4, 9), "strides": (2, 1), "padding": "CIRCULAR"}),
        (
            "circular-flipped",
            two,
            {
                "kernel_size": (3, 2),
                "padding": "CIRCULAR",
                "kernel_dilation": (2, 2),
                "transpose_kernel": True,
            },
        ),
        ("flipped", two, {"kernel_size": (3, 2), "strides": 2, "transpose_kernel": True}),
        ("dilated", two, {"kernel_size": (3, 2), "kernel_dilation": (2, 1)}),
        ("pad", two, {"kernel_size": (3, 2), "strides": (2, 3), "padding": ((1, 2), 1)}),
        ("mask", one, {"kernel_size": (3,), "mask": np.ones((3, 4, 4), np.float32)}),
        ("no-batch", ((6, 4),), {"kernel_size": (3,), "use_bias": False}),
        ("two-batches", two, {"kernel_size": (3,), "strides": (2,)}),
        ("preferred", one, {"kernel_size": (3,), "preferred_element_type": jnp.float32}),
    ):
        fields = {"features": 4, "bias_init": NORMAL, **options}
        yield f"ConvTranspose-{name}", Case(layer("ConvTranspose", **fields), x, variants=SOME)


def _normalization() -> Iterator[tuple[str, Case]]:
    x = ((3, 5, 4),)
    init = {"scale_init": NORMAL, "bias_init": NORMAL}
    half = ("all-bfloat16", "compute-bfloat16")
    for name, options, call in (
        ("", {}, {}),
        ("-slow", {"use_fast_variance": False}, {}),
        ("-plain", {"use_bias": False, "use_scale": False}, {}),
        ("-axes", {"reduction_axes": (1, 2), "feature_axes": (-1, 1)}, {}),
        ("-mask", {}, {"mask": holes(3, 5, 4)}),
        ("-mask-slow", {"use_fast_variance": False}, {"mask": holes(3, 1, 4)}),
    ):
        fields = init if "use_scale" not in options else {}
        variants = SOME if name else ALL
        make = layer("LayerNorm", **fields, **options)
        yield f"LayerNorm{name}", Case(make, x, call, variants)
    low = {"force_float32_reductions": False}
    yield "LayerNorm-low", Case(layer("LayerNorm", **low), x, variants=half)
    yield "LayerNorm-int", Case(layer("LayerNorm"), (index(1, 5, 2),))
    complex_x = (lambda: array((3, 4), np.complex64),)
    yield "LayerNorm-complex", Case(layer("LayerNorm", use_bias=False), complex_x)
    yield (
        "LayerNorm-complex-slow",
        Case(layer("LayerNorm", use_scale=False, use_fast_variance=False), complex_x),
    )
    for name, options, call in (
        ("", {}, {}),
        ("-plain", {"use_scale": False}, {}),
        ("-axes", {"reduction_axes": (0, 2), "feature_axes": 1}, {}),
        ("-mask", {"use_fast_variance": False}, {"mask": holes(3, 5, 4)}),
    ):
        fields = {} if "use_scale" in options else {"scale_init": NORMAL}
        make = layer("RMSNorm", **fields, **options)
        yield f"RMSNorm{name}", Case(make, x, call, SOME if name else ALL)
    yield "RMSNorm-low", Case(layer("RMSNorm", **low), x, variants=half)
    for name, options, call in (
        ("", {"num_groups": 2}, {}),
        ("-size", {"num_groups": None, "group_size": 1, "use_fast_variance": False}, {}),
        ("-axes", {"num_groups": 2, "reduction_axes": (-1,)}, {}),
        ("-mask", {"num_groups": 2}, {"mask": holes(3, 5, 4)}),
        ("-plain", {"num_groups": 4, "use_bias": False, "use_scale": False}, {}),
    ):
        fields = {} if "use_scale" in options else init
        make = layer("GroupNorm", **fields, **options)
        yield f"GroupNorm{name}", Case(make, x, call, SOME if name else ALL)
    yield "GroupNorm-vector", Case(layer("GroupNorm", num_groups=2), ((4,),))
    for name, options, call in (
        ("", {}, {}),
        ("-axes", {"feature_axes": 1, "use_fast_variance": False}, {}),
        ("-mask", {"use_bias": False}, {"mask": holes(3, 5, 1)}),
    ):
        make = layer("InstanceNorm", **init, **options)
        yield f"InstanceNorm{name}", Case(make, x, call, SOME if name else ALL)
    train = {"use_running_average": False}
    for name, options, call in (
        ("", {}, train),
        ("-field", {**train, "momentum": 0.9}, {}),
        ("-slow", {"use_fast_variance": False, "axis": 1}, train),
        ("-axes", {"axis": (1, 2)}, train),
        ("-mask", {}, {**train, "mask": holes(3, 5, 1)}),
        ("-eval", {}, {"use_running_average": True}),
        ("-plain", {"use_bias": False, "use_scale": False}, train),
    ):
        fields = {} if "use_scale" in options else init
        make = layer("BatchNorm", **fields, **options)
        yield f"BatchNorm{name}", Case(make, x, call, SOME if name else ALL)
    yield "BatchNorm-low", Case(layer("BatchNorm", **low), x, train, half)

    def held(kind: str, inner: str, **options: Any) -> Callable[..., Any]:
        def body(nn: Any, x: Any, **dtypes: Any) -> Any:
            given = {"features": 4, "kernel_size": (2,)} if inner == "Conv" else {"features": 4}
            call = {"update_stats": options.get("update", True)} if kind == "SpectralNorm" else {}
            fields = {k: v for k, v in options.items() if k != "update"}
            holder = getattr(nn, kind)(getattr(nn, inner)(**given), **fields, **dtypes)
            return holder(x, **call)

        return wrapped(body)

    x = ((2, 3, 5),)
    for name, inner, options in (
        ("", "Dense", {}),
        ("-steps", "Dense", {"n_steps": 3, "collection_name": "state"}),
        ("-conv", "Conv", {}),
        ("-frozen", "Dense", {"update": False}),
    ):
        variants = ("float32",) if name else SOME
        yield f"SpectralNorm{name}", Case(held("SpectralNorm", inner, **options), x, {}, variants)
    for name, inner, options in (
        ("", "Dense", {}),
        ("-all", "Dense", {"variable_filter": None}),
        ("-plain", "Conv", {"use_scale": False}),
        ("-one", "Conv", {"feature_axes": None, "scale_init": NORMAL}),
        ("-axes", "Conv", {"feature_axes": (0, -1)}),
        ("-none", "Dense", {"variable_filter": {"nothing"}}),
    ):
        variants = ("float32",) if name else SOME
        case = Case(late_fields(held, "WeightNorm", inner, options), x, {}, variants)
        yield f"WeightNorm{name}", case


def late_fields(held: Any, kind: str, inner: str, options: Mapping[str, Any]) -> Any:
    """`held`, with fields that depend on the library built for it."""

    def make(nn: Any, **dtypes: Any) -> Any:
        fields = {k: v(nn) if isinstance(v, Late) else v for k, v in options.items()}
        return held(kind, inner, **fields)(nn, **dtypes)

    return make


def _attention() -> Iterator[tuple[str, Case]]:
    x, y = (2, 5, 8), (2, 6, 3)
    mask = {"mask": holes(2, 1, 5, 5)}
    name = "MultiHeadDotProductAttention"
    half = ("compute-bfloat16", "all-bfloat16")
    yield name, Case(layer(name, num_heads=2), (x,), variants=ALL)
    for suffix, shapes, options, call in (
        ("cross", (x, y), {"qkv_features": 4, "out_features": 6, "bias_init": NORMAL}, {}),
        ("values", (x, y, (2, 6, 2)), {"use_bias": False}, {}),
        ("kv", (x,), {}, {"inputs_kv": lambda: array(y, jnp.float32, 5)}),
        ("normalized", (x,), {"normalize_qk": True}, mask),
        ("dropout", (x,), DROP, ON),
        ("dropout-full", (x,), {**DROP, "broadcast_dropout": False}, {**mask, **ON}),
        ("idle", (x,), {"dropout_rate": 0.4, "deterministic": True}, {}),
        ("key", (x,), {**DROP, **ON}, {"dropout_rng": lambda: jax.random.key(7)}),
        ("sow", (x,), {}, {**mask, "sow_weights": True}),
        ("decode", ((2, 1, 8),), {"decode": True}, {"mask": holes(2, 1, 1, 1)}),
        ("inits", (x,), {"out_kernel_init": NORMAL, "out_bias_init": NORMAL}, {}),
        ("dots", (x,), DOTS, {}),
        ("einsums", (x,), EINSUMS, {}),
        ("two-batches", ((2, 3, 4, 8),), {}, {}),
        ("no-batch", ((5, 8),), {}, {}),
        ("precision", (x,), {"precision": "highest"}, {}),
    ):  # fmt: skip
        case = Case(layer(name, num_heads=2, **options), shapes, call)
        yield f"{name}-{suffix}", case
    wide = {"num_heads": 2, "force_fp32_for_softmax": True}
    yield f"{name}-wide", Case(layer(name, **wide), (x,), mask, ("float32", "float64", *half))
    yield "MultiHeadAttention", Case(layer("MultiHeadAttention", num_heads=4), (x,), variants=SOME)
    yield "SelfAttention", Case(layer("SelfAttention", num_heads=2), (x,), mask, variants=SOME)


def _recurrent() -> Iterator[tuple[str, Case]]:
    x, h = (2, 4), (2, 3)
    for name, carry in {
        "LSTMCell": (h, h),
        "OptimizedLSTMCell": (h, h),
        "SimpleCell": h,
        "GRUCell": h,
        "MGUCell": h,
    }.items():
        yield name, Case(cell(name, features=3), (carry, x), variants=ALL)
        bias = "activation_bias_init" if name == "MGUCell" else "bias_init"
        fields = {
            "features": 3,
            "kernel_init": NORMAL,
            "recurrent_kernel_init": NORMAL,
            "activation_fn": jax.nn.relu,
            bias: NORMAL,
        }
        if name != "SimpleCell":
            fields["gate_fn"] = jax.nn.hard_sigmoid
        yield f"{name}-fields", Case(layer(name, **fields), (carry, x))
    yield "SimpleCell-residual", Case(cell("SimpleCell", features=3, residual=True), (h, x))
    yield "MGUCell-no-reset", Case(cell("MGUCell", features=3, reset_gate=False), (h, x))
    image, state = (2, 4, 5, 2), (2, 4, 5, 3)
    make = cell("ConvLSTMCell", features=3, kernel_size=(3, 2))
    yield "ConvLSTMCell", Case(make, ((state, state), image), variants=ALL)
    options = {"padding": [(2, 0)], "use_bias": False, "kernel_size": (3,)}
    make = cell("ConvLSTMCell", features=3, **options)
    yield "ConvLSTMCell-padding", Case(make, (((4, 3), (4, 3)), (4, 2)))

    xs = ((2, 4, 3),)
    lengths = {"seq_lengths": index(2, 4)}
    gru, lstm = cell("GRUCell", features=2), cell("LSTMCell", features=2)
    yield "RNN", Case(rnn(lstm), xs, variants=ALL)
    for suffix, make, call in (
        ("carry", rnn(lstm, return_carry=True), {}),
        ("reverse", rnn(gru, reverse=True), {}),
        ("keep-order", rnn(gru, reverse=True, keep_order=True, return_carry=True), {}),
        ("lengths", rnn(lstm, return_carry=True), lengths),
        ("lengths-reverse", rnn(gru, reverse=True, return_carry=True), lengths),
        ("lengths-keep-order", rnn(gru, reverse=True, keep_order=True), lengths),
        ("time-major", rnn(gru, time_major=True, reverse=True), {"return_carry": True}),
        ("call", rnn(gru), {"reverse": True, "keep_order": True, "time_major": True}),
        ("initial", rnn(gru), {"initial_carry": lambda: array((2, 2), jnp.float32, 4)}),
        ("unroll", rnn(gru, unroll=2), {}),
        (
            "init-key",
            rnn(cell("GRUCell", features=2, carry_init=NORMAL)),
            {"init_key": lambda: jax.random.key(3)},
        ),
        ("init-default", rnn(cell("LSTMCell", features=2, carry_init=NORMAL)), {}),
    ):
        yield f"RNN-{suffix}", Case(make, xs, call)
    major = rnn(gru, time_major=True, reverse=True, return_carry=True)
    yield "RNN-lengths-time-major", Case(major, ((4, 2, 3),), lengths)
    yield "RNN-no-batch", Case(rnn(gru), ((4, 3),))
    yield "RNN-two-batches", Case(rnn(gru, reverse=True), ((2, 1, 4, 3),))
    conv = cell("ConvLSTMCell", features=2, kernel_size=(2,))
    yield "RNN-conv", Case(rnn(conv), ((2, 3, 4, 2),))

    def both(**fields: Any) -> Callable[..., Any]:
        def make(nn: Any, **dtypes: Any) -> Any:
            forward, backward = nn.RNN(gru(nn, **dtypes)), nn.RNN(lstm(nn, **dtypes))
            return nn.Bidirectional(forward, backward, **fields)

        return make

    yield "Bidirectional", Case(both(), xs)
    yield "Bidirectional-carry", Case(both(return_carry=True), xs, lengths)
    yield "Bidirectional-merge", Case(both(merge_fn=jnp.add, time_major=True), xs)
    init_key = {"init_key": lambda: jax.random.key(3), "return_carry": True}
    yield "Bidirectional-init-key", Case(both(), xs, init_key)


def _other() -> Iterator[tuple[str, Case]]:
    x = ((3, 4),)
    idle = {"deterministic": True}
    yield "Dropout", Case(layer("Dropout", rate=0.5), x, ON)
    yield "Dropout-field", Case(layer("Dropout", rate=0.25, deterministic=False), x)
    yield "Dropout-idle", Case(layer("Dropout", rate=0.5), x, idle)
    yield "Dropout-none", Case(layer("Dropout", rate=0.0), x, ON)
    yield "Dropout-all", Case(layer("Dropout", rate=1.0), x, ON)
    yield "Dropout-broadcast", Case(layer("Dropout", rate=0.5, broadcast_dims=(0, -1)), x, ON)
    yield "Dropout-stream", Case(layer("Dropout", rate=0.5, rng_collection="noise"), x, ON)
    yield (
        "Dropout-key",
        Case(layer("Dropout", rate=0.5), x, {**ON, "rng": lambda: jax.random.key(9)}),
    )
    yield "PReLU", Case(layer("PReLU"), x, variants=("float32",))
    yield "PReLU-bfloat16", Case(layer("PReLU", param_dtype=BF16, negative_slope_init=0.3), x)

    def chain(nn: Any, **dtypes: Any) -> Any:
        return nn.Sequential(
            [
                nn.Dense(4, **dtypes),
                nn.relu,
                lambda x: (x, nn.Dense(x.shape[-1], **dtypes)(x)),
                lambda a, b: {"p": a, "q": b},
                lambda p, q: p + q,
                nn.LayerNorm(**dtypes),
            ]
        )

    yield "Sequential", Case(chain, x, variants=ALL)


FAMILIES = (_linear, _conv, _normalization, _attention, _recurrent, _other)
