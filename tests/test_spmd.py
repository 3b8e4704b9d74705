"""Logical axis names: beside flax.linen.spmd, and on meshes where flax.linen has no answer."""

import threading

import flax.linen as linen
import flax.linen.spmd as linen_spmd
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from liftax import errors, spmd
from liftax.core import boxes

RULES = (("in", "a"), ("out", "b"))
X = np.arange(8, dtype=np.float32).reshape(2, 4)


def mesh_of(kind, shape=(2, 4), names=("a", "b")):
    kinds = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
    return jax.make_mesh(shape, names, axis_types=(kinds[kind],) * len(shape))


@pytest.fixture(params=["auto", "explicit"])
def mesh(request):
    return mesh_of(request.param)


def spec_of(x):
    return tuple(x.sharding.spec) + (None,) * (x.ndim - len(x.sharding.spec))


@pytest.mark.parametrize(
    ("names", "rules", "expected"),
    [
        (("batch", "seq", "heads"), (("batch", "x"), ("heads", "y")), P("x", None, "y")),
        # A mesh axis is used once, by the first rule that wants it.
        (("batch", "embed"), (("batch", "x"), ("embed", "x")), P("x", None)),
        (("batch", "embed"), (("embed", "x"), ("batch", "x")), P(None, "x")),
        # The next rule of the same name gets its chance.
        (("batch", "embed"), (("embed", "x"), ("batch", "x"), ("batch", "y")), P("y", "x")),
        # None is a place too: later rules of the name are not asked.
        (("batch",), (("batch", None), ("batch", "x")), P(None)),
        # A tuple needs all of its mesh axes.
        (("batch", "heads"), (("batch", ("x", "y")), ("heads", "y")), P(("x", "y"), None)),
        (("batch", "heads"), (("heads", "y"), ("batch", ("x", "y"))), P(None, "y")),
        (("batch",), (("batch", ()),), P(None)),
        ((P.UNCONSTRAINED, "batch"), (("batch", "x"),), P(P.UNCONSTRAINED, "x")),
        ((None, None), (("batch", "x"),), P(None, None)),
        (P("batch", None), (("batch", "x"),), P("x", None)),
        (["batch", None], [["batch", "x"]], P("x", None)),
        ((), (("batch", "x"),), P()),
        (None, (("batch", "x"),), None),
        (("batch",), (), P(None)),
    ],
)
def test_rules(names, rules, expected):
    assert spmd.logical_to_mesh_axes(names, rules) == expected
    assert linen.logical_to_mesh_axes(names, rules) == expected


axis = st.sampled_from(["x", "y", "z"])
place = st.one_of(st.none(), axis, st.lists(axis, min_size=1, max_size=3, unique=True).map(tuple))
name = st.sampled_from(["p", "q", "r", "s"])


@hypothesis.given(
    names=st.lists(name, unique=True, max_size=4).flatmap(
        lambda n: st.permutations([*n, None]) if n else st.just([])
    ),
    rules=st.lists(st.tuples(name, place), max_size=8),
)
@hypothesis.settings(max_examples=300)
def test_rules_beside_flax(names, rules):
    found = spmd.logical_to_mesh_axes(tuple(names), tuple(rules))
    assert found == linen.logical_to_mesh_axes(tuple(names), tuple(rules))
    used = [a for e in found for a in ((e,) if isinstance(e, str) else e or ())]
    assert len(used) == len(set(used))


def test_the_context_of_rules():
    assert spmd.get_logical_axis_rules() == ()
    with spmd.logical_axis_rules(RULES):
        assert spmd.get_logical_axis_rules() == RULES
        assert spmd.logical_to_mesh_axes(("out", "in")) == P("b", "a")
        assert spmd.logical_to_mesh_axes(("out", "in"), ()) == P(None, None)
        with spmd.logical_axis_rules((("in", "b"),)):
            assert spmd.logical_to_mesh_axes(("out", "in")) == P(None, "b")
        spmd.set_logical_axis_rules((("q", "b"),))
        assert spmd.get_logical_axis_rules() == (("q", "b"),)
        with pytest.raises(KeyError, match="inner"), spmd.logical_axis_rules(RULES):
            raise KeyError("inner")
        assert spmd.get_logical_axis_rules() == (("q", "b"),)
    assert spmd.get_logical_axis_rules() == ()


def test_each_thread_has_its_own_rules():
    gate, found = threading.Barrier(8), {}

    def work(i):
        found[i, "before"] = spmd.get_logical_axis_rules()
        with spmd.logical_axis_rules((("in", f"m{i}"),)):
            gate.wait()
            found[i, "within"] = spmd.logical_to_mesh_axes(("in",))
            gate.wait()

    with spmd.logical_axis_rules(RULES):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {(i, "before"): () for i in range(8)} | {
        (i, "within"): P(f"m{i}") for i in range(8)
    }


def test_trees_of_specs():
    tree = {"a": P("in", "zz"), "b": None, "c": P()}
    expected = {"a": P("a", None), "b": None, "c": P()}
    assert spmd.logical_to_mesh(tree, RULES) == expected == linen.logical_to_mesh(tree, RULES)
    mesh = mesh_of("auto")
    shardings = spmd.logical_to_mesh_sharding(tree, mesh, RULES)
    assert shardings == linen.logical_to_mesh_sharding(tree, mesh, RULES)
    assert shardings["a"] == NamedSharding(mesh, P("a", None))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spmd.logical_to_mesh_axes("in", RULES), "must be a tuple or PartitionSpec.*'in'"),
        (lambda: spmd.logical_to_mesh_axes(("in", "in"), RULES), "'in' occurs more than once"),
        (lambda: spmd.logical_to_mesh_axes((("in", "out"),), RULES), "one logical name or None"),
        (lambda: spmd.logical_to_mesh_axes(("in",), {"in": "a"}), "it is a dict; the order"),
        (lambda: spmd.logical_to_mesh_axes(("in",), (("in",),)), r"\('in',\) is not a rule"),
        (lambda: spmd.logical_to_mesh_axes(("in",), (("in", 3),)), r"\('in', 3\) is not a rule"),
        (lambda: spmd.set_logical_axis_rules("in"), "it is a str"),
        (lambda: spmd.logical_axis_rules((("in", ("a", None)),)).__enter__(), "is not a rule"),
        (lambda: spmd.logical_to_mesh({"a": ("in",)}, RULES), "a leaf is a str.*get_partition_s"),
        (
            lambda: spmd.logical_to_mesh(spmd.LogicallyPartitioned(1.0, ("in",)), RULES),
            "a leaf is a LogicallyPartitioned",
        ),
        (lambda: spmd.LogicallyPartitioned(1.0, ("in",), rules={"in": "a"}), "it is a dict"),
    ],
)
def test_malformed_names_and_rules(call, message):
    with pytest.raises(errors.PartitioningMismatchError, match=message):
        call()
    assert spmd.get_logical_axis_rules() == ()


SETTINGS = {
    "eager": lambda f, x: f(x),
    "jit": lambda f, x: jax.jit(f)(x),
    "vmap": lambda f, x: jax.vmap(f)(x[None])[0],
    "grad": lambda f, x: jax.grad(lambda y: (f(y) ** 2).sum())(x) / 2,
    "scan": lambda f, x: jax.lax.scan(lambda c, y: (c, f(y)), 0, x[None])[1][0],
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_constraint(mesh, setting):
    x = jnp.asarray(X)
    with jax.set_mesh(mesh), spmd.logical_axis_rules(RULES):
        out = SETTINGS[setting](lambda y: spmd.with_logical_constraint(y, ("in", "out")), x)
        assert spec_of(out) == ("a", "b")
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize(
    ("names", "rules"),
    [
        (("in", "out"), RULES),
        (P("in", "out"), RULES),
        (("out", "in"), (("in", "b"), ("out", "a"))),
        (("zz", "out"), RULES),
        (("in",), RULES),
        ((None, None), RULES),
        (None, RULES),
        (("in", "out"), ()),
        (("in", "out"), (("in", None), ("out", "b"))),
        ((P.UNCONSTRAINED, "out"), RULES),
    ],
)
@pytest.mark.parametrize("fallback", ["AXIS_IS_UNSHARDED", "NO_CONSTRAINT"])
def test_constraint_beside_flax(names, rules, fallback):
    with jax.set_mesh(mesh_of("auto")):
        ours, theirs = (
            jax.jit(
                lambda x, library=library: library.with_logical_constraint(
                    x, names, rules=rules, fallback=library.RulesFallback[fallback]
                )
            )(X)
            for library in (spmd, linen_spmd)
        )
    assert ours.sharding.is_equivalent_to(theirs.sharding, 2)


def test_names_without_a_rule():
    raising = {"fallback": spmd.RulesFallback.RAISE_ERROR, "rules": RULES, "mesh": mesh_of("auto")}
    no_rule = r"no rule applies to 'zz'; the rules are \(\('in', 'a'\), \('out', 'b'\)\)"
    with pytest.raises(errors.PartitioningMismatchError, match=no_rule):
        spmd.with_logical_constraint(X, ("zz", "out"), **raising)
    # A name whose mesh axes are all taken is not placed either; None does place it.
    taken = (("in", "a"), ("out", "a"))
    with pytest.raises(errors.PartitioningMismatchError, match="no rule applies to 'out'"):
        spmd.with_logical_constraint(X, ("in", "out"), **raising | {"rules": taken})
    whole = (*taken, ("out", None))
    placed = spmd.with_logical_constraint(X, ("in", "out"), **raising | {"rules": whole})
    assert spec_of(placed) == ("a", None)
    left_alone = spmd.with_logical_constraint(
        X, ("zz", "out"), **raising | {"fallback": spmd.RulesFallback.NO_CONSTRAINT}
    )
    assert left_alone is X
    with pytest.raises(ValueError, match="not a valid RulesFallback"):
        spmd.with_logical_constraint(X, ("zz", "out"), rules=RULES, fallback="whatever")
    assert [f.name for f in spmd.RulesFallback] == [f.name for f in linen_spmd.RulesFallback]


def test_without_mesh_or_rules_nothing_happens(mesh):
    assert spmd.with_logical_constraint(X, ("in", "out"), rules=RULES) is X
    with jax.set_mesh(mesh):
        assert spmd.with_logical_constraint(X, ("in", "out")) is X
        assert spmd.with_logical_constraint(X, None, rules=RULES) is X


def test_constraints_of_trees(mesh):
    with jax.set_mesh(mesh):
        names = {"u": ("in", "out"), "v": (P("out", None), None)}
        out = spmd.with_logical_constraint({"u": X, "v": (X.T, X)}, names, rules=RULES)
        assert spec_of(out["u"]) == ("a", "b")
        assert spec_of(out["v"][0]) == ("b", None)
        assert out["v"][1] is X
        prefix = spmd.with_logical_constraint({"u": X, "v": [X]}, P("in", "out"), rules=RULES)
        assert [spec_of(x) for x in jax.tree.leaves(prefix)] == [("a", "b")] * 2
        with pytest.raises(ValueError, match="pytree structure error"):
            spmd.with_logical_constraint({"u": X}, {"w": P("in")}, rules=RULES)


def test_constraint_errors(mesh):
    with jax.set_mesh(mesh):
        with pytest.raises(errors.PartitioningMismatchError, match="'nowhere'.*not an axis of the"):
            spmd.with_logical_constraint(X, ("in", None), rules=(("in", "nowhere"),))
        with pytest.raises(errors.PartitioningMismatchError, match="3 axes, but the array has 2"):
            spmd.with_logical_constraint(X, ("in", "out", None), rules=RULES)


def test_the_box():
    box = spmd.LogicallyPartitioned(X, ("in", "out"))
    assert boxes.get_partition_spec({"k": box}) == {"k": P("in", "out")}
    layers = {boxes.PARTITION_NAME: "layers"}
    stacked = boxes.add_axis({"k": box}, 1, layers)["k"]
    assert type(stacked) is spmd.LogicallyPartitioned
    assert stacked.names == ("in", "layers", "out")
    assert boxes.remove_axis(stacked, 1, layers).names == ("in", "out")
    listed = spmd.LogicallyPartitioned(1.0, ["in"], rules=[["in", ["a", "b"]]])
    assert hash(jax.tree.structure(listed)) is not None
    assert listed.rules == (("in", ("a", "b")),)
    theirs = linen.LogicallyPartitioned(1.0, ("in",), None, RULES)
    ours = spmd.LogicallyPartitioned(1.0, ("in",), None, RULES)
    assert repr(ours) == repr(theirs)


def test_the_box_lays_out(mesh):
    box = spmd.LogicallyPartitioned(jnp.asarray(X), ("in", "out"))
    with jax.set_mesh(mesh):
        assert box.unbox() is box.value
        with spmd.logical_axis_rules(RULES):
            assert spec_of(jax.jit(lambda b: b.unbox())(box)) == ("a", "b")
            assert spec_of(box.unbox()) == ("a", "b")
            assert box.unbox(apply_constraint=False) is box.value
        own = box.replace(rules=(("out", "a"),))
        assert spec_of(own.unbox()) == (None, "a")
    placed = box.replace(rules=RULES, mesh=mesh).unbox()
    assert placed.sharding == NamedSharding(mesh, P("a", "b"))


def test_the_sharding_of_the_box():
    mesh = mesh_of("auto")
    box = spmd.LogicallyPartitioned(X, ("in", "out"), rules=RULES)
    assert box.get_sharding(mesh) == NamedSharding(mesh, P("a", "b"))
    free = spmd.LogicallyPartitioned(X, ("in", "out"))
    with spmd.logical_axis_rules((("in", "b"),)):
        assert boxes.get_sharding({"k": free}, mesh)["k"].spec == P("b", None)
    # With no rules the names are taken for mesh axes, as flax.linen always takes them.
    with pytest.raises(ValueError, match="in of .* is not found in mesh"):
        free.get_sharding(mesh)
    named = spmd.LogicallyPartitioned(X, ("a", "b"))
    assert named.get_sharding(mesh).spec == P("a", "b")


def test_with_logical_partitioning():
    ours, theirs = (
        library.with_logical_partitioning(jax.nn.initializers.ones, ("in", "out"), rules=RULES)(
            jax.random.key(0), (2, 4)
        )
        for library in (spmd, linen)
    )
    assert (ours.names, ours.rules, ours.mesh) == (theirs.names, theirs.rules, theirs.mesh)
    np.testing.assert_array_equal(ours.value, theirs.value)
    with pytest.raises(TypeError, match="names must hold one entry for each axis"):
        spmd.with_logical_partitioning(jax.nn.initializers.ones, "in")(jax.random.key(0), (2,))
