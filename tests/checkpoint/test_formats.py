"""Checkpoints: Linen's and Orbax's read into either form, safetensors there and back."""

import json
import os
import tracemalloc

import flax.linen
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax.training import train_state
from hypothesis import given, settings
from hypothesis import strategies as st

import liftax as nn
from liftax.checkpoint.files import open_checkpoint
from liftax.checkpoint.tensors import CODE_OF
from liftax.errors import CheckpointError, StackingError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = np.ones((2, 4), np.float32)


def same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert np.shape(a) == np.shape(b)
        assert getattr(a, "dtype", type(a)) == getattr(b, "dtype", type(b))
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


# -- Linen's checkpoints -----------------------------------------------------------------------


class LinenBlock(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x, _):
        return x + flax.linen.Dense(4)(flax.linen.relu(x)), None


class LinenScanned(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        blocks = flax.linen.scan(
            LinenBlock, variable_axes={"params": 1}, split_rngs={"params": True}, length=3
        )
        x, _ = blocks(name="blocks")(x, None)
        return flax.linen.Dense(2, name="head")(x)


class LinenUnrolled(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        for i in range(3):
            x, _ = LinenBlock(name=f"block_{i}")(x, None)
        return flax.linen.Dense(2, name="head")(x)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(4)(nn.relu(x))


class Model(nn.Module):
    store: str = "stacked"

    @nn.compact
    def __call__(self, x):
        x = nn.Stack(Block(), depth=3, name="stack", store=self.store)(x)
        return nn.Dense(2, name="head")(x)


SCANNED = nn.Stacking.of("blocks", 3, axis=1, names="/stack/layers_{}")


def as_saved(kind, tree, folder):
    """A checkpoint on disk."""
    path = folder / f"checkpoint.{kind}"
    if kind == "msgpack":
        path.write_bytes(flax.serialization.to_bytes(tree))
    else:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), flax.serialization.to_state_dict(tree))
    return path


@pytest.mark.filterwarnings("ignore")  # of Orbax while it writes
@pytest.mark.parametrize("kind", ["msgpack", "orbax"])
@pytest.mark.parametrize("form", ["stacked", "layers"])
def test_a_linen_model_goes_on_in_a_stack(kind, form, tmp_path):
    """A scanned model's checkpoint, in a Stack of either storage, computes the same."""
    linen = LinenScanned()
    variables = linen.init(jax.random.key(0), X)
    path = as_saved(kind, variables, tmp_path)
    model = Model(store=form)
    layout = nn.stackings_of(Model(), jax.random.key(0), X)
    found = nn.load_checkpoint(
        path,
        source_layout=SCANNED,
        layout=layout,
        form=form,
        like=jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(X))),
    )
    np.testing.assert_allclose(model.apply(found, X), linen.apply(variables, X), rtol=1e-6)


def test_an_unrolled_linen_model_too():
    linen = LinenUnrolled()
    variables = linen.init(jax.random.key(0), X)
    data = flax.serialization.to_bytes(variables)
    blocks = nn.Stacking.of("stack/block_0", 3, names="/block_{}")
    found = nn.load_checkpoint(data, layout=blocks, form="stacked")
    np.testing.assert_allclose(Model().apply(found, X), linen.apply(variables, X), rtol=1e-6)
    # And back into the model that wrote it.
    again = nn.to_layers(found, blocks)
    same(again, jax.tree.map(np.asarray, variables))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["msgpack", "orbax"])
def test_train_states(kind, tmp_path):
    """The state of the optimizer comes along, into the same optimizer of the other form."""
    params = LinenScanned().init(jax.random.key(0), X)["params"]
    state = train_state.TrainState.create(apply_fn=None, params=params, tx=optax.adamw(1e-3))
    state = state.apply_gradients(grads=jax.tree.map(jnp.ones_like, params))
    path = as_saved(kind, state, tmp_path)
    blocks = nn.Stacking.of("blocks", 3, axis=1)

    found = nn.load_checkpoint(path, layout=blocks, form="layers")
    assert found["step"] == 1
    layers = nn.to_layers(params, blocks)
    wanted = optax.adamw(1e-3).init(layers)
    opt_state = nn.load_checkpoint(
        path, layout=blocks, form="layers", like={**found, "opt_state": wanted}
    )["opt_state"]
    same(opt_state, jax.tree.map(np.asarray, nn.to_layers(state.opt_state, blocks)))


# What msgpack checkpoints are made of: dicts of arrays, numbers, strings and None.
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=40),
    st.complex_numbers(allow_nan=False, allow_infinity=False),
    st.sampled_from(sorted(d.name for d in CODE_OF)).flatmap(
        lambda name: st.lists(st.integers(0, 3), max_size=3).map(
            lambda shape: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(name)
        )
    ),
    st.sampled_from([np.float32(1.5), np.int64(-3), np.complex128(2j), np.bool_(True)]),
    st.sampled_from([255, 256, 65_535, 65_536]).map(lambda size: np.arange(size, dtype=np.uint8)),
)
TREES = st.dictionaries(
    st.text(max_size=40),
    st.recursive(LEAVES, lambda inner: st.dictionaries(st.text(max_size=4), inner), max_leaves=20),
    max_size=20,
)


@given(TREES)
@settings(max_examples=80)
def test_msgpack_is_read_as_flax_writes_it(tree):
    data = flax.serialization.msgpack_serialize(tree)
    same(nn.load_checkpoint(data), tree)


def test_arrays_in_chunks(monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 64)
    array = np.arange(300.0).reshape(3, 100)
    data = flax.serialization.to_bytes({"params": {"blocks": {"w": array}, "v": array[0]}})
    assert b"__msgpack_chunked_array__" in data
    same(nn.load_checkpoint(data)["params"]["blocks"]["w"], array)
    blocks = nn.Stacking.of("blocks", 3)
    found = nn.load_checkpoint(data, layout=blocks, form="layers")
    same(found["params"]["blocks"]["layers_2"]["w"], array[2])


def test_boxes_of_linen():
    class Boxed(flax.linen.Module):
        @flax.linen.compact
        def __call__(self, x):
            init = flax.linen.with_partitioning(flax.linen.initializers.ones_init(), ("a", "b"))
            return flax.linen.Dense(3, kernel_init=init)(x)

    class Ours(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.ones_init(), ("a", "b"))
            return nn.Dense(3, kernel_init=init)(x)

    variables = Boxed().init(jax.random.key(0), X)
    data = flax.serialization.to_bytes(variables)
    ours = Ours().init(jax.random.key(0), X)
    same(nn.load_checkpoint(data, like=ours), jax.tree.map(np.asarray, ours))
    same(nn.load_checkpoint(data, like=nn.unbox(ours)), jax.tree.map(np.asarray, nn.unbox(ours)))


# -- safetensors -------------------------------------------------------------------------------

AT = nn.Stack([nn.Dense(3)] * 2, repeats=2, after=[nn.Dense(3)], param_axis=1)


def variables(dtype="float32"):
    rng = np.random.default_rng(0)
    layers = {
        f"layers_{i}": {"w": rng.normal(size=(3, 3)).astype(dtype), "b": np.full(3, i, dtype)}
        for i in range(5)
    }
    return nn.to_stacked({"params": {**layers, "head": np.ones(2, dtype)}}, AT)


@pytest.mark.parametrize("form", ["stacked", "layers"])
def test_there_and_back(form, tmp_path):
    path = tmp_path / "a.safetensors"
    tree = variables()
    layers = nn.to_layers(tree, AT)
    nn.save_checkpoint(path, tree if form == "stacked" else layers, layout=AT)
    same(nn.load_checkpoint(path), tree if form == "stacked" else layers)
    same(nn.load_checkpoint(path, form="stacked", verify=True), tree)
    same(nn.load_checkpoint(path, form="layers"), layers)
    assert os.listdir(tmp_path) == ["a.safetensors"]
    # Other programs read it too.
    arrays = safetensors.numpy.load_file(path)
    assert sorted(arrays) == sorted(
        jax.tree_util.keystr(keys, simple=True, separator="/")
        for keys, _ in jax.tree.leaves_with_path(tree if form == "stacked" else layers)
    )


def test_another_axis_on_the_way_in(tmp_path):
    path = tmp_path / "a.safetensors"
    nn.save_checkpoint(path, variables(), layout=AT)
    first = nn.Stack([nn.Dense(3)] * 2, repeats=2, after=[nn.Dense(3)])
    found = nn.load_checkpoint(path, layout=first, form="stacked")
    same(found, nn.to_stacked(nn.to_layers(variables(), AT), first))


@pytest.mark.parametrize("dtype", sorted(d.name for d in CODE_OF))
def test_dtypes(dtype, tmp_path):
    path = tmp_path / "a.safetensors"
    tree = {
        "odd": np.arange(3).astype(dtype),
        "none": np.zeros((0, 2), dtype),
        "one": np.ones((), dtype),
        "byte": np.ones(1, np.int8),
    }
    nn.save_checkpoint(path, {**tree, "jax": jnp.asarray(tree["odd"])})
    found = nn.load_checkpoint(path, verify=True)
    same({name: found[name] for name in tree}, tree)
    assert found["odd"].flags.aligned


def test_other_byte_orders_and_strides(tmp_path):
    path = tmp_path / "a.safetensors"
    array = np.arange(12.0).reshape(3, 4)
    nn.save_checkpoint(path, {"big": array.astype(">f8"), "turned": array.T, "step": array[:, ::2]})
    same(
        nn.load_checkpoint(path, verify=True),
        {"big": array, "turned": array.T, "step": array[:, ::2]},
    )


def test_train_state_with_everything_in_it(tmp_path):
    path = tmp_path / "a.safetensors"
    blocks = nn.Stacking.of("blocks", 2, metadata_params={nn.PARTITION_NAME: "layers"})
    params = {
        "blocks": {"w": nn.Partitioned(jnp.ones((2, 3)), ("layers", None)), "a/b%2F": np.ones(2)}
    }
    state = {
        "params": params,
        "opt_state": optax.adamw(1e-3).init(params),
        "step": 3,
        "rate": 0.5,
        "run": "first",
        "none": None,
        "on": True,
        "z": 1 + 2j,
        "list": [np.ones(1), {}],
    }
    nn.save_checkpoint(path, state, layout=blocks)
    found = nn.load_checkpoint(path, like=state)
    assert jax.tree.structure(found) == jax.tree.structure(state)
    same(found, jax.tree.map(lambda a: np.asarray(a) if hasattr(a, "shape") else a, state))
    layers = nn.load_checkpoint(path, form="layers", like=nn.to_layers(state, blocks))
    assert layers["params"]["blocks"]["layers_1"]["w"].names == (None,)
    assert nn.load_checkpoint(path)["list"] == {"0": np.ones(1), "1": {}}


def test_arrays_are_mapped_and_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    blocks = nn.Stacking.of("blocks", 4)
    array = np.ones((4, 1 << 19), np.float32)
    nn.save_checkpoint(path, {"params": {"blocks": {"w": array}}}, layout=blocks)
    size = array.nbytes
    tracemalloc.start()
    found = nn.load_checkpoint(path, form="layers")
    assert tracemalloc.get_traced_memory()[1] < size / 4
    tracemalloc.reset_peak()
    last = found["params"]["blocks"]["layers_3"]["w"]
    assert last.base is not None
    assert not last.flags.writeable
    # Another axis: a copy of one array, and no more.
    other = nn.Stacking.of("blocks", 4, axis=1)
    found = nn.load_checkpoint(path, layout=other, form="stacked")
    assert tracemalloc.get_traced_memory()[1] < 1.5 * size
    tracemalloc.reset_peak()
    nn.save_checkpoint(path, found, layout=other)
    assert tracemalloc.get_traced_memory()[1] < 2.5 * size  # what was there, and a piece of it
    tracemalloc.stop()


def test_the_layout_and_a_checksum_for_each_layer(tmp_path):
    path = tmp_path / "a.safetensors"
    nn.save_checkpoint(path, variables(), layout=AT)
    with safetensors.safe_open(path, "numpy") as file:
        about = json.loads(file.metadata()["liftax"])
    assert list(about["layers"]) == [*(f"layers_{i}" for i in range(5)), "outside of any stack"]
    one = about["layers"]
    nn.save_checkpoint(path, nn.to_layers(variables(), AT), layout=AT)
    with safetensors.safe_open(path, "numpy") as file:
        again = json.loads(file.metadata()["liftax"])
    assert again["layers"] == one  # of the layers, not of how they are stored
    assert again["variables"] == about["variables"]
    changed = variables()
    changed["params"]["block_1"]["b"][0, 1] += 1
    nn.save_checkpoint(path, changed, layout=AT)
    with safetensors.safe_open(path, "numpy") as file:
        other = json.loads(file.metadata()["liftax"])["layers"]
    assert [name for name in one if one[name] != other[name]] == ["layers_3"]


def test_what_safetensors_files_of_others_hold(tmp_path):
    path = tmp_path / "a.safetensors"
    arrays = {"model.layers.0.w": np.ones(2), "top": np.zeros((2, 2))}
    safetensors.numpy.save_file(arrays, path, {"format": "pt"})
    assert sorted(nn.load_checkpoint(path)) == sorted(arrays)
    assert open_checkpoint(path).metadata == {"format": "pt"}


@pytest.mark.parametrize(
    ("like", "message"),
    [
        ({"a": np.ones(2), "b": {"c": np.ones(3)}, "d": np.ones(1)}, "^d is missing from the che"),
        ({"a": np.ones(2)}, "^b/c is in the checkpoint, but not in like="),
        ({"a": np.ones(3), "b": {"c": np.ones(3)}}, r"^a is float64\[2\] in the .* float64\[3\]"),
        ({"a": np.ones(2), "b": {"c": np.ones(3, "f4")}}, "^b/c is float64.* expected float32"),
        ({"a": np.ones(2), "b": np.ones(3)}, "^b is a mapping in the checkpoint"),
        ({"a": {"x": np.ones(2)}, "b": {"c": np.ones(3)}}, r"^a is float64\[2\], expected 1 vari"),
    ],
)
def test_like_names_the_first_that_disagrees(like, message, tmp_path):
    path = tmp_path / "a.safetensors"
    nn.save_checkpoint(path, {"a": np.ones(2), "b": {"c": np.ones(3)}})
    with pytest.raises(CheckpointError, match=message):
        nn.load_checkpoint(path, like=like)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"a": {"b": np.array(["x"])}}, "a/b is <U1, which safetensors files cannot hold"),
        ({"a": np.ones(2, np.complex128)}, "^a is complex128"),
        ({"a": object()}, "^a is object: neither an array nor"),
        ({"a": jax.ShapeDtypeStruct((2,), "f4")}, "^a is only a shape"),
        ({"a": jax.random.key(0)}, "^a holds random keys: save jax.random.key_data"),
        ({3: np.ones(2)}, "the key 3 of a mapping is int"),
        ({"a": np.array([object()])}, "^a is object, which"),
    ],
)
def test_what_cannot_be_saved(tree, message, tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(CheckpointError, match=message):
        nn.save_checkpoint(path, tree)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_saving_while_traced(tmp_path):
    with pytest.raises(CheckpointError, match="^a is traced: save outside of jit"):
        jax.jit(lambda a: nn.save_checkpoint(tmp_path / "a.safetensors", {"a": a}))(1.0)


def test_arguments_of_load():
    data = flax.serialization.to_bytes({"params": {"blocks": {"w": np.ones((2, 3))}}})
    blocks = nn.Stacking.of("blocks", 2)
    with pytest.raises(CheckpointError, match="form='rows' is none of"):
        nn.load_checkpoint(data, form="rows")
    with pytest.raises(CheckpointError, match="does not say it: give layout="):
        nn.load_checkpoint(data, form="layers")
    with pytest.raises(CheckpointError, match="a layout is for form="):
        nn.load_checkpoint(data, layout=blocks)
    with pytest.raises(StackingError, match=r"^params/blocks/w is float64\[2,3\]: size 2 along"):
        nn.load_checkpoint(data, layout=nn.Stacking.of("blocks", 3), form="layers")


def test_layout_given_where_the_file_has_one(tmp_path):
    path = tmp_path / "a.safetensors"
    nn.save_checkpoint(path, variables(), layout=AT)
    with pytest.raises(CheckpointError, match="says its layout itself: leave out source_layout"):
        nn.load_checkpoint(path, source_layout=AT, form="layers")


# -- stacks of scans -----------------------------------------------------------------------------


def loop(mdl, x, _):
    return x + nn.Dense(x.shape[-1])(x), None


class AtItsOwnPath(nn.Module):
    """A layer that is a scan and has no name between."""

    @nn.compact
    def __call__(self, x):
        axes = {"variable_axes": {"params": 1}, "split_rngs": {"params": True}}
        return nn.scan(loop, length=2, **axes)(self, x, None)[0]


@pytest.mark.parametrize("param_axis", [0, -1])
@pytest.mark.parametrize("layer", [AtItsOwnPath(), nn.remat_scan(nn.Dense, lengths=(2, 1))(2)])
def test_a_stack_of_scans_at_its_own_path(tmp_path, layer, param_axis):
    stack = nn.Stack(layer, depth=3, param_axis=param_axis)
    x = np.ones(2, np.float32)
    variables = jax.tree.map(np.asarray, stack.init(jax.random.key(0), x))
    layout = nn.layout(stack, jax.random.key(0), x)
    layers = nn.to_layers(variables, layout)
    assert all(a.ndim <= 2 for a in jax.tree.leaves(layers))
    same(nn.to_stacked(layers, layout), variables)
    path = tmp_path / "scans.safetensors"
    for tree in (variables, layers):
        nn.save_checkpoint(path, tree, layout=layout)
        same(nn.load_checkpoint(path, form="layers", verify=True), layers)
        same(nn.load_checkpoint(path, form="stacked", like=variables), variables)
