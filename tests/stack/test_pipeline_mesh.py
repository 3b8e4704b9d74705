"""A pipeline on eight devices: what the compiled program sends, and that the result is the same."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from stack.blocks import KEY, dense, same

import liftax as nn
from liftax.errors import PipelineError

X = jax.random.normal(jax.random.key(3), (16, 32))
SENT = re.compile(
    r"= (\w+\[[\d,]*\])\S* (all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter)"
)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + dense(x.shape[-1])(nn.tanh(x))


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


def test_the_axis_of_the_stages_is_one_that_jax_splits():
    mesh = jax.make_mesh((4, 2), ("stage", "data"))
    stack = nn.Stack(Block(), depth=4, run=nn.Pipeline(4, 8))
    variables = stack.init(KEY, X)
    with jax.set_mesh(mesh), pytest.raises(PipelineError, match="axis 'stage' .* is Explicit"):
        stack.apply(variables, X)
