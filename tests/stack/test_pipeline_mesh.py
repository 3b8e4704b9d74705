"""A pipeline on eight devices: what the compiled program sends, and that the result is the same."""

import re

import jax
import jax.numpy as jnp
import pytest
from helpers.quick import quickly
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from stack.blocks import KEY, dense, equal, same, spread

import liftax as nn
from liftax.errors import PipelineError

X = jax.random.normal(jax.random.key(3), (16, 32))
TO = jax.random.normal(jax.random.key(4), (16, 4))
HEAD = jax.random.normal(jax.random.key(5), (32, 4))
KINDS = "all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"
SENT = re.compile(rf"= (\w+\[[\d,]*\])\S* ({KINDS})")


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + dense(x.shape[-1])(nn.tanh(x))


@quickly()
def test_only_permutes_between_neighbours():
    mesh = jax.make_mesh((4, 2), ("stage", "data"), axis_types=(AxisType.Auto,) * 2)
    stack = nn.Stack(Block(), depth=4, run=nn.Pipeline(4, 8))
    variables = stack.init(KEY, X)

    def loss(variables, x):
        return jnp.sin(stack.apply(variables, x)).sum()

    expected = jax.jit(jax.grad(loss))(variables, X)
    with jax.set_mesh(mesh):
        along = NamedSharding(mesh, PartitionSpec("stage"))
        given = jax.device_put((variables, X), along)
        program = jax.jit(jax.grad(loss), out_shardings=along).lower(*given).compile()
        same(program(*given), expected, rtol=1e-4, atol=1e-5)
    # One microbatch at a time goes to a neighbour, and nothing else goes anywhere.
    text = program.as_text()
    found = set(SENT.findall(text))
    assert found == {("f32[1,2,32]", "collective-permute")}
    assert 'known_trip_count":{"n":"11"' in text


def distance(y, to, head):
    return jnp.mean((y @ head - to) ** 2)


def test_forward_and_backward_in_one_loop_send_microbatches_to_neighbours():
    """And nothing of the batch or of what the loss takes is gathered."""
    stack = nn.Stack(Block(), depth=8, run=nn.Pipeline(4, 8, 2), store="circular")
    step = nn.pipeline_value_and_grad(stack, distance, argnums=(0, 1, 2, 3), whole=3)
    variables = jax.jit(stack.init)(KEY, X)
    expected = jax.jit(step)(variables, X, TO, HEAD)
    with spread(4) as mesh:
        along, whole = (NamedSharding(mesh, PartitionSpec(*name)) for name in (["stage"], []))
        given = *jax.device_put((variables, X, TO), along), jax.device_put(HEAD, whole)
        out = whole, (along, along, along, whole)
        program = jax.jit(step, out_shardings=out).lower(*given).compile()
        same(program(*given), expected, rtol=1e-4, atol=1e-5)
    sent = {}
    for shapes, kind in re.findall(rf"= (.*?) ({KINDS})(?:-start)?\(", program.as_text()):
        sent.setdefault(kind, set()).update(re.findall(r"\w+\[[\d,]*\]", shapes))
    # What is summed, once after the loop, is in the last stage alone, and wanted everywhere.
    assert sent.pop("all-reduce") <= {"f32[]", "f32[32,4]"}
    assert sent == {"collective-permute": {"f32[1,2,32]", "f32[1,2,4]"}}


def test_the_rows_of_a_microbatch_are_shared_by_the_devices_of_a_stage():
    mesh = jax.make_mesh((2, 2), ("stage", "data"), (AxisType.Auto,) * 2, devices=jax.devices()[:4])
    stack = nn.Stack(Block(), depth=2, run=nn.Pipeline(2, 2, rows="data"))
    variables = jax.jit(stack.init)(KEY, X)
    expected = jax.jit(stack.apply)(variables, X)
    with jax.set_mesh(mesh):
        x = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        program = jax.jit(stack.apply, out_shardings=x.sharding).lower(variables, x).compile()
        equal(program(variables, x), expected)
    # A microbatch has eight rows, of which a device multiplies four.
    assert set(re.findall(r"= (\S*?){\S* dot\(", program.as_text())) == {"f32[4,32]"}


class Scaled(nn.Module):
    @nn.compact
    def __call__(self, x, scale):
        return x + scale * dense(x.shape[-1])(nn.tanh(x))


def value_and_grads(kind, run):
    """Of a stack on a mesh of one kind of axes: what comes out, and the gradients by all."""
    mesh = jax.make_mesh((2, 4), ("stage", "data"), axis_types=(kind,) * 2)
    stack = nn.Stack(Scaled(), depth=4, run=run)
    variables = jax.jit(stack.init)(KEY, X, 1.0)

    def loss(variables, x, scale):
        y = stack.apply(variables, x, scale)
        return jnp.sin(y).sum(), y

    with jax.set_mesh(mesh):
        places = [NamedSharding(mesh, PartitionSpec(name)) for name in ("stage", "data")]
        given = jax.device_put(variables, places[0]), jax.device_put(X, places[1]), jnp.ones(32)
        both = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        out = {} if kind == AxisType.Explicit else {"out_shardings": ((None, places[1]), None)}
        ((_, y), grads) = jax.jit(both, **out)(*given)
        if kind == AxisType.Explicit:
            # Without a program around it as well.
            equal(stack.apply(*given), y)
            assert jax.typeof(y).sharding.spec == PartitionSpec("data", None)
            for leaf, slope in zip(*map(jax.tree.leaves, (given, grads)), strict=True):
                assert jax.typeof(leaf) == jax.typeof(slope)
    return y, grads


@pytest.mark.parametrize("repeats", [1, 2], ids=["gpipe", "circular"])
@quickly()
def test_on_explicit_axes_the_bits_are_those_on_automatic_ones(repeats):
    run = nn.Pipeline(2, 4, repeats)
    equal(value_and_grads(AxisType.Explicit, run), value_and_grads(AxisType.Auto, run))


def both_in_one_loop(kind):
    """The loss and the gradients of a loop that runs forward and backward."""
    mesh = jax.make_mesh((2, 4), ("stage", "data"), axis_types=(kind,) * 2)
    stack = nn.Stack(Scaled(), depth=4, run=nn.Pipeline(2, 4, rows="data"))
    variables = jax.jit(stack.init)(KEY, X, 1.0)
    step = nn.pipeline_value_and_grad(stack, distance, argnums=(0, 1, 2, 3), whole=3)
    with jax.set_mesh(mesh):
        stage, data, whole = (
            NamedSharding(mesh, PartitionSpec(*name)) for name in (["stage"], ["data"], [])
        )
        given = jax.device_put((variables, X, TO, HEAD), (stage, data, data, whole))
        out = (
            {}
            if kind == AxisType.Explicit
            else {"out_shardings": (whole, (stage, data, data, whole))}
        )
        found = jax.jit(step, **out)(*given, scale=jnp.ones(32))
        if kind == AxisType.Explicit:
            for leaf, slope in zip(*map(jax.tree.leaves, (given, found[1])), strict=True):
                assert jax.typeof(leaf) == jax.typeof(slope)
    return found


@pytest.mark.usefixtures("compiled_quickly")
def test_on_explicit_axes_forward_and_backward_have_the_bits_of_automatic_ones():
    equal(both_in_one_loop(AxisType.Explicit), both_in_one_loop(AxisType.Auto))


def test_an_array_from_outside_is_of_another_mesh():
    run = nn.Pipeline(4, 8)
    with jax.set_mesh(jax.make_mesh((4, 2), ("stage", "data"))):
        scale = jnp.ones(32)

        class Closes(nn.Module):
            @nn.compact
            def __call__(self, x):
                return Scaled()(x, scale)

        stack = nn.Stack(Closes(), depth=4, run=run)
        variables = jax.eval_shape(stack.init, KEY, X)
        with pytest.raises(PipelineError, match="use an array of the mesh .* not handed to them"):
            jax.eval_shape(stack.apply, variables, X)
        # Handed over, it goes through; as it does where forward and backward are one loop.
        stack = nn.Stack(Scaled(), depth=4, run=run)
        variables = jax.eval_shape(stack.init, KEY, X, scale)
        assert jax.eval_shape(stack.apply, variables, X, scale).shape == X.shape
        step = nn.pipeline_value_and_grad(stack, lambda y: (y**2).mean())
        _, grads = jax.eval_shape(step, variables, X, scale=scale)
        assert jax.tree.map(jnp.shape, grads) == jax.tree.map(jnp.shape, variables)
