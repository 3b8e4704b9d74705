"""Boxes and their axis names: beside flax.core.meta, and where ours differs on purpose."""

import copy
import dataclasses
import pickle
from typing import Any, NamedTuple

import flax.core.meta as flax_meta
import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from liftax import errors
from liftax.core import boxes
from liftax.core.boxes import PARTITION_NAME, Partitioned

LAYERS = {PARTITION_NAME: "layers"}


def mesh_of(kind, shape=(2, 4), names=("a", "b")):
    kinds = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
    return jax.make_mesh(shape, names, axis_types=(kinds[kind],) * len(shape))


@pytest.fixture(params=["auto", "explicit"])
def mesh(request):
    return mesh_of(request.param)


def box(names=("in", "out"), shape=(2, 4), library=boxes):
    return library.Partitioned(jnp.arange(np.prod(shape), dtype=jnp.float32).reshape(shape), names)


def plain(tree):
    """Boxes of either library as (class name, names, value)."""

    def open_box(x):
        if hasattr(x, "names"):
            return (type(x).__name__, x.names, plain(x.value))
        return x

    return jax.tree.map(open_box, tree, is_leaf=lambda x: hasattr(x, "names"))


def assert_same(found, expected):
    found, expected = plain(found), plain(expected)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def trees(library):
    """The same trees with the boxes of either library."""
    p = library.Partitioned
    x = jnp.ones((2, 4))
    return {
        "no box": {"a": x, "b": [x, (x, None)]},
        "boxes": {"a": p(x, ("in", "out")), "b": x},
        "list": [p(x, ("in", None)), (p(x, (None, "out")), 3)],
        "box": p(x, ("in", "out")),
        "array": x,
        "none": None,
        "empty": {},
        "tree in a box": {"a": p({"w": x, "v": [x]}, ("in", "out"))},
        "box in a box": {"a": p(p(x, ("c", "d")), ("in", "out"))},
    }


TREES = list(trees(boxes))


def test_the_public_names_of_flax_are_there():
    names = [
        "AxisMetadata",
        "Partitioned",
        "with_partitioning",
        "is_axis_metadata",
        "unbox",
        "map_axis_meta",
        "add_axis",
        "remove_axis",
        "replace_boxed",
        "get_partition_spec",
        "get_sharding",
        "get_global_mesh",
        "global_mesh_defined",
    ]
    assert [n for n in names if not hasattr(boxes, n)] == []
    assert boxes.PARTITION_NAME == flax_meta.PARTITION_NAME


@pytest.mark.parametrize("which", TREES)
def test_unbox(which):
    assert_same(boxes.unbox(trees(boxes)[which]), flax_meta.unbox(trees(flax_meta)[which]))


@pytest.mark.parametrize("index", [0, 1, 2, 4])
@pytest.mark.parametrize("which", TREES)
def test_add_and_remove_axis(which, index):
    ours = boxes.add_axis(trees(boxes)[which], index, LAYERS)
    theirs = flax_meta.add_axis(trees(flax_meta)[which], index, LAYERS)
    assert_same(ours, theirs)
    assert_same(
        boxes.remove_axis(ours, index, LAYERS), flax_meta.remove_axis(theirs, index, LAYERS)
    )


@pytest.mark.parametrize("which", TREES)
def test_replace_boxed(which):
    updates = jax.tree.map(lambda x: x * 3, flax_meta.unbox(trees(flax_meta)[which]))
    assert_same(
        boxes.replace_boxed(trees(boxes)[which], updates),
        flax_meta.replace_boxed(trees(flax_meta)[which], updates),
    )


@pytest.mark.parametrize("which", TREES)
def test_partition_specs_and_shardings(which):
    mesh = mesh_of("auto", names=("in", "out"))
    ours, theirs = trees(boxes)[which], trees(flax_meta)[which]
    assert boxes.get_partition_spec(ours) == flax_meta.get_partition_spec(theirs)
    assert boxes.get_sharding(ours, mesh) == flax_meta.get_sharding(theirs, mesh)


def test_partition_spec_of_shapes_and_of_what_is_no_array():
    tree = {
        "shape": jax.ShapeDtypeStruct((2,), jnp.float32),
        "key": jax.random.key(0),
        "number": 1,
        "numpy": np.ones(2),
        "text": "s",
        "none": None,
    }
    expected = {"shape": P(), "key": P(), "number": None, "numpy": P(), "text": None, "none": None}
    assert boxes.get_partition_spec(tree) == expected == flax_meta.get_partition_spec(tree)


@pytest.mark.parametrize("index", [-1, -2, -3, 0, 1, 2])
def test_remove_undoes_add(index):
    before = box()
    stacked = before.add_axis(index, LAYERS)
    assert stacked.names[index] == "layers"
    assert stacked.remove_axis(index, LAYERS).names == before.names
    assert stacked.value is before.value


def test_a_negative_axis_counts_in_the_stacked_array():
    # flax.linen inserts at -1 of the old names, one place too early, and cannot undo it.
    assert box().add_axis(-1, LAYERS).names == ("in", "out", "layers")
    theirs = box(library=flax_meta).add_axis(-1, LAYERS)
    assert theirs.names == ("in", "layers", "out")
    with pytest.raises(AssertionError):
        theirs.remove_axis(-1, LAYERS)


def test_an_unnamed_axis_and_an_axis_past_the_names():
    whole = {PARTITION_NAME: None}
    assert box().add_axis(0, whole).names == (None, "in", "out")
    assert box().add_axis(0, whole).remove_axis(0, whole).names == ("in", "out")
    assert box(names=()).add_axis(2, LAYERS).names == (None, None, "layers")
    assert box(names=("in",)).remove_axis(2, whole).names == ("in",)


def test_errors_of_axes():
    message = r"axes are called \('in', 'out'\).*metadata_params=\{'partition_name': 'name'\}"
    with pytest.raises(errors.PartitioningUnspecifiedError, match=message):
        box().add_axis(0, {})
    with pytest.raises(errors.PartitioningUnspecifiedError, match=message):
        box().remove_axis(0, {})
    mismatch = r"axis at 0 should be called 'layers'.*names of the variable are \('in', 'out'\)"
    with pytest.raises(errors.PartitioningMismatchError, match=mismatch):
        box().remove_axis(0, LAYERS)
    with pytest.raises(errors.PartitioningMismatchError, match="axis at 7 should be called"):
        box().remove_axis(7, LAYERS)
    with pytest.raises(errors.PartitioningMismatchError, match="axis at -3 should be called"):
        box().remove_axis(-3, {PARTITION_NAME: None})
    with pytest.raises(errors.PartitioningMismatchError, match="room for an axis at -3 or later"):
        box().add_axis(-4, LAYERS)
    assert issubclass(errors.PartitioningUnspecifiedError, errors.LiftaxError)


def test_errors_print_no_arrays():
    big = Partitioned(jnp.full((50, 50), 0.125), ("in", "out"))
    with pytest.raises(errors.PartitioningUnspecifiedError, match="partition_name") as caught:
        big.add_axis(0, {})
    assert "0.125" not in str(caught.value)


def test_names_are_a_tuple_of_entries():
    assert Partitioned(1.0, ["a", None]).names == ("a", None)
    assert Partitioned(1.0, P("a", None)).names == ("a", None)
    with pytest.raises(TypeError, match=r"names must hold one entry.*names=\('in',\)"):
        Partitioned(1.0, "in")
    with pytest.raises(TypeError, match="names must hold one entry"):
        boxes.with_partitioning(jax.nn.initializers.ones, "in")(jax.random.key(0), (2,))


def test_updates_must_fit():
    with pytest.raises(ValueError, match="pytree structure error"):
        boxes.replace_boxed({"a": box()}, {"b": 1.0})
    with pytest.raises(ValueError, match="pytree structure error"):
        boxes.replace_boxed({"a": [box(), 2.0]}, {"a": (1.0, 2.0)})


def test_a_box_is_a_value():
    one = Partitioned(1.0, ("a",))
    assert one == Partitioned(1.0, ("a",))
    assert repr(one) == "Partitioned(value=1.0, names=('a',), mesh=None)"
    assert one.replace(names=("b",)).names == ("b",)
    assert pickle.loads(pickle.dumps(one)) == copy.deepcopy(one) == one
    with pytest.raises(dataclasses.FrozenInstanceError, match="names"):
        one.names = ()
    [(path, leaf)], structure = jax.tree_util.tree_flatten_with_path({"k": one})
    assert jax.tree_util.keystr(path) == "['k'].value"
    assert leaf == 1.0
    assert structure == jax.tree.structure({"k": Partitioned(2.0, ("a",))})
    assert structure != jax.tree.structure({"k": Partitioned(2.0, ("b",))})


def test_boxes_pass_through_jit_vmap_and_grad():
    def loss(p):
        return (p.value**2).sum()

    grads = jax.jit(jax.grad(loss))(box())
    assert grads.names == ("in", "out")
    np.testing.assert_array_equal(grads.value, 2 * box().value)
    out = jax.vmap(lambda p: p.replace_boxed(p.value.sum()))(box())
    assert out.value.shape == (2,)


class Tagged(boxes.AxisMetadata[Any]):
    """A box that somebody else wrote, and did not even register as a pytree."""

    def __init__(self, value, log=()):
        self.value, self.log = value, log

    def unbox(self):
        return self.value

    def replace_boxed(self, val):
        return Tagged(val, self.log)

    def add_axis(self, index, params):
        return Tagged(self.value, (*self.log, ("add", index, params["tag"])))

    def remove_axis(self, index, params):
        return Tagged(self.value, (*self.log, ("remove", index, params["tag"])))


class Pair(NamedTuple):
    first: Any
    second: Any


def test_other_boxes_in_other_containers():
    tree = Pair({"a": Tagged(1)}, Tagged(Tagged(2)))
    assert boxes.unbox(tree) == Pair({"a": 1}, 2)
    added = boxes.add_axis(tree, 3, {"tag": "t"})
    assert isinstance(added, Pair)
    assert added.first["a"].log == (("add", 3, "t"),)
    assert boxes.remove_axis(added, 3, {"tag": "u"}).second.log == (
        ("add", 3, "t"),
        ("remove", 3, "u"),
    )
    again = boxes.replace_boxed(added, Pair({"a": 10}, 20))
    assert again.first["a"].log == (("add", 3, "t"),)
    assert boxes.unbox(again) == Pair({"a": 10}, 20)
    assert boxes.map_axis_meta(lambda b: b.log, tree) == Pair({"a": ()}, ())
    assert boxes.get_partition_spec(Tagged(jnp.ones(2))) is None
    with pytest.raises(TypeError, match="abstract"):
        boxes.AxisMetadata()


def test_a_subclass_is_a_pytree_node_by_itself():
    class Owned(Partitioned[Any]):
        owner: str = "nobody"

    one = Owned(jnp.ones(2), ("a",), owner="me")
    stacked = jax.jit(lambda p: p.add_axis(0, LAYERS))(one)
    assert (stacked.names, stacked.owner) == (("layers", "a"), "me")
    assert boxes.unbox({"x": one})["x"] is one.value


def test_containers_are_copied_and_leaves_are_not():
    tree = {"a": {"b": jnp.ones(2)}, "c": [jnp.zeros(1)]}
    out = boxes.unbox(tree)
    out["a"]["new"] = 1
    assert "new" not in tree["a"]
    assert out["a"]["b"] is tree["a"]["b"]
    assert out["c"] is not tree["c"]
    assert list(boxes.unbox({"z": 1, "a": 2})) == ["z", "a"]


# --- on a mesh of eight devices -------------------------------------------------------------


def spec_of(x):
    return tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))


SETTINGS = {
    "eager": lambda f, x: f(x),
    "jit": lambda f, x: jax.jit(f)(x),
    "vmap": lambda f, x: jax.vmap(f)(x[None])[0],
    "grad": lambda f, x: jax.grad(lambda y: (f(y) ** 2).sum())(x) / 2,
    "scan": lambda f, x: jax.lax.scan(lambda c, y: (c, f(y)), 0, x[None])[1][0],
    "checkpoint": lambda f, x: jax.jit(jax.checkpoint(f))(x),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_unbox_lays_out(mesh, setting):
    boxed = box(names=("a", "b"))
    with jax.set_mesh(mesh):
        out = SETTINGS[setting](lambda x: boxed.replace_boxed(x).unbox(), boxed.value)
        assert spec_of(out) == ("a", "b")
    np.testing.assert_array_equal(out, boxed.value)
    assert boxed.unbox() is boxed.value
    assert boxed.unbox(apply_constraint=False) is boxed.value


def test_flax_lays_out_the_same_where_it_can():
    with jax.set_mesh(mesh_of("auto")):
        outs = [
            jax.jit(lambda p: p.unbox())(box(names=("b", None), library=m, shape=(4, 2)))
            for m in (boxes, flax_meta)
        ]
    assert outs[0].sharding.is_equivalent_to(outs[1].sharding, 2)
    # Elsewhere it cannot: arrays that lie on one device, and explicit meshes.
    theirs = box(names=("a", "b"), library=flax_meta)
    with jax.set_mesh(mesh_of("auto")), pytest.raises(TypeError, match="NamedSharding"):
        theirs.unbox()
    with jax.set_mesh(mesh_of("explicit")), pytest.raises(AssertionError, match="reshard"):
        jax.jit(lambda p: p.unbox())(theirs)


def test_several_mesh_axes_on_one_axis(mesh):
    boxed = Partitioned(jnp.ones((8, 2)), (("a", "b"), None))
    with jax.set_mesh(mesh):
        assert spec_of(boxed.unbox()) == (("a", "b"), None)


def test_the_mesh_of_the_box(mesh):
    boxed = Partitioned(jnp.ones((2, 4)), ("a", "b"), mesh)
    assert boxed.unbox().sharding == NamedSharding(mesh, P("a", "b")) == boxed.get_sharding(mesh)
    init = boxes.with_partitioning(jax.nn.initializers.ones, ("a", "b"), mesh=mesh)
    assert init(jax.random.key(0), (2, 4)).mesh is mesh


def test_a_mesh_of_both_kinds():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto, AxisType.Explicit))
    boxed = box(names=("a", "b"))
    with jax.set_mesh(mesh):
        assert spec_of(boxed.unbox()) == ("a", "b")
        assert spec_of(jax.jit(lambda p: p.unbox())(boxed)) == ("a", "b")
        both = Partitioned(jnp.ones((8, 2)), (("a", "b"),))
        with pytest.raises(errors.PartitioningMismatchError, match="automatic and explicit axes"):
            both.unbox()


def test_inside_shard_map_manual_axes_drop_out():
    boxed = box(names=("a", "b"))
    with jax.set_mesh(mesh_of("auto")):
        some = jax.shard_map(
            lambda x: boxed.replace_boxed(x).unbox(),
            in_specs=P("a"),
            out_specs=P("a"),
            axis_names={"a"},
        )
        assert spec_of(jax.jit(some)(boxed.value)) == ("a", "b")
        every = jax.shard_map(
            lambda x: boxed.replace_boxed(x).unbox(), in_specs=P("a", "b"), out_specs=P("a", "b")
        )
        np.testing.assert_array_equal(jax.jit(every)(boxed.value), boxed.value)


def test_names_must_fit_the_array_and_the_mesh(mesh):
    with jax.set_mesh(mesh):
        unknown = r"axis name 'zz' in \('zz', 'b'\) is not an axis of the mesh.*\('a', 'b'\)"
        with pytest.raises(errors.PartitioningMismatchError, match=unknown):
            box(names=("zz", "b")).unbox()
        with pytest.raises(errors.PartitioningMismatchError, match="3 axes, but the array has 2"):
            box(names=("a", "b", None)).unbox()


def test_what_is_no_array_is_left_alone(mesh):
    shape = jax.ShapeDtypeStruct((2, 4), jnp.float32)
    with jax.set_mesh(mesh):
        assert Partitioned(shape, ("a", "b")).unbox() is shape
        assert Partitioned(None, ("a", "b")).unbox() is None
        assert spec_of(Partitioned(np.ones((2, 4)), ("a", "b")).unbox()) == ("a", "b")


def test_the_mesh_of_the_context(mesh):
    assert boxes.get_global_mesh() is None
    assert not boxes.global_mesh_defined()
    with jax.set_mesh(mesh):
        assert boxes.global_mesh_defined()
        assert boxes.get_global_mesh() == flax_meta.get_global_mesh() == mesh.abstract_mesh


def test_with_partitioning_keeps_the_name_of_the_initializer():
    init = boxes.with_partitioning(jax.nn.initializers.ones, ("a", "b"))
    assert init.__name__ == "ones"
    ours = init(jax.random.key(0), (2, 4))
    theirs = linen.with_partitioning(jax.nn.initializers.ones, ("a", "b"))(
        jax.random.key(0), (2, 4)
    )
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("first", "second"),
    [({"a": 0.0}, {"a": 1.0, "b": 2.0}), (None, 1.0), ([0.0, 1.0], (2.0,))],
    ids=["dict", "None", "list"],
)
def test_a_value_without_boxes_may_take_another_structure(first: Any, second: Any) -> None:
    from liftax.core import apply

    def write(scope: Any) -> Any:
        scope.variable("state", "n", lambda: first).value = second

    assert apply(write, mutable="state")({})[1] == {"state": {"n": second}}
