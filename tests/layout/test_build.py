"""Layouts of models: against what really comes of initialising them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)


def numbers(key, rows):
    """An array of shape (rows, 2) that is another for every key, and takes no time to compile."""
    return jax.random.key_data(key) + jnp.arange(rows, dtype=jnp.uint32)[:, None]


class Leaf(nn.Module):
    """Returns the variables that this iteration sees."""

    @nn.compact
    def __call__(self, carry):
        w = self.param("w", lambda key: numbers(key, 5))
        m = self.variable("state", "m", lambda: numbers(self.make_rng("state"), 1)[0])
        return carry, (w, m.value)


@st.composite
def nests(draw):
    """Lifts from the inside out: kind, size, and for each collection an axis or None (shared)."""
    ranks = {"params": 2, "state": 1}
    lifts = []
    for size in draw(st.permutations([2, 3, 4]))[: draw(st.integers(1, 3))]:
        kind = draw(st.sampled_from(["scan", "vmap", "remat"]))
        axes = {}
        for name in ranks:
            axes[name] = None
            if kind != "remat" and draw(st.booleans()):
                ranks[name] += 1
                axes[name] = draw(st.integers(-ranks[name], ranks[name] - 1))
        lifts.append((kind, size, axes))
    return lifts


def lifted(lifts):
    target = Leaf
    for kind, size, axes in lifts:
        stacked = {name: axis for name, axis in axes.items() if axis is not None}
        split = {name: name in stacked for name in axes}
        if kind == "scan":
            shared = [name for name in axes if name not in stacked]
            target = nn.scan(
                target,
                variable_axes=stacked,
                variable_broadcast=shared,
                split_rngs=split,
                length=size,
            )
        elif kind == "vmap":
            target = nn.vmap(
                target, variable_axes=axes, split_rngs=split, in_axes=None, axis_size=size
            )
        else:
            target = nn.remat(target)
    return target()


@settings(max_examples=12)
@given(nests())
def test_axes_against_slices(lifts):
    """Undoing the lifts at the axes that the layout claims gives what each iteration saw."""
    module = lifted(lifts)
    rngs = {"params": KEY, "state": jax.random.key(1)}
    layout = nn.layout(module, rngs, ())
    (_, outputs), variables = jax.jit(module.init_with_output)(rngs, ())
    assert [lift.kind for lift in layout.lifts] == [kind for kind, _, _ in reversed(lifts)]
    for name, seen in zip(["params/w", "state/m"], outputs, strict=True):
        row = layout[name]
        value = variables[row.collection][row.path[0]]
        assert row.shape == value.shape and row.dtype == str(value.dtype)
        assert row.bytes == value.nbytes
        claimed = {along.lift: along.axis for along in row.along if along.role == "stacked"}
        assert claimed == {a.lift: i for i, a in enumerate(row.axes) if a.lift is not None}
        # Outputs have one leading axis for each lift that has an axis, the outermost first.
        sized = [lift for lift in layout.lifts if lift.size is not None]
        front = [claimed[lift.index] for lift in sized if lift.index in claimed]
        rest = [i for i in range(value.ndim) if i not in front]
        value = value.transpose(*front, *rest)
        for i, lift in enumerate(sized):
            if lift.index not in claimed:
                value = jnp.expand_dims(value, i)
        np.testing.assert_array_equal(np.broadcast_to(value, seen.shape), seen)
        for along, (kind, _, axes) in zip(row.along, reversed(lifts), strict=True):
            if kind == "remat":
                assert along.role == "through"
            else:
                assert along.role == ("shared" if axes[row.collection] is None else "stacked")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(x.shape[-1])(x)), None


def stack(length=3, name="layers", **kwargs):
    return nn.scan(
        Block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        length=length,
        metadata_params={nn.PARTITION_NAME: name},
        **kwargs,
    )


X = jax.ShapeDtypeStruct((2, 4), "float32")


def test_composed_model():
    model = nn.vmap(
        stack(),
        in_axes=(0, None),
        variable_axes={"params": None},
        split_rngs={"params": False},
        axis_name="batch",
    )()
    layout = nn.layout(model, KEY, X, None)
    vmap, scan = layout.lifts
    assert (vmap.kind, vmap.size, vmap.axis_name, vmap.parent) == ("vmap", 2, "batch", None)
    assert (scan.kind, scan.size, scan.axis_name, scan.parent) == ("scan", 3, "layers", 0)
    assert scan.carry and not vmap.carry
    assert scan.target == "Block"
    assert scan.file_line.partition(":")[0].endswith("test_build.py")
    assert (vmap.roles, scan.roles) == ({"params": "shared"}, {"params": "stacked"})
    assert (vmap.splits, scan.splits) == ({"params": False}, {"params": True})
    kernel = layout["params/Dense_0/kernel"]
    assert kernel.layer == "Dense"
    assert [(a.label, a.size, a.lift) for a in kernel.axes] == [
        ("layers", 3, 1), ("in", 4, None), ("out", 4, None),
    ]  # fmt: skip
    assert [(a.role, a.split) for a in kernel.along] == [("shared", False), ("stacked", True)]
    assert layout.parameters == 3 * (16 + 4)
    assert [(t.per_iteration, t.if_shared) for t in layout.by_lift] == [(60, 60), (20, 20)]
    assert layout.arguments == "f32[2,4], None"


def test_traces_the_body_once_and_allocates_nothing():
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            calls.append(1)
            return nn.Dense(4)(x), None

    lift = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    deep = nn.scan(nn.scan(Counted, **lift, length=1_000_000), **lift, length=1_000_000)
    layout = nn.layout(deep(), {"params": jax.eval_shape(lambda: KEY)}, X, None)
    assert calls == [1]
    assert layout.parameters == 20 * 10**12
    assert layout.bytes == 80 * 10**12


def test_variables_in_and_out_of_a_lift():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(4, name="inside_none")(x)
            x, _ = stack()(name="blocks")(x, None)
            x = nn.BatchNorm(use_running_average=False, name="norm")(x)
            return nn.Embed(5, 4, name="embed").attend(x)

    layout = nn.layout(Net(), KEY, X)
    assert layout["params/inside_none/kernel"].along == ()
    assert layout["params/blocks/Dense_0/bias"].lifts == (0,)
    assert layout["batch_stats/norm/mean"].axes[0].label == "features"
    assert [a.label for a in layout["params/embed/embedding"].axes] == ["vocabulary", "features"]
    assert layout.lifts[0].path == ("blocks",)
    assert [t.collection for t in layout.collections] == ["params", "batch_stats"]


def test_carried_variables_and_lifted_functions():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, carry, x):
                count = module.variable("state", "count", lambda: jnp.zeros((), jnp.int32))
                count.value += 1
                return carry + x @ module.param("w", nn.initializers.ones, (4, 4)), None

            loop = nn.scan(
                body,
                variable_broadcast="params",
                variable_carry="state",
                split_rngs={"params": False},
            )
            return loop(self, jnp.zeros(4), x)[0]

    layout = nn.layout(Net(), KEY, X)
    assert layout["state/count"].along[0].role == "carried"
    assert layout["params/w"].along[0].role == "shared"
    assert layout.lifts[0].target.endswith("body")
    assert layout.lifts[0].roles == {"params": "shared", "state": "carried"}


def test_names_of_boxed_variables_come_first():
    init = nn.with_partitioning(nn.initializers.ones, ("embed", None))

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            def body(module, carry, _):
                return nn.Dense(4, kernel_init=init, name="d", parent=module)(carry), None

            scanned = nn.scan(
                body,
                variable_axes={"params": -1},
                split_rngs={"params": True},
                length=3,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            return scanned(self, x, None)[0]

    row = nn.layout(Net(), KEY, X)["params/d/kernel"]
    assert row.shape == (4, 4, 3)
    assert [a.label for a in row.axes] == ["embed", "out", "layers"]


def test_a_variable_that_is_a_tree_has_a_row_for_each_array():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            pair = self.variable("state", "pair", lambda: (jnp.zeros(3), {"a": jnp.zeros(2)}))
            return x + pair.value[0].sum()

    layout = nn.layout(Net(), KEY, X)
    assert [(v.name, v.shape) for v in layout] == [("pair[0]", (3,)), ("pair[1]['a']", (2,))]


def test_changed_on_the_way_out_has_no_layer_names():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            tied = nn.map_variables(
                nn.Dense,
                "params",
                lambda tree: jax.tree.map(lambda leaf: leaf.T, tree),
                lambda tree: jax.tree.map(lambda leaf: leaf.T, tree),
                init=True,
            )
            return tied(3, use_bias=False, name="tied")(x)

    row = nn.layout(Net(), KEY, X)["params/tied/kernel"]
    assert row.shape == (3, 4)
    assert [a.label for a in row.axes] == [None, None]
    assert row.along[0].role == "mapped"


def test_cost_counts_the_layers_of_a_loop():
    def flops(model):
        return nn.layout(model, KEY, X, None).with_cost().cost.flops

    looped, unrolled = flops(stack(6)()), flops(stack(6, unroll=True)())
    assert looped == pytest.approx(unrolled, rel=0.02)
    assert looped >= 6 * 2 * 2 * 4 * 4
    cost = nn.layout(stack(6)(), KEY, X, None).with_cost().cost
    assert cost.backend == "cpu" and cost.peak_temporary_bytes > 0 and cost.bytes_accessed > 0


def test_arguments_as_they_would_be_typed():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, tree, *, train):
            return nn.Dense(2)(tree["x"][0]) if train else tree

    x = jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)
    layout = nn.layout(Net(), KEY, {"x": [x, None]}, train=True)
    assert layout.arguments == "{'x': [bf16[2,3], None]}, train=True"
    assert layout.with_cost().cost.flops > 0


def test_what_init_raises_is_raised():
    with pytest.raises(nn.errors.CarryError, match="residual width is 4"):

        class Wide(nn.Module):
            @nn.compact
            def __call__(self, x, _):
                return nn.Dense(8)(x), None

        lift = nn.scan(Wide, variable_axes={"params": 0}, split_rngs={"params": True}, length=2)
        nn.layout(lift(), KEY, X, None)
    assert nn.layout(nn.Dense(3), KEY, X).lifts == ()  # nothing is left behind


@pytest.mark.parametrize("wrong", [lambda x: x, {"params": {}}, 3], ids=["function", "dict", "int"])
def test_only_modules_have_a_layout(wrong):
    with pytest.raises(nn.errors.TransformTargetError, match="^layout: expected a module"):
        nn.layout(wrong, KEY, jax.ShapeDtypeStruct((2, 4), "float32"))


@pytest.mark.parametrize(("carry", "drawn"), [(None, False), (jnp.zeros(3), True)])
def test_a_carry_is_drawn_where_there_is_one(carry, drawn):
    class Step(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return carry, nn.Dense(2)(x)

    each = nn.scan(Step, variable_broadcast="params", split_rngs={"params": False})
    layout = nn.layout(each(), KEY, carry, jax.ShapeDtypeStruct((5, 4), "float32"))
    assert layout.lifts[0].carry is drawn
    assert ("carry" in str(layout)) is drawn


@pytest.mark.parametrize("shared", [False, True])
def test_lifts_that_make_way_while_a_loop_shares_what_they_make(shared):
    def pull(m, x):
        return nn.vjp(lambda m, x: m(x), m, x)

    class Clipped(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            apply = nn.custom_vjp(lambda m, x: m(x), forward_fn=pull, backward_fn=lambda f, g: f(g))
            return nn.remat(Layer)()(apply(Layer(), x)), None

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.Dense(x.shape[-1])(x)

    split = {"split_rngs": {"params": not shared}}
    role = {"variable_broadcast": "params"} if shared else {"variable_axes": {"params": 0}}
    model = nn.scan(Clipped, length=3, **role, **split)()
    layout = nn.layout(model, jax.random.key(0), jnp.ones(4), None)
    assert [lift.kind for lift in layout.lifts] == ["scan", "custom_vjp", "remat"]


def test_shapes_lines_and_shared_use_along_the_nest():
    class Net(nn.Module):
        @nn.compact
        def __call__(self, ids):
            embed = nn.Embed(7, 4, name="embed")
            layers = stack()  # line 1
            x, _ = layers(name="blocks")(embed(ids), None)  # line 2
            return embed.attend(x)

    line = Net.__call__.__wrapped__.__code__.co_firstlineno + 3
    layout = nn.layout(Net(), KEY, jax.ShapeDtypeStruct((2, 5), "int32"))
    (scan,) = layout.lifts
    assert (scan.carries, scan.takes, scan.gives) == ("f32[2,5,4]", "", "")
    # `stack` above makes the lift, and remembers nothing: its own line is where nn.scan stands.
    assert scan.made_at.rpartition(":")[0] == scan.file_line.rpartition(":")[0]
    assert scan.called_at == f"{__file__}:{line + 1}"
    modules = {"/".join(m.path): m for m in layout.modules}
    assert modules["embed"].uses == ("/.__call__", "/.__call__")
    assert (modules["embed"].takes, modules["embed"].gives) == ("i32[2,5]", "f32[2,5,4]")
    assert modules["blocks/Dense_0"].uses == ("/blocks.__call__",)
    assert modules["blocks/Dense_0"].lifts == (0,)
    text = str(layout)
    assert "carry f32[2,5,4]" in text and "shared by 2 calls" in text
    assert "shared by 2 calls" in layout.to_html()


def test_flops_of_modules_count_loops():
    layout = nn.layout(stack(6)(), KEY, X, None).with_cost()
    (whole, dense) = layout.modules
    assert dense.flops >= 6 * 2 * 2 * 4 * 4
    assert whole.flops == pytest.approx(layout.cost.flops, rel=0.1)
    assert "FLOPs" in str(layout) and "FLOPs" in layout.to_html()


def test_streams_that_were_not_given():
    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.Dropout(0.5, deterministic=False)(x), None

    model = nn.scan(Drops, split_rngs={"params": True, "dropout": False}, length=3)()
    alone = nn.layout(model, KEY, X, None)
    assert (alone.absent, alone.findings) == (("dropout",), ())
    both = nn.layout(model, {"params": KEY, "dropout": KEY}, X, None)
    assert both.absent == () and [f.code for f in both.findings] == ["LX903"]
    assert "not split: dropout" in str(both) and "keys not split" in both.to_html()


def test_a_dtype_of_numpy_is_no_array():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, dtype):
            return nn.Dense(2, dtype=dtype)(x)

    found = nn.layout(Model(), KEY, jnp.ones((2, 3)), np.float16)
    assert found.arguments == "f32[2,3], <class 'numpy.float16'>"
    variables = Model().init(KEY, jnp.ones((2, 3)), np.float16)
    assert nn.saved_residuals(Model(), variables, jnp.ones((2, 3)), np.float16).bytes
    (row, _) = nn.summary(Model(), KEY, compute_flops=True)(jnp.ones((2, 3)), np.float16)
    assert row.inputs[1] is np.float16 and row.flops
