"""to_layers and to_stacked: on models, in every form, on every kind of leaf; what they refuse."""

import collections
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import liftax as nn
from liftax.errors import PartitioningUnspecifiedError, StackingError

X = jax.ShapeDtypeStruct((3, 4), "float32")
LAYERS = {nn.PARTITION_NAME: "layers"}


def same(one, other):
    """Two pytrees are equal in structure, shapes, dtypes and every bit."""
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.shape(a) == np.shape(b)
        if hasattr(a, "dtype"):
            assert a.dtype == b.dtype
        if not isinstance(a, jax.ShapeDtypeStruct):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def random_like(shapes, seed=0):
    """Numpy arrays with the shapes of an abstract tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: rng.integers(-99, 99, s.shape).astype(s.dtype),
        shapes,
    )


class Block(nn.Module):
    """Parameters in a box and without, statistics, a cache."""

    @nn.compact
    def __call__(self, x):
        self.variable("cache", "index", lambda: jnp.zeros((2,), jnp.int32))
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        return x + nn.BatchNorm(use_running_average=False)(nn.Dense(4, kernel_init=init)(x))


class Inner(nn.Module):
    """A stack in a block of a stack."""

    axis: int = 0

    @nn.compact
    def __call__(self, x):
        stack = nn.Stack(
            [Block(), Block()],
            repeats=2,
            after=[Block()],
            param_axis=self.axis,
            variable_axes={"batch_stats": 1},
            metadata_params={nn.PARTITION_NAME: "inner"},
            name="inner",
        )
        return stack(nn.Dense(4)(x))


def pattern(**more):
    return nn.Stack(
        [Block(), Block()],
        repeats=3,
        before=[Block()],
        after=[Block()] * 2,
        metadata_params=LAYERS,
        **more,
    )


def ensemble(**more):
    members = nn.vmap(
        nn.Stack,
        in_axes=None,
        axis_size=2,
        variable_axes={"params": 1, "batch_stats": -1, "cache": 0},
        split_rngs={"params": True},
        metadata_params={nn.PARTITION_NAME: "members"},
    )
    return members(Block(), depth=3, metadata_params=LAYERS, **more)


class Scanned(nn.Module):
    """A scan over a model that holds a stack, beside scans of a class and of a function."""

    @nn.compact
    def __call__(self, x):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Stack(nn.Dense(4), depth=2, param_axis=-1, name="stack")(x), None

        def twice(dense, x, _):
            return dense(x), None

        axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
        x, _ = nn.scan(Body, length=3, **axes)(name="outer")(x, None)
        x, _ = nn.scan(twice, length=2, **axes)(nn.Dense(4, name="dense"), x, None)
        return nn.Dense(2)(x)


MODELS = {
    "pattern": lambda **more: pattern(param_axis=1, variable_axes={"batch_stats": -1}, **more),
    "pattern last": lambda **more: pattern(param_axis=-1, **more),
    "nested": lambda **more: nn.Stack(Inner(), depth=2, metadata_params=LAYERS, **more),
    "nested, axes": lambda **more: nn.Stack(
        Inner(-1), depth=2, before=[Inner(1)], param_axis=1, metadata_params=LAYERS, **more
    ),
    "ensemble": lambda **more: ensemble(param_axis=-1, **more),
    "ensemble of first": lambda **more: ensemble(**more),
    "ensemble of stacks": lambda **more: ensemble(param_axis=1, **more),
}


def abstract(model):
    return jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones(X.shape)))


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    """Storage by layers is what to_layers makes of stacked storage, and back without loss."""
    model, by_layers = MODELS[name](), MODELS[name](store="layers")
    layout = nn.stackings_of(model, jax.random.key(0), X)
    variables = random_like(abstract(model))
    layers = nn.to_layers(variables, layout)
    same(nn.to_stacked(layers, layout), variables)
    same(nn.to_layers(layers, layout), layers)
    same(nn.to_stacked(variables, layout), variables)

    # As the model itself would store them: a stack inside keeps the form that it declares.
    own = nn.stackings_of(by_layers, jax.random.key(0), X)
    shapes = abstract(by_layers)
    same(jax.tree.map(jnp.shape, nn.to_layers(shapes, own)), jax.tree.map(jnp.shape, layers))
    stored = random_like(shapes, 1)
    same(nn.to_layers(nn.to_stacked(stored, layout), layout), nn.to_layers(stored, layout))


def test_a_stack_says_its_layout_itself():
    model = pattern()
    variables = random_like(abstract(model))
    layers = nn.to_layers(variables, model)
    assert sorted(layers["params"]) == [f"layers_{i}" for i in range(9)]
    kernel = variables["params"]["block_1"]["Dense_0"]["kernel"]
    same(
        layers["params"]["layers_4"]["Dense_0"]["kernel"],
        nn.Partitioned(kernel.value[1], ("in", "out")),
    )
    same(nn.to_stacked(layers, model.layout()), variables)
    same(layers, nn.to_layers(variables, nn.stack_layouts(model, jax.random.key(0), X)))


def test_scans_that_are_no_stack():
    model = Scanned()
    layout = nn.stackings_of(model, jax.random.key(0), X)
    variables = random_like(abstract(model))
    layers = nn.to_layers(variables, layout)
    same(nn.to_stacked(layers, layout), variables)
    kernel = variables["params"]["outer"]["stack"]["block_0"]["kernel"]
    assert kernel.shape == (3, 4, 4, 2)
    found = layers["params"]["outer"]["layers_1"]["stack"]["layers_0"]["kernel"]
    np.testing.assert_array_equal(found, kernel[1, ..., 0])
    assert sorted(layers["params"]["dense"]) == ["layers_0", "layers_1"]
    assert layers["params"]["Dense_0"] is variables["params"]["Dense_0"]


class Recurrent(nn.Module):
    """A scan in the block of a stack."""

    @nn.compact
    def __call__(self, x):
        class Body(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(4)(x), None

        scan = nn.scan(Body, variable_axes={"params": 1}, split_rngs={"params": True}, length=3)
        return scan(name="scan")(nn.Dense(4)(x), None)[0]


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scans_in_stacks_in_vmaps(axis):
    def around(store):
        members = nn.vmap(
            nn.Stack,
            in_axes=None,
            axis_size=5,
            variable_axes={"params": 1},
            split_rngs={"params": True},
        )
        return members(Recurrent(), depth=2, param_axis=axis, store=store)

    layout = nn.stackings_of(around("stacked"), jax.random.key(0), X)
    variables = random_like(abstract(around("stacked")))
    layers = nn.to_layers(variables, layout)
    same(nn.to_stacked(layers, layout), variables)
    found = layers["params"]["layers_1"]["scan"]["layers_2"]["Dense_0"]["kernel"]
    assert found.shape == (4, 5, 4)
    # Only the stack is taken apart where the model stores its layers one by one.
    outer = nn.stackings_of(around("layers"), jax.random.key(0), X)
    half = nn.to_layers(variables, outer)
    shapes = abstract(around("layers"))
    assert jax.tree.map(np.shape, half) == jax.tree.map(lambda s: s.shape, shapes)
    kernel = half["params"]["layers_1"]["scan"]["Dense_0"]["kernel"]
    assert kernel.shape == (4, 5, 3, 4)
    np.testing.assert_array_equal(kernel[:, :, 2], found)


def test_layout_of_a_scanned_model():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            mean = self.variable("batch_stats", "mean", lambda: jnp.zeros(4))
            shared = self.variable("shared", "table", lambda: jnp.zeros(4))
            return nn.Dense(4)(x) + mean.value + shared.value, None

    model = nn.scan(
        Body,
        variable_axes={"params": -1, "batch_stats": 0},
        variable_broadcast="shared",
        split_rngs={"params": True},
        length=3,
    )()
    layout = nn.layout(model, jax.random.key(0), X, None)
    variables = random_like(
        jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.ones(X.shape), None))
    )
    layers = nn.to_layers(variables, layout)
    assert layers["params"]["layers_2"]["Dense_0"]["kernel"].shape == (4, 4)
    assert layers["batch_stats"]["layers_2"]["mean"].shape == (4,)
    assert layers["shared"] is variables["shared"]
    same(nn.to_stacked(layers, layout), variables)
    # The state of an optimizer is found by the names under the root.
    state = optax.adam(0.1).init(variables["params"])
    same(nn.to_layers(state, layout), optax.adam(0.1).init(layers["params"]))


def test_scan_in_vmap():
    """The axis of the ensemble lies where it would lie around layers that are written out."""

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dense(4)(x), None

    def around(module):
        return nn.vmap(
            module,
            in_axes=None,
            axis_size=2,
            variable_axes={"params": 1},
            split_rngs={"params": True},
        )

    class Unrolled(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            for i in range(3):
                x, _ = Body(name=f"layers_{i}")(x, None)
            return x, None

    scan = nn.scan(Body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    shapes = [
        jax.eval_shape(lambda m=m: around(m)().init(jax.random.key(0), jnp.ones(X.shape), None))
        for m in (scan, Unrolled)
    ]
    layout = nn.layout(around(scan)(), jax.random.key(0), X, None)
    same(nn.to_layers(shapes[0], layout), shapes[1])
    same(nn.to_stacked(shapes[1], layout), shapes[0])


def test_scan_of_scan_at_one_path():
    class Body(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(4)(x)

    model = nn.remat_scan(Body, lengths=(2, 3))()
    layout = nn.layout(model, jax.random.key(0), X)
    variables = random_like(abstract(model))
    layers = nn.to_layers(variables, layout)
    kernel = variables["params"]["Dense_0"]["kernel"]
    assert kernel.shape == (2, 3, 4, 4)
    found = layers["params"]["layers_1"]["layers_2"]["Dense_0"]["kernel"]
    np.testing.assert_array_equal(found, kernel[1, 2])
    same(nn.to_stacked(layers, layout), variables)

    by_hand = nn.Stacking.of("", 2, inside=[nn.Stacking.of("", 3)], keys=["Dense_0"])
    same(nn.to_layers(variables, by_hand), layers)


# -- leaves ------------------------------------------------------------------------------------

BLOCKS = nn.Stacking.of("blocks", 3, axis=1)


def tree(leaf):
    return {"params": {"blocks": {"a": leaf}, "head": {"b": np.ones(2)}}}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "bool", "c8"])
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_dtypes(dtype, kind):
    array = np.arange(12).reshape(2, 3, 2).astype(jnp.dtype(dtype))
    found = nn.to_layers(tree(kind(array)), BLOCKS)["params"]["blocks"]
    np.testing.assert_array_equal(np.asarray(found["layers_2"]["a"]), array[:, 2])
    assert found["layers_2"]["a"].dtype == array.dtype
    back = nn.to_stacked({"params": {"blocks": found}}, BLOCKS)["params"]["blocks"]["a"]
    assert isinstance(back, type(kind(array)))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(np.asarray(back), array)


def test_bits_survive():
    """Not-a-numbers keep their payload, zeros their sign."""
    bits = np.array([0x7FC00001, 0xFFC12345, 0x80000000, 1], np.uint32).view(np.float32)
    for kind in (np.asarray, jnp.asarray):
        layout = nn.Stacking.of("blocks", 4)
        layers = nn.to_layers(tree(kind(bits)), layout)
        back = nn.to_stacked(layers, layout)["params"]["blocks"]["a"]
        np.testing.assert_array_equal(np.asarray(back).view(np.uint32), bits.view(np.uint32))


def test_vectors_become_arrays_without_axes():
    layers = nn.to_layers(tree(np.arange(3.0)), nn.Stacking.of("blocks", 3))
    scalar = layers["params"]["blocks"]["layers_1"]["a"]
    assert isinstance(scalar, np.ndarray)
    assert scalar.shape == ()
    back = nn.to_stacked(layers, nn.Stacking.of("blocks", 3))
    np.testing.assert_array_equal(back["params"]["blocks"]["a"], np.arange(3.0))


def test_numpy_slices_are_views():
    array = np.zeros((2, 3, 2))
    layers = nn.to_layers(tree(array), BLOCKS)["params"]["blocks"]
    assert all(np.shares_memory(layer["a"], array) for layer in layers.values())


def test_memory_maps_are_not_read(tmp_path):
    path = tmp_path / "a.npy"
    array = np.lib.format.open_memmap(path, "w+", np.float32, (3, 1 << 20))
    array[:] = np.arange(3)[:, None]
    array.flush()
    mapped = np.load(path, mmap_mode="r")
    layout = nn.Stacking.of("blocks", 3)
    tracemalloc.start()
    layers = nn.to_layers(tree(mapped), layout)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    assert isinstance(layers["params"]["blocks"]["layers_2"]["a"], np.memmap)
    tracemalloc.reset_peak()
    stacked = nn.to_stacked(layers, layout)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < mapped.nbytes + (1 << 20)  # the result, and no second copy
    assert stacked["params"]["blocks"]["a"][2, 7] == 2


def test_shapes_alone():
    mesh = jax.make_mesh((2, 2), ("x", "y"))
    sharding = NamedSharding(mesh, PartitionSpec("x", None, "y"))
    shape = jax.ShapeDtypeStruct((2, 3, 4), "bfloat16", sharding=sharding)
    layers = nn.to_layers(tree(shape), BLOCKS)
    found = layers["params"]["blocks"]["layers_0"]["a"]
    assert found.shape == (2, 4)
    assert found.sharding.spec == PartitionSpec("x", "y")
    back = nn.to_stacked(layers, BLOCKS)["params"]["blocks"]["a"]
    assert back == shape
    assert back.sharding.spec == sharding.spec


def test_arrays_keep_their_devices():
    mesh = jax.make_mesh((2,), ("x",))
    array = jax.device_put(
        jnp.arange(24.0).reshape(2, 3, 4), NamedSharding(mesh, PartitionSpec("x"))
    )
    layers = nn.to_layers(tree(array), BLOCKS)
    found = layers["params"]["blocks"]["layers_1"]["a"]
    assert found.sharding.device_set == array.sharding.device_set
    back = nn.to_stacked(layers, BLOCKS)["params"]["blocks"]["a"]
    assert back.sharding.device_set == array.sharding.device_set
    np.testing.assert_array_equal(back, array)


def test_keys_and_labels_and_traced_arrays():
    keys = jax.random.split(jax.random.key(0), 3)
    layout = nn.Stacking.of("blocks", 3)
    variables = {"params": {"blocks": {"keys": keys, "label": "decay", "on": True, "no": None}}}
    layers = nn.to_layers(variables, layout)["params"]["blocks"]
    assert layers["layers_1"]["label"] == "decay"
    assert layers["layers_1"]["keys"].shape == ()
    back = nn.to_stacked({"params": {"blocks": layers}}, layout)
    assert back["params"]["blocks"]["on"] is True
    same(jax.random.key_data(back["params"]["blocks"]["keys"]), jax.random.key_data(keys))

    def loss(array):
        layers = nn.to_layers(tree(array), BLOCKS)["params"]["blocks"]
        return layers["layers_0"]["a"].sum() + 2 * layers["layers_2"]["a"].sum()

    grad = jax.jit(jax.grad(loss))(jnp.ones((1, 3, 2)))
    np.testing.assert_array_equal(grad[0, :, 0], [1, 0, 2])


def test_a_box_in_a_box():
    """The lifts tell the outermost box of a new axis, and so do conversions, there and back."""
    inner = nn.Partitioned(jnp.zeros((2, 3)), ("in", None))
    variables = tree(nn.Partitioned(inner, ("layers", "out")))
    named = nn.Stacking.of("blocks", 2, metadata_params={nn.PARTITION_NAME: "layers"})
    layers = nn.to_layers(variables, named)
    found = layers["params"]["blocks"]["layers_1"]["a"]
    assert (found.names, found.value.names, found.value.value.shape) == (
        ("out",),
        ("in", None),
        (3,),
    )
    same(nn.to_stacked(layers, named), variables)


@pytest.mark.parametrize("axis", [0, 1])
def test_many_layers(axis):
    array = jnp.arange(3 * 200.0).reshape((200, 3) if axis == 0 else (3, 200))
    layout = nn.Stacking.of("blocks", 200, axis=axis)
    layers = nn.to_layers(tree(array), layout)
    same(nn.to_stacked(layers, layout)["params"]["blocks"]["a"], array)


def test_donate():
    array, twice = jnp.zeros((2, 3)), jnp.zeros((2, 3))
    variables = {"params": {"blocks": {"a": array, "b": twice}}, "copy": twice}
    layers = nn.to_layers(variables, BLOCKS, donate=True)
    assert array.is_deleted()
    assert not twice.is_deleted()
    first = layers["params"]["blocks"]["layers_0"]["a"]
    nn.to_stacked(layers, BLOCKS, donate=True)
    assert first.is_deleted()


# -- trees like the parameters -----------------------------------------------------------------

Train = collections.namedtuple("Train", "step params batch_stats opt_state")

OPTIMIZERS = {
    "adam": optax.adam(0.1),
    "chain": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1, weight_decay=0.1)),
    "momentum": optax.sgd(0.1, momentum=0.9),
    "masked": optax.masked(optax.adam(0.1), lambda p: jax.tree.map(lambda a: np.ndim(a) != 2, p)),
    "partition": optax.partition(
        {"a": optax.adam(0.1), "b": optax.sgd(0.1, momentum=0.5)},
        lambda p: {name: "b" if name == "head" else "a" for name in p},
    ),
    "injected": optax.inject_hyperparams(optax.adam)(0.1),
    "steps": optax.MultiSteps(optax.adam(0.1), 2),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_states_of_optimizers(name):
    params = {
        "blocks": {"kernel": np.ones((2, 3, 4), np.float32), "bias": np.ones((2, 3), np.float32)},
        "head": {"bias": np.ones(4, np.float32)},
    }
    optimizer = OPTIMIZERS[name]
    state = optimizer.init(params)
    layers = nn.to_layers(state, BLOCKS)
    same(nn.to_stacked(layers, BLOCKS), state)
    if name != "masked":  # this mask would choose others in layers with an axis less
        same(layers, optimizer.init(nn.to_layers(params, BLOCKS, collection="params")))


def test_train_state():
    params = {"blocks": {"w": np.ones((2, 3))}}
    stats = {"blocks": {"mean": np.ones((3, 2))}}
    layout = nn.Stacking.of("blocks", 3, axis={"params": 1, "batch_stats": 0})
    state = Train(7, params, stats, optax.adam(0.1).init(params))
    layers = nn.to_layers(state, layout)
    assert layers.step == 7
    assert layers.batch_stats["blocks"]["layers_0"]["mean"].shape == (2,)
    assert layers.opt_state[0].mu["blocks"]["layers_0"]["w"].shape == (2,)
    same(nn.to_stacked(layers, layout), state)


def test_collections_are_known_by_their_names():
    layout = nn.Stacking.of("blocks", 2, axis={"params": 1, True: 0})
    params = {"blocks": {"w": np.ones((3, 2))}}
    variables = {"params": params, "cache": {"blocks": {"k": np.ones((2, 5))}}, "ema": params}
    layers = nn.to_layers(variables, layout)
    assert layers["cache"]["blocks"]["layers_0"]["k"].shape == (5,)
    assert layers["ema"]["blocks"]["layers_0"]["w"].shape == (3,)  # as it is like the parameters
    with pytest.raises(StackingError, match="is 'cache' a collection, or is it like the param"):
        nn.to_layers({"cache": variables["cache"]}, layout)
    alone = nn.to_layers({"cache": variables["cache"]}, layout, collection="cache")
    same(alone["cache"], layers["cache"])


# -- what is refused ---------------------------------------------------------------------------

ONE = nn.Stacking.of("blocks", 2)


def stacked(**leaves):
    return {"params": {"blocks": leaves}}


def layered(*layers):
    return {"params": {"blocks": {f"layers_{i}": layer for i, layer in enumerate(layers)}}}


A, B = np.zeros(3), np.zeros(4)
BOX = nn.Partitioned(np.zeros((2, 3)), ("other", None))


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"params": {"other": {"a": A}}}, "no stack found: expected a subtree at blocks or blocks"),
        (
            stacked(a=np.zeros((3, 2))),
            r"^params/blocks/a is float64\[3,2\]: size 3 along axis 0, w",
        ),
        (
            stacked(a=np.zeros((2, 2)), b=np.zeros(())),
            r"params/blocks/b has 0 axes and so no layer",
        ),
        (stacked(a={"x": (np.zeros(1),)}), "params/blocks/a/x/0 is float64"),
        (
            {"params": {"blocks": {"a": np.zeros((2, 3)), "layers_0": {}}}},
            "is called as a layer of",
        ),
        (stacked(a=BOX), "^params/blocks/a: a lift adds or removes an axis"),
        (
            layered({"a": A}, {"a": A}, {"a": A}),
            "params/blocks/layers_2 is one more than the layou",
        ),
    ],
)
def test_refused_by_to_layers(variables, message):
    with pytest.raises((StackingError, PartitioningUnspecifiedError), match=message) as caught:
        nn.to_layers(variables, ONE)
    assert str(caught.value).count("\n") < 12


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (layered({"a": A}), r"params/blocks/layers_1 is missing, but there is params/blocks/laye"),
        (
            layered({"a": A}, {"a": B}),
            r"^params/blocks/layers_1/a is float64\[4\], but .*64\[3\]; ",
        ),
        (layered({"a": A}, {"a": A.astype("f4")}), r"layers_1/a is float32\[3\], but"),
        (layered({"a": A}, {"b": A}), "blocks/layers_1/a is missing, but there is .*layers_0/a"),
        (layered({"a": A}, {"a": A, "b": A}), "layers_0/b is missing, but there is .*layers_1/b"),
        (layered({"a": A}, {"a": {"c": A}}), "layers_1/a is a mapping of variables, but"),
        (layered({"a": {"c": A}}, {"a": A}), r"layers_1/a is float64\[3\], but .*a mapping of"),
        (layered({"a": A}, {"a": None}), "layers_1/a is None, but"),
        (layered({"a": "x"}, {"a": "y"}), "layers_1/a is 'y', but params/blocks/layers_0/a is 'x'"),
        (layered({"a": A}, {"a": jax.ShapeDtypeStruct((3,), "f8")}), "and others are only descri"),
        (
            layered(
                {"a": nn.Partitioned(A, ("x",))},
                {"a": nn.Partitioned(A, ("y",))},
            ),
            r"layers_1/a is Partitioned with the names \('y',\), but",
        ),
        (stacked(a=np.zeros((3, 2))), "size 3 along axis 0, where the layout has 2 layers"),
    ],
)
def test_refused_by_to_stacked(variables, message):
    with pytest.raises(StackingError, match=message):
        nn.to_stacked(variables, ONE)


def test_a_smaller_layout_is_refused():
    small = nn.Stack([nn.Dense(4)] * 2, repeats=2, after=[nn.Dense(4)])
    large = nn.Stack([nn.Dense(4)] * 2, repeats=3, after=[nn.Dense(4)])
    variables = random_like(abstract(large))
    with pytest.raises(StackingError, match=r"block_0/bias is float32\[3,4\]: size 3 along axis 0"):
        nn.to_layers(variables, small)
    layers = nn.to_layers(variables, large)
    with pytest.raises(StackingError, match="params/layers_5 is one more than the layout has"):
        nn.to_stacked(layers, small)


def test_state_that_has_no_layers_of_its_own():
    """Adafactor keeps rows and columns of some arrays, and placeholders for the others."""
    params = {"blocks": {"w": np.ones((2, 130, 140), np.float32)}}
    state = optax.adafactor(0.1, min_dim_size_to_factor=128).init(params)
    with pytest.raises(StackingError, match=r"^0/v_col/blocks/w is float32\[2,140\], which"):
        nn.to_layers(state, ONE)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (7, "found int"),
        ({}, "found dict"),
        ([], "no stacked layers"),
        ([ONE, nn.Stacking.of("blocks", 3)], "the stack at blocks twice"),
    ],
)
def test_bad_layouts(layout, message):
    with pytest.raises(StackingError, match=message):
        nn.to_layers(stacked(a=np.zeros((2, 3))), layout)


def test_a_model_is_no_layout():
    with pytest.raises(StackingError, match=r"found Dense; of a model, nn.stackings_of\(model"):
        nn.to_layers({}, nn.Dense(2))


def test_bad_descriptions():
    with pytest.raises(StackingError, match="depth=0"):
        nn.Stacking.of("a", 0)
    with pytest.raises(StackingError, match="lacks the {}"):
        nn.Stacking.of("a", 2, names="layer")
    with pytest.raises(StackingError, match="only knows 'params': give it an axis with axes="):
        nn.to_layers(
            {"params": {"blocks": {}}, "cache": {"blocks": {"a": A}}},
            nn.Stacking.of("blocks", 2, axis={"params": 0}),
            collection="cache",
        )


def test_names_of_layers_that_the_block_uses_itself():
    """A block may have a list called layers: its entries are no layers of the scan."""

    class Two(nn.Module):
        def setup(self):
            self.layers = [nn.Dense(4), nn.Dense(4)]

        def __call__(self, x, _):
            return self.layers[1](self.layers[0](x)), None

    class Body(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return Two(name="two")(x, None)

    axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
    good = nn.scan(Body, **axes)()
    layout = nn.layout(good, jax.random.key(0), X, None)
    layers = nn.to_layers(
        jax.eval_shape(lambda: good.init(jax.random.key(0), jnp.ones(X.shape), None)), layout
    )
    assert sorted(layers["params"]["layers_0"]["two"]) == ["layers_0", "layers_1"]

    clash = nn.scan(Two, **axes)()
    layout = nn.layout(clash, jax.random.key(0), X, None)
    with pytest.raises(StackingError, match="has variables called 'layers_0', as its layers wou"):
        nn.to_layers({"params": {}}, layout)


def test_descriptions_are_plain_data():
    import json

    model = MODELS["nested, axes"]()
    layout = nn.stackings_of(model, jax.random.key(0), X)
    plain = json.loads(json.dumps([s.to_dict(["params", "batch_stats"]) for s in layout]))
    read = [nn.Stacking.from_dict(s) for s in plain]
    variables = random_like(abstract(model))
    same(nn.to_layers(variables, read), nn.to_layers(variables, layout))
    for bad in ({}, None, {**plain[0], "axes": {"params": "0"}}, {**plain[0], "path": "blocks"}):
        with pytest.raises(StackingError, match="not the description of a stack"):
            nn.Stacking.from_dict(bad)
