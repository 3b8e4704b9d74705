"""`store="circular"`: layers in the order of a pipeline's stages, and all that reads them."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from stack.blocks import KEY, Uses, dense, equal, same

import liftax as nn
from liftax.cli import main
from liftax.core.lift.schedule import Groups
from liftax.errors import PipelineError, StackError, StackingError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = jax.random.normal(jax.random.key(3), (16, 32))
RUN = nn.Pipeline(4, 8, 2)
SENT = re.compile(
    r"= (\w+\[[\d,]*\])\S* (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)"
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        count = self.variable("batch_stats", "n", lambda: jnp.zeros((), jnp.int32))
        if self.is_mutable_collection("batch_stats") and not self.is_initializing():
            count.value += 1
        self.sow("intermediates", "mean", x.mean())
        return x + dense(x.shape[-1])(nn.tanh(x))


STACK = nn.Stack(Block(), depth=16, run=RUN)
CIRCULAR = STACK.clone(store="circular")


@pytest.fixture(scope="module")
def variables():
    """Of the same layers, in the order in which they run and by stages."""
    return jax.jit(STACK.init)(KEY, X), jax.jit(CIRCULAR.init)(KEY, X)


def circular(variables):
    return nn.to_stacked(nn.to_layers(variables, STACK), CIRCULAR)


def test_rows_are_those_of_stages(variables):
    running, stored = variables
    kernel = running["params"]["block_0"]["Dense_0"]["kernel"]
    rows = [0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15]
    assert Groups(4, 2).rows(16) == rows
    equal(stored["params"]["circular_4x2_0"]["Dense_0"]["kernel"], kernel[jnp.asarray(rows)])
    equal(circular(running), stored)
    equal(nn.to_layers(stored, CIRCULAR), nn.to_layers(running, STACK))
    bound = CIRCULAR.bind(stored)
    equal(bound[8].variables["params"], STACK.bind(running)[8].variables["params"])


@pytest.mark.parametrize("bubbles", ["stop", "nan"])
def test_the_same_bits_and_gradients(variables, bubbles):
    running, stored = variables
    way = dataclasses.replace(RUN, bubbles=bubbles)

    def run(stack):
        def loss(variables):
            with nn.override_stacks(run=way):
                y, new = stack.apply(variables, X, mutable=["batch_stats", "intermediates"])
            return jnp.sin(y).sum(), (y, new)

        return jax.jit(jax.value_and_grad(loss, has_aux=True, allow_int=True))

    (value, (y, new)), grads = run(STACK)(running)
    (found, (mine, changed)), slopes = run(CIRCULAR)(stored)
    equal((found, mine), (value, y))
    equal(changed, circular(new))
    equal(slopes["params"], circular(grads)["params"])
    # And in any other way, one layer after the other.
    with nn.override_stacks(run=nn.Pipeline(2, 8)):
        same(CIRCULAR.apply(stored, X), y)
    x, bound = X, CIRCULAR.bind(stored)
    for layer in bound[:9]:
        x = layer(x)
    same(bound.run_layers(X, layers=9), x)


def test_frozen_layers_a_pattern_and_what_is_shared():
    tied = dense(4)
    x = X[:8, :4]
    stack = nn.Stack(
        [Uses(tied), Block()], repeats=4, before=[dense(4)], after=[dense(4)], shared=[tied],
        frozen=[1, 4, 9], run=nn.Pipeline(2, 4, 2), metadata_params={nn.PARTITION_NAME: "stage"},
    )  # fmt: skip
    stored = stack.clone(store="circular")
    variables = stack.init(KEY, x)
    mine = stored.init(KEY, x)
    equal(nn.to_layers(mine, stored), nn.to_layers(variables, stack))

    def loss(params):
        return jnp.sin(stored.apply({**mine, "params": params}, x)).sum()

    # By stages as they are, and in the order in which they run.
    found = jax.jit(jax.grad(loss))(mine["params"])
    with nn.override_stacks(run="scan"):
        expected = jax.jit(lambda params: jax.grad(loss)(params))(mine["params"])
    same(found, expected, rtol=1e-4, atol=1e-5)
    norms = nn.layer_norms(found, stored)["/"]
    assert [i for i, norm in enumerate(norms) if norm == 0] == [1, 4, 9]


def test_boxes_and_another_axis():
    class Boxed(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.uniform(0.8), (None, "model"))
            return nn.tanh(nn.Dense(4, kernel_init=init)(x))

    x = X[:, :4]
    stack = nn.Stack(
        Boxed(), depth=4, param_axis=-1, run=nn.Pipeline(2, 4, 2),
        metadata_params={nn.PARTITION_NAME: "stage"},
    )  # fmt: skip
    stored = stack.clone(store="circular")
    variables, mine = stack.init(KEY, x), stored.init(KEY, x)
    kernel = mine["params"]["circular_2x2_0"]["Dense_0"]["kernel"]
    assert kernel.names == (None, "model", "stage")
    equal(nn.to_layers(mine, stored), nn.to_layers(variables, stack))
    equal(stored.apply(mine, x), stack.apply(variables, x))


def test_nothing_of_a_weights_size_is_sent(variables):
    mesh = jax.make_mesh((4, 2), ("stage", "data"), axis_types=(AxisType.Auto,) * 2)
    params = {"params": variables[1]["params"]}

    class Plain(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + dense(x.shape[-1])(nn.tanh(x))

    stack = nn.Stack(Plain(), depth=16, run=RUN, store="circular")

    def loss(variables, x):
        return jnp.sin(stack.apply(variables, x)).sum()

    with nn.override_stacks(run="scan"):
        expected = jax.jit(jax.grad(loss))(params, X)
    with jax.set_mesh(mesh):
        along = NamedSharding(mesh, PartitionSpec("stage"))
        given = jax.device_put((params, X), along)
        # Forward and backward: one microbatch at a time, and nothing of a kernel's size.
        program = jax.jit(jax.grad(loss), out_shardings=along).lower(*given).compile()
        assert set(SENT.findall(program.as_text())) == {("f32[1,2,32]", "collective-permute")}
        same(program(*given), expected, rtol=1e-4, atol=1e-5)


def test_each_device_makes_its_own_layers():
    """By stages they are no more than in any other order: none is sent, none made for another."""
    x = jnp.ones((8, 16))
    mesh = jax.make_mesh((4, 2), ("stage", "data"), axis_types=(AxisType.Auto,) * 2)
    stack = nn.Stack(dense(16), depth=16, run=RUN, store="circular")
    with jax.set_mesh(mesh):
        along = NamedSharding(mesh, PartitionSpec("stage"))
        program = jax.jit(stack.init, out_shardings=along).lower(KEY, x).compile()
        assert not SENT.findall(program.as_text()) and "f32[16,16,16]" not in program.as_text()
        equal(program(KEY, x), jax.jit(stack.init)(KEY, x))


def test_layers_are_edited_and_measured_in_the_order_in_which_they_run(variables):
    running, stored = variables
    edit = nn.edit_layers(stored, CIRCULAR).move(0, 9).drop(1, 2, 3, 4, 5, 6, 7, 8)
    other = nn.edit_layers(running, STACK).move(0, 9).drop(1, 2, 3, 4, 5, 6, 7, 8)
    assert edit.depth == 8
    fewer = [stack.clone(depth=8, repeats=None) for stack in (CIRCULAR, STACK)]
    equal(nn.to_layers(edit.variables, fewer[0]), nn.to_layers(other.variables, fewer[1]))
    with pytest.raises(StackingError, match="15 layers cannot be stored by 4 stages and 2 repeats"):
        _ = nn.edit_layers(stored, CIRCULAR).drop(0).variables

    def numbered(layer, tree):
        return jax.tree.map(lambda w: w + layer.index, tree)

    made = nn.map_layers(numbered, stored["params"], layout=CIRCULAR)
    expected = nn.map_layers(numbered, running["params"], layout=STACK)
    equal(made, circular(expected))
    updates = []
    for s, params in ((CIRCULAR, stored["params"]), (STACK, running["params"])):
        tx = nn.per_layer(optax.scale_by_trust_ratio(), s)
        updates.append(nn.to_layers(tx.update(params, tx.init(params), params)[0], s))
    same(*updates)
    norms = [nn.layer_norms(v, s) for v, s in ((stored, CIRCULAR), (running, STACK))]
    same(*norms)


def test_the_layout(variables):
    layout = nn.layout(CIRCULAR, KEY, X)
    row = layout["params/circular_4x2_0/Dense_0/kernel"]
    assert [(a.size, a.label) for a in row.axes] == [(16, "stack"), (32, "in"), (32, "out")]
    assert row.layer == "Dense"
    (lift,) = layout.lifts
    assert (lift.path, lift.staged.stages) == (("circular_4x2_0",), 4)
    assert {m.path for m in layout.modules} == {
        (),
        ("circular_4x2_0",),
        ("circular_4x2_0", "Dense_0"),
    }
    again = type(layout).from_dict(layout.to_dict())
    assert (again.lifts, again.stacks) == (layout.lifts, layout.stacks)
    # What is said of each layer is said in the order in which they run.
    plain = nn.layout(STACK, KEY, X).with_values(variables[0])
    name = "params/{}_0/Dense_0/kernel"
    found = layout.with_values(variables[1])[name.format("circular_4x2")].per_layer
    assert found == plain[name.format("block")].per_layer
    (stack,) = layout.stacks
    assert nn.StackLayout.of_node(stack) == CIRCULAR.layout()
    equal(nn.to_layers(variables[1], layout), nn.to_layers(variables[0], STACK))
    for other, forms in (
        (STACK, ("circular", "stacked")),
        (STACK.clone(store="layers"), ("stacked", "layers")),
    ):
        (found,) = nn.layout_diff(CIRCULAR, other, KEY, X)
        assert (found.kind, found.a, found.b) == ("storage", *forms)


def test_around_another_stack_and_within_other_lifts():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            inner = nn.Stack(nn.Dense(4), depth=2, parent=None)
            outer = nn.Stack(inner, depth=4, run=nn.Pipeline(2, 4, 2), store="circular", name="net")
            return over(outer, x)

    def call(stack, x):
        return stack(x)

    roles = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    over = nn.vmap(call, in_axes=None, axis_size=3, **roles)
    x = jax.ShapeDtypeStruct((8, 4), "float32")
    shapes, layout = jax.eval_shape(Model().init, KEY, x), nn.layout(Model(), KEY, x)
    kernel = shapes["params"]["net"]["circular_2x2_0"]["block_0"]["kernel"]
    assert kernel.shape == (3, 4, 2, 4, 4)
    labels = [a.label for a in layout["params/net/circular_2x2_0/block_0/kernel"].axes]
    assert labels == ["vmap", "stack", "stack", "in", "out"]
    layers = nn.to_layers(shapes, layout)
    assert layers["params"]["net"]["layers_3"]["layers_1"]["kernel"].shape == (3, 4, 4)
    equal_shapes = jax.tree.map(lambda a, b: a == b, nn.to_stacked(layers, layout), shapes)
    assert jax.tree.all(equal_shapes)
    assert jax.eval_shape(Model().apply, shapes, x).shape == (3, 8, 4)


def test_files_say_the_order(variables, tmp_path):
    running, stored = variables
    file, apart, again = (tmp_path / f"{name}.safetensors" for name in ("a", "b", "c"))
    nn.save_checkpoint(file, stored, layout=CIRCULAR)
    equal(nn.load_checkpoint(file), stored)
    equal(nn.load_checkpoint(file, layout=STACK, form="stacked"), running)
    assert main(["convert", str(file), str(apart), "--layout", "layers"]) == 0
    equal(nn.load_checkpoint(apart), nn.to_layers(running, STACK))
    assert main(["convert", str(apart), str(again), "--layout", "stacked"]) == 0
    equal(nn.load_checkpoint(again), stored)
    nn.save_checkpoint(file, running, layout=STACK)
    equal(nn.load_checkpoint(file, layout=CIRCULAR, form="stacked"), stored)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: STACK.clone(store="circular", run="scan"), "found run='scan', expected run=Pipe"),
        (lambda: CIRCULAR.clone(depth=12, repeats=None), "found: 12 repeats of the pattern"),
    ],
)
def test_declarations_that_contradict_themselves(make, words):
    with pytest.raises((StackError, PipelineError), match=words):
        make()


def test_variables_of_another_storage_are_told(variables):
    running, stored = variables

    def refused(stack, variables, words):
        with pytest.raises(StackError, match=words):
            stack.apply(variables, X)

    refused(CIRCULAR, running, "stored stacked, and the stack has store='circular'")
    refused(STACK, stored, "stored by the stages of a pipeline, and the stack has store='stacked'")
    refused(CIRCULAR.clone(run=nn.Pipeline(2, 8, 4)), stored, "in the order of other stages")
    refused(CIRCULAR.clone(depth=24, repeats=None), stored, "another number of layers")
    refused(CIRCULAR, nn.to_layers(stored, CIRCULAR), "stored by layers")
