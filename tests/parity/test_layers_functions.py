"""The layers' functions, their fields, and the cases of layers that the table has no room for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import ON_FLAX, Library, assert_same, both, linen, ours
from helpers.interpret import _evaluate
from helpers.run import total
from jax.sharding import Mesh, PartitionSpec
from layers.cases import array, holes
from layers.programs import same_program

LAYERS = (
    "BatchNorm Bidirectional Conv ConvLSTMCell ConvLocal ConvTranspose Dense DenseGeneral Dropout "
    "Einsum Embed GRUCell GroupNorm InstanceNorm LSTMCell LayerNorm MGUCell MultiHeadAttention "
    "MultiHeadDotProductAttention OptimizedLSTMCell PReLU RMSNorm RNN RNNCellBase SelfAttention "
    "Sequential SimpleCell SpectralNorm WeightNorm"
).split()

FUNCTIONS = (
    "avg_pool combine_masks dot_product_attention dot_product_attention_weights "
    "make_attention_mask make_causal_mask max_pool pool"
).split()


def _default(value: Any) -> Any:
    """A default in a form that compares: functions by what they are called."""
    if value is dataclasses.MISSING:
        return "none"
    if isinstance(value, type) or not callable(value):
        return value
    return getattr(value, "__qualname__", None) or getattr(value, "__name__", type(value).__name__)


def _fields(cls: type) -> list[tuple[str, Any]]:
    found = []
    for field in dataclasses.fields(cls):
        if field.name in ("parent", "name", "out_sharding"):  # the last is ours alone
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if hasattr(default, "items"):
            default = dict(default)
        found.append((field.name, _default(default)))
    return found


@pytest.mark.parametrize("name", LAYERS)
def test_fields(name: str) -> None:
    """The same fields in the same order, with the same defaults."""
    assert _fields(getattr(ours().nn, name)) == _fields(getattr(linen().nn, name))


def _parameters(fn: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(fn).parameters.values()
    return [(p.name, p.kind, _default(p.default)) for p in parameters]


def test_signatures() -> None:
    for name in FUNCTIONS:
        mine, theirs = getattr(ours().nn, name), getattr(linen().nn, name)
        assert _parameters(mine) == _parameters(theirs), name
    for name in LAYERS:
        mine, theirs = (getattr(lib.nn, name) for lib in (ours(), linen()))
        if name != "RNNCellBase":
            assert _parameters(mine.__call__) == _parameters(theirs.__call__), name


@pytest.mark.parametrize("module", ["activation", "initializers", "dtypes"])
def test_names_of_modules(module: str) -> None:
    ignored = {"Any", "Array", "Dense", "Dtype", "Module", "Optional", "T", "TypeVar", "compact"}
    theirs = {n for n in dir(getattr(linen().nn, module)) if not n.startswith("_")} - ignored
    theirs -= {"jnp", "jax"}
    assert theirs <= set(dir(getattr(ours().nn, module)))


def _same(run: Callable[[Library], Callable[..., Any]], *args: Any) -> None:
    """The same values and the same gradients, of a function of arrays."""
    programs = []
    for lib in (ours(), linen()):
        fn = run(lib)

        def whole(*args: Any, fn: Any = fn) -> Any:
            floats = [i for i, a in enumerate(args) if jnp.issubdtype(a.dtype, jnp.floating)]
            if not floats:
                return fn(*args)
            grad = jax.grad(lambda *a: (total(y := fn(*a)), y), tuple(floats), has_aux=True)
            return grad(*args)

        programs.append(jax.make_jaxpr(whole, return_shape=True)(*args))
    (found, shapes), (expected, expected_shapes) = programs
    assert jax.tree.map(str, shapes) == jax.tree.map(str, expected_shapes)
    if not same_program(found, expected):
        assert_same(_evaluate(found, args), _evaluate(expected, args))


def _traced(run: Callable[[Library], Any]) -> Any:
    """What both compute, one primitive at a time; nothing is run twice where programs agree."""
    programs = [
        jax.make_jaxpr(lambda lib=lib: run(lib), return_shape=True)() for lib in (ours(), linen())
    ]
    (found, shapes), (expected, expected_shapes) = programs
    assert jax.tree.map(str, shapes) == jax.tree.map(str, expected_shapes)
    values = _evaluate(found, [])
    if not same_program(found, expected):
        assert_same(values, _evaluate(expected, []))
    return jax.tree.unflatten(jax.tree.structure(shapes), values)


SEQUENCE, IMAGE, VOLUME = array((2, 6, 3), jnp.float32), (2, 5, 6, 2), (1, 3, 4, 4, 2)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 6, 3), {"window_shape": (2,)}),
        ((6, 3), {"window_shape": (3,), "strides": (2,)}),
        (IMAGE, {"window_shape": (2, 3), "strides": (2, 1), "padding": "SAME"}),
        (IMAGE, {"window_shape": (2, 2), "padding": ((1, 0), (0, 1))}),
        ((2, 1, 5, 2), {"window_shape": (2,), "strides": (2,)}),
        (VOLUME, {"window_shape": (2, 2, 2), "strides": (1, 2, 2), "padding": "VALID"}),
    ],
    ids=["1d", "no-batch", "same", "pairs", "two-batches", "3d"],
)
def test_pooling(shape: Any, options: Any, dtype: Any) -> None:
    x = array(shape, jnp.float32)
    x = jnp.asarray(x * 8, dtype)
    _same(lambda lib: lambda x: lib.nn.max_pool(x, **options), x)
    _same(lambda lib: lambda x: lib.nn.avg_pool(x, **options), x)
    _same(lambda lib: lambda x: lib.nn.avg_pool(x, **options, count_include_pad=False), x)

    def smallest(lib: Library) -> Any:
        home = lib.nn.pooling if lib.name == "flax" else lib.nn
        return lambda x: home.min_pool(x, **options)

    _same(smallest, x)


def test_pool() -> None:
    args = (0.0, jax.lax.add, (2,), (2,), "SAME")
    _same(lambda lib: lambda x: lib.nn.pool(x, *args), SEQUENCE)


def test_masks() -> None:
    a, b = array((2, 3), jnp.float32), jnp.asarray([[1, 0, 2, 3], [4, 1, 0, 0]])
    boolean = holes(2, 3)()
    for make in (
        lambda nn: nn.make_attention_mask(a, b),
        lambda nn: nn.make_attention_mask(a, b, jnp.greater_equal, 2, bool),
        lambda nn: nn.make_causal_mask(b),
        lambda nn: nn.make_causal_mask(b, extra_batch_dims=1, dtype=jnp.bfloat16),
        lambda nn: nn.combine_masks(boolean, None, a, dtype=bool),
        lambda nn: nn.combine_masks(a, boolean, a > 0),
        lambda nn: nn.combine_masks(None, boolean),
        lambda nn: nn.combine_masks(None, None),
    ):
        both(lambda lib, make=make: make(lib.nn))


Q, K, V = (2, 3, 2, 4), (2, 5, 2, 4), (2, 5, 2, 3)
FULL = {"dropout_rate": 0.3, "broadcast_dropout": False}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"dtype": jnp.bfloat16},
        {"dtype": jnp.bfloat16, "force_fp32_for_softmax": True},
        {"bias": array((2, 2, 3, 5), jnp.float32, 8)},
        {"mask": holes(1, 3, 5)()},
        {"mask": jnp.ones((2, 1, 3, 5)), "bias": jnp.ones((3, 1))},
        {"dropout_rate": 0.3, "dropout_rng": jax.random.key(3)},
        {**FULL, "dropout_rng": jax.random.key(3), "dtype": jnp.bfloat16},
        {"dropout_rate": 0.3, "deterministic": True},
        {"precision": "highest"},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_attention(options: Any) -> None:
    q, k, v = (array(s, jnp.float32, i) for i, s in enumerate((Q, K, V)))
    _same(lambda lib: lambda *a: lib.nn.dot_product_attention(*a, **options), q, k, v)
    weights = {k: v for k, v in options.items() if k != "einsum_dot_general"}
    _same(lambda lib: lambda *a: lib.nn.dot_product_attention_weights(*a, **weights), q, k)


def test_attention_einsums() -> None:
    q, k, v = (array(s, jnp.float32, i) for i, s in enumerate((Q, K, V)))
    calls: list[Any] = []

    def einsum(*args: Any) -> Any:
        calls.append(args[0])
        return jnp.einsum(*args)

    custom = {"qk_attn_weights_einsum": einsum, "attn_weights_value_einsum": einsum}
    _same(lambda lib: lambda *a: lib.nn.dot_product_attention(*a, **custom), q, k, v)
    dot = {"einsum_dot_general": jax.lax.dot_general}
    _same(lambda lib: lambda *a: lib.nn.dot_product_attention(*a, **dot), q, k, v)
    assert calls[:2] == calls[2:4]


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "GroupNorm", "InstanceNorm", "BatchNorm"])
@pytest.mark.parametrize("fast", [True, False])
def test_normalization_across_a_mapped_axis(name: str, fast: bool) -> None:
    """``axis_name`` and, where the collective knows groups, ``axis_index_groups``."""
    options: dict[str, Any] = {"axis_name": "batch", "use_fast_variance": fast}
    if name == "GroupNorm":
        options["num_groups"] = 2
    call = {"use_running_average": False} if name == "BatchNorm" else {}
    x = array((4, 3, 2, 4), jnp.float32)

    def norm(lib: Library, **more: Any) -> Any:
        layer = getattr(lib.nn, name)(**options, **more)
        return lambda v, x: layer.apply(v, x, mutable=["batch_stats"], **call)

    plain = getattr(ours().nn, name)(**{**options, "axis_name": None})
    variables = plain.init(jax.random.key(0), x[0], **call)
    _same(lambda lib: lambda x: jax.vmap(norm(lib), (None, 0), axis_name="batch")(variables, x), x)

    def mapped(lib: Library) -> Any:
        apply = norm(lib, axis_index_groups=[[0, 1], [2, 3]])
        mesh = Mesh(np.array(jax.devices()[:4]), ("batch",))
        spec = PartitionSpec("batch")

        def one(v: Any, x: Any) -> Any:
            return jax.tree.map(lambda leaf: leaf[None], apply(v, x[0]))

        specs = (PartitionSpec(), spec)
        return jax.shard_map(one, mesh=mesh, in_specs=specs, out_specs=spec, check_vma=False)

    programs = [jax.make_jaxpr(mapped(lib))(variables, x) for lib in (ours(), linen())]
    assert same_program(*programs)


def test_batch_norm_needs_no_mapped_axis_at_init() -> None:
    both(lambda lib: lib.nn.BatchNorm(axis_name="x").init(jax.random.key(0), SEQUENCE, False))


def test_decoding_position_by_position() -> None:
    """A decoded sequence is the causal attention over it."""
    x = array((2, 4, 6), jnp.float32)

    def decode(lib: Library) -> Any:
        layer = lib.nn.MultiHeadDotProductAttention(num_heads=2, decode=True)
        variables = layer.init(jax.random.key(0), x)
        params, cache, out = variables["params"], variables["cache"], []
        for i in range(x.shape[1]):
            y, new = layer.apply(
                {"params": params, "cache": cache}, x[:, i : i + 1], mutable=["cache"]
            )
            out.append(y)
            cache = new["cache"]
        return variables, jnp.concatenate(out, 1), cache

    variables, y, _ = _traced(decode)
    nn = ours().nn
    whole = nn.MultiHeadDotProductAttention(num_heads=2)
    causal = whole.apply({"params": variables["params"]}, x, mask=nn.make_causal_mask(x[..., 0]))
    np.testing.assert_allclose(y, causal, rtol=1e-5, atol=1e-6)


def test_decoding_in_a_scan_over_layers() -> None:
    """The cache of a stack of layers lies along the layers' axis and survives the loop."""
    x = array((2, 3, 6), jnp.float32)

    def decode(lib: Library) -> Any:
        nn = lib.nn

        class Block(nn.Module):
            @nn.compact
            def __call__(self, x: Any, _: Any) -> Any:
                return x + nn.MultiHeadDotProductAttention(num_heads=2, decode=True)(x), None

        Stack = nn.scan(
            Block, variable_axes={"params": 0, "cache": 0}, split_rngs={"params": True}, length=3
        )
        variables = Stack().init(jax.random.key(0), x, None)
        (y, _), new = Stack().apply(variables, x[:, :1], None, mutable=["cache"])
        (z, _), new = Stack().apply(
            {"params": variables["params"], **new}, y, None, mutable=["cache"]
        )
        return variables, y, z, new

    _, _, _, new = _traced(decode)
    (cache,) = new["cache"].values()
    assert cache["cache_index"].tolist() == [2, 2, 2]


def test_promotion() -> None:
    one, half = jnp.ones(2), jnp.ones(2, jnp.bfloat16)

    def run(lib: Library) -> Any:
        promote, canonical = lib.nn.dtypes.promote_dtype, lib.nn.dtypes.canonicalize_dtype
        return (
            promote(one, None, half),
            promote(half, 1.0),
            promote(jnp.arange(3)),
            promote(jnp.arange(3), inexact=False),
            promote(np.arange(3.0), half),
            promote(one, dtype=jnp.bfloat16),
            promote(1, 2),
            [str(canonical(*a)) for a in ((one, half), (half, 1.0), (np.float64(1.0), half), (3,))],
            [x.weak_type for x in promote(jnp.asarray(1.0), 2.0)],
        )

    both(run)


@pytest.mark.skipif(ON_FLAX, reason="an improvement on flax")
def test_carry_of_sequences_in_several_batch_axes() -> None:
    """flax mixes up the batch axes."""
    nn = ours().nn
    x, lengths = array((2, 3, 5, 4), jnp.float32), jnp.asarray([[1, 2, 3], [4, 5, 2]])
    rnn = nn.RNN(nn.GRUCell(2), return_carry=True)
    variables = rnn.init(jax.random.key(0), x)
    carry, y = rnn.apply(variables, x, seq_lengths=lengths)
    last = jnp.take_along_axis(y, (lengths - 1)[..., None, None], axis=2)[:, :, 0]
    assert_same(carry, last)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("kind", ["SpectralNorm", "WeightNorm", "map_variables"])
def test_variables_that_are_mapped_to_another_dtype(kind: str, dtype: Any) -> None:
    """The layer inside promotes: it was made in float32, and is given something else."""
    x = array((3, 4), jnp.float32)

    def run(lib: Any) -> Any:
        class Outer(lib.nn.Module):  # type: ignore[name-defined, misc]
            @lib.nn.compact
            def __call__(self, x: Any) -> Any:
                if kind == "SpectralNorm":
                    return lib.nn.SpectralNorm(lib.nn.Dense(5), dtype=dtype)(x, update_stats=True)
                if kind == "WeightNorm":
                    return lib.nn.WeightNorm(lib.nn.Dense(5), dtype=dtype, variable_filter=None)(x)

                def rounded(variables: Any) -> Any:
                    return jax.tree.map(lambda v: v.astype(dtype), variables)

                mapped = lib.nn.map_variables(
                    lib.nn.Dense, "params", trans_in_fn=rounded, init=True, mutable=True
                )
                return mapped(5)(x)

        y, variables = Outer().init_with_output(jax.random.key(0), x)
        return y, variables, Outer().init(jax.random.key(0), x)

    both(run)


@pytest.mark.skipif(ON_FLAX, reason="an improvement on flax")
def test_weight_norm_around_a_layer_with_state() -> None:
    """flax does not let the layer inside write its batch statistics."""
    nn, x = ours().nn, array((3, 4), jnp.float32)

    class Inner(nn.Module):  # type: ignore[name-defined, misc]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.BatchNorm(use_running_average=False)(nn.Dense(2)(x))

    class Outer(nn.Module):  # type: ignore[name-defined, misc]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.WeightNorm(Inner())(x)

    variables = Outer().init(jax.random.key(0), x)
    _, new = Outer().apply(variables, x, mutable=["batch_stats"])
    assert (new["batch_stats"]["Inner_0"]["BatchNorm_0"]["mean"] != 0).all()
