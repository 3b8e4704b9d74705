"""A cache is written where it stands: in every run, with the same bits, and no copy of it."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.quick import well
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import liftax as nn
from liftax.errors import RoleError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DEPTH, BATCH, LENGTH, WIDTH, HEADS = 6, 2, 64, 16, 2
KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (BATCH, 1, WIDTH))
FULL = jnp.ones((BATCH, LENGTH, WIDTH))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.MultiHeadDotProductAttention(HEADS, decode=True)(nn.LayerNorm()(x))
        return x + nn.Dense(WIDTH)(nn.gelu(x + y))


class Counts(nn.Module):
    """A cache that changes in other ways: whole, twice, under another key, not at all."""

    @nn.compact
    def __call__(self, x):
        def kept(name, *shape):
            return self.variable("cache", name, jnp.zeros, shape)

        whole, twice, still = kept("whole", 3), kept("twice", 4, 2), kept("still", 2)
        if not self.is_initializing():
            whole.value = jnp.flip(whole.value) + x.mean()
            twice.value = jax.lax.dynamic_update_slice(twice.value, x[:1, 0, :2], (1, 0))
            last = twice.value.mean()
            twice.value = jax.lax.dynamic_update_slice(twice.value, x[:1, 0, 2:4] + last, (2, 0))
        noise = jax.random.normal(self.make_rng("noise"), x.shape)
        seen = twice.value.mean() + whole.value.mean() + still.value.mean()
        return jnp.sin(nn.Dense(WIDTH)(x + noise + seen))


class Scanned(nn.Module):
    """The stack as Linen's users write it."""

    role: object

    @nn.compact
    def __call__(self, x):
        class Step(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return Layer(name="layer")(x), None

        deep = nn.scan(
            Step, variable_axes={"params": 0, "cache": self.role}, split_rngs={"params": True},
            length=DEPTH,
        )  # fmt: skip
        return deep()(x, None)[0]


SLICED = {"variable_axes": {"cache": 0}}
WAYS = {
    "scan": {},
    "scan, sliced": SLICED,
    "loop": {"run": "loop"},
    "scan of 2": {"run": "scan of 2"},
    "scan of 4": {"run": "scan of 4"},
    "unrolled": {"unroll": 2},
    "remat": {"remat": nn.Remat()},
}


def stack(layer=Layer, **options):
    return nn.Stack(layer(), depth=DEPTH, **options)


@functools.cache
def made(layer=Layer):
    return stack(layer).init({"params": KEY, "noise": KEY}, FULL)


@functools.cache
def by_slices(layer):
    """The step that the others are compared with."""
    return jax.jit(functools.partial(one, stack(layer, **SLICED)))


def one(model, variables, x=X):
    rngs = {"noise": jax.random.key(7)}
    y, new = model.apply(variables, x, rngs=rngs, mutable=["cache"])
    return y, {**variables, **new}


def traced(model, variables, x=X):
    """A step of decoding, its cache donated."""

    def step(params, cache, x):
        y, new = model.apply({"params": params, "cache": cache}, x, mutable=["cache"])
        return y, new["cache"]

    return jax.jit(step, donate_argnums=1).trace(variables["params"], variables["cache"], x)


def compiled(model, variables, x=X):
    return traced(model, variables, x).lower().compile()


def same_bits(a, b):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), a, b))


@pytest.mark.parametrize("layer", [Layer, Counts])
@pytest.mark.parametrize("way", WAYS)
def test_every_run_writes_the_same_cache(layer, way):
    variables = new = made(layer)
    in_place, sliced = jax.jit(functools.partial(one, stack(layer, **WAYS[way]))), by_slices(layer)
    for _ in range(3):
        (y, new), (same, as_sliced) = in_place(new), sliced(new)
        np.testing.assert_allclose(y, same, rtol=1e-4, atol=1e-5)
        for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(as_sliced), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        if way == "scan" and layer is Layer:
            assert same_bits((y, new), (same, as_sliced))
    assert jax.tree.structure(new) == jax.tree.structure(variables)


@pytest.mark.parametrize("way", ["scan", "scan of 2", "loop"])
def test_the_compiled_step_copies_no_cache(way):
    def figures(length):
        full = jnp.ones((BATCH, length, WIDTH))
        model = stack(**WAYS[way])
        variables = model.init(KEY, full)
        program = compiled(model, variables)
        shape = f"[{DEPTH},{BATCH},{length},{HEADS},{WIDTH // HEADS}]"
        copies = re.findall(r"= \w+(\[[\d,]*\])\S* copy\(", program.as_text())
        return program.memory_analysis().temp_size_in_bytes, copies.count(shape)

    (few, none), (many, nothing) = figures(64), figures(512)
    assert none == nothing == 0
    # What attention makes of a layer's keys grows, and not with the number of layers.
    cache_of_a_layer = 2 * BATCH * (512 - 64) * WIDTH * 4
    assert many - few < 2.5 * cache_of_a_layer * (DEPTH // 2 if way == "loop" else 1)


class Reader(nn.Module):
    """A layer whose attention reads the cache where it lies; its cache is most of what it has."""

    @nn.compact
    def __call__(self, x):
        attend = nn.MultiHeadDotProductAttention(
            HEADS, decode=True, attention_fn=nn.decode_attention
        )
        return x + nn.Dense(x.shape[-1])(attend(nn.LayerNorm()(x)))


@pytest.mark.parametrize("way", ["scan", "loop", "by layers"])
def test_decode_attention_reads_the_cache_once(way):
    depth, width = 3, 64
    options = {"run": "loop", "store": "layers"} if way == "by layers" else WAYS[way]
    model = nn.Stack(Reader(), depth=depth, **options)

    def program(length):
        full, x = (jax.ShapeDtypeStruct((BATCH, n, width), jnp.float32) for n in (length, 1))
        shapes = jax.eval_shape(model.init, KEY, full)
        return compiled(model, shapes, x), shapes

    (few, _), (many, shapes) = program(64), program(512)
    keys_of_a_layer = BATCH * 512 * width
    # Neither the keys of all layers, nor those of one in another order of their axes.
    for found in re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", many.as_text()):
        assert np.prod([int(n) for n in found.split(",") if n]) < keys_of_a_layer
    grown = many.memory_analysis().temp_size_in_bytes - few.memory_analysis().temp_size_in_bytes
    assert grown < keys_of_a_layer  # a quarter of its bytes, and scores grow
    # XLA counts the body of a loop once, whatever it iterates.
    turns = depth if way == "scan" else 1
    total = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))
    assert many.cost_analysis()["bytes accessed"] * turns < 1.5 * total


def test_a_loop_takes_the_weights_of_a_layer_when_its_turn_comes():
    """Of slices that are taken all at first, XLA makes a second copy of the model."""
    width = 128
    model = nn.Stack(Reader(), depth=DEPTH, run="loop")
    full, x = (jax.ShapeDtypeStruct((BATCH, n, width), jnp.float32) for n in (8, 1))
    shapes = jax.eval_shape(model.init, KEY, full)
    step = traced(model, shapes, x)
    assert str(step.jaxpr).count("optimization_barrier") == DEPTH
    with well():
        temporary = step.lower().compile().memory_analysis().temp_size_in_bytes
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(shapes["params"]))
    # Before 0.12, XLA for CPUs drops the barrier before it decides on an order.
    if jax.__version_info__ >= (0, 12):
        assert temporary < 1.5 * weights / DEPTH
    else:
        assert temporary < 1.1 * weights


def test_slices_would_copy_it():
    assert str(jax.make_jaxpr(lambda v: one(stack(), v))(made())).count("custom_jvp_call") == 1
    shape = f"[{DEPTH},{BATCH},{LENGTH},{HEADS},{WIDTH // HEADS}]"
    text = compiled(stack(**SLICED), made()).as_text()
    assert shape in re.findall(r"= \w+(\[[\d,]*\])\S* copy\(", text)


def test_the_body_is_traced_once():
    traces = []

    class Told(Layer):
        @nn.compact
        def __call__(self, x):
            traces.append(1)
            return super().__call__(x)

    model, variables = stack(Told), stack(Told).init(KEY, FULL)
    traces.clear()
    jax.eval_shape(lambda v: one(model, v), variables)
    assert len(traces) == 1


def test_a_word_of_scan():
    plain, placed = Scanned(0), Scanned(nn.InPlace(0))
    variables = plain.init(KEY, FULL)
    assert same_bits(variables, placed.init(KEY, FULL))
    expected, same = (jax.jit(lambda v, m=m: one(m, v))(variables) for m in (plain, placed))
    assert same_bits(expected, same)
    assert "dynamic_update_slice" in str(jax.make_jaxpr(lambda v: one(placed, v))(variables))


def test_a_derivative_is_that_of_the_slices():
    """A carry is stored once for each iteration: under a gradient the loop is over slices."""
    variables = made(Counts)

    def loss(model):
        def of(variables, x):
            y, new = one(model, variables, x)
            return (y**2).sum() + (new["cache"]["block_0"]["whole"] ** 2).sum()

        return of

    placed, sliced = stack(Counts), stack(Counts, **SLICED)
    found = jax.jit(jax.grad(loss(placed), (0, 1)))(variables, X)
    expected = jax.jit(jax.grad(loss(sliced), (0, 1)))(variables, X)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    program = jax.make_jaxpr(jax.grad(loss(placed)))(variables, X)
    whole = f"f32[{DEPTH},{DEPTH},"
    assert whole not in str(program)
    tangents = jax.jvp(lambda x: loss(placed)(variables, x), (X,), (X,))[1]
    np.testing.assert_allclose(
        tangents, jax.jvp(lambda x: loss(sliced)(variables, x), (X,), (X,))[1], rtol=1e-4
    )


def test_under_the_users_transformations():
    variables = made()
    xs = jnp.stack([X, 2 * X])
    mapped = jax.vmap(lambda x: one(stack(), variables, x)[0])(xs)
    np.testing.assert_allclose(mapped[1], one(stack(), variables, xs[1])[0], rtol=1e-5)

    def step(variables, x):
        y, variables = one(stack(), variables, x)
        return variables, y

    _, ys = jax.lax.scan(step, variables, xs)
    y, after = one(stack(), variables, xs[0])
    np.testing.assert_allclose(ys[0], y, rtol=1e-5)
    np.testing.assert_allclose(ys[1], one(stack(), after, xs[1])[0], rtol=1e-5)
    with jax.disable_jit():
        np.testing.assert_allclose(one(stack(), variables)[0], ys[0], rtol=1e-5)


def test_a_cache_that_is_read_alone_goes_in_by_slices():
    class Reads(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + self.variable("cache", "seen", jnp.ones, (1,)).value

    model = stack(Reads)
    variables = model.init(KEY, X)
    assert "custom_jvp" not in str(jax.make_jaxpr(model.apply)(variables, X))
    np.testing.assert_allclose(model.apply(variables, X), X + DEPTH, rtol=1e-5)


def test_a_map_has_no_iterations():
    with pytest.raises(RoleError, match=r"variable_axes\['cache'\] found InPlace\(axis=0\)"):
        nn.vmap(Layer, variable_axes={"params": None, "cache": nn.InPlace(0)})
    nn.vmap(Layer, variable_axes={"params": None, "cache": 0})


@pytest.mark.parametrize("way", ["scan", "loop"])
def test_a_cache_that_is_sharded_over_heads_stays_where_it_is(way):
    mesh = jax.make_mesh((HEADS,), ("heads",), axis_types=(AxisType.Auto,))

    def place(path, leaf):
        name = jax.tree_util.keystr(path)
        over_heads = {"cached": 3, "'query'": -2, "'key'": -2, "'value'": -2, "'out'": 1}
        spec = [None] * leaf.ndim
        for part, axis in over_heads.items():
            if part in name and "'out']['bias" not in name:
                spec[axis] = "heads"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    variables = jax.tree_util.tree_map_with_path(place, made())
    model = stack(**WAYS[way])
    program = compiled(model, variables)
    y, cache = program(variables["params"], jax.tree.map(jnp.copy, variables["cache"]), X)
    np.testing.assert_allclose(y, one(model, made())[0], rtol=1e-4, atol=1e-5)
    keys = cache["block_0"]["MultiHeadDotProductAttention_0"]["cached_key"]
    assert keys.sharding.spec[3] == "heads"
    mine = f"[{DEPTH},{BATCH},{LENGTH},{HEADS // 2},{WIDTH // HEADS}]"
    text = program.as_text()
    assert mine in text and "all-gather" not in text
    assert mine not in re.findall(r"= \w+(\[[\d,]*\])\S* copy\(", text)
