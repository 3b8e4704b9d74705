"""Loss and gradients in one loop: those of all forward and then all backward, in less memory."""

import jax
import jax.numpy as jnp
import pytest
from stack.blocks import KEY, Residual, Uses, dense, same, spread

import liftax as nn
from liftax.errors import PipelineError

pytestmark = pytest.mark.usefixtures("compiled_quickly")

X = jax.random.normal(jax.random.key(3), (16, 4))
TO = jax.random.normal(jax.random.key(4), (16, 2))
HEAD = jax.random.normal(jax.random.key(5), (4, 2))


def loss(y, to, head):
    return jnp.mean((y @ head - to) ** 2)


@pytest.mark.parametrize("devices", [1, 4])
def test_memory_does_not_grow_with_the_microbatches(devices):
    def temporary(schedule, microbatches):
        x = jnp.ones((4 * microbatches, 64))
        stack = nn.Stack(dense(64), depth=4, run=nn.Pipeline(4, microbatches))
        step = jax.jit(
            nn.pipeline_value_and_grad(stack, lambda y, to: jnp.mean((y - to) ** 2), schedule)
        )
        variables = jax.eval_shape(stack.init, KEY, x)
        with spread(devices):
            program = step.lower(variables, x, x).compile()
        return program.memory_analysis().temp_size_in_bytes

    few, many = (temporary("1f1b", n) for n in (8, 64))
    assert many < 1.1 * few
    if devices == 4:
        assert temporary("gpipe", 64) > 2 * many


def check_gpipe(stack, devices):
    """On several devices, and on one, where forward and backward take turns."""
    variables = stack.init(KEY, X)
    found = []
    for schedule, count in (("gpipe", 1), ("1f1b", devices), ("1f1b", 1)):
        step = nn.pipeline_value_and_grad(stack, loss, schedule, argnums=(0, 1, 2, 3), whole=3)
        with spread(count):
            found.append(jax.jit(step)(variables, X, TO, HEAD, rngs={"dropout": KEY}))
    for other in found[1:]:
        same(other, found[0], rtol=1e-4, atol=1e-6)


@pytest.mark.usefixtures("compiled_quickly")
def test_the_loss_and_gradients_of_gpipe():
    """Also of microbatches that are no multiple of the stages."""
    check_gpipe(nn.Stack(Residual(), depth=3, run=nn.Pipeline(3, 4)), 3)


@pytest.mark.usefixtures("compiled_quickly")
def test_around_and_back_around():
    """Shared weights, keys for each layer and microbatch, layers before; two repeats, and two
    stages on a device."""
    tied, run = dense(4), nn.Pipeline(4, 4, 2)
    check_gpipe(nn.Stack(
        [Uses(tied), Residual(0.2)], repeats=8, before=[dense(4)], run=run, shared=[tied],
        store="circular",
    ), 2)  # fmt: skip


@pytest.mark.parametrize(("stages", "repeats"), [(2, 1), (4, 1), (2, 2)])
def test_a_stage_keeps_as_many_as_there_are_steps_there_and_back(stages, repeats):
    """`2 * stages * repeats - 1` inputs, and in each step of the loop one more comes in."""
    stack = nn.Stack(dense(4), depth=4, run=nn.Pipeline(stages, 8, repeats))
    ring, steps = 2 * stages * repeats - 1, 8 * repeats + stages * repeats + stages - 2
    step = nn.pipeline_value_and_grad(stack, lambda y: y.sum())
    variables = jax.eval_shape(stack.init, KEY, X)
    with spread(stages):
        program = jax.make_jaxpr(step)(variables, X).jaxpr
    (scan,) = [
        eqn for eqn in every_equation(program)
        if eqn.primitive.name == "scan" and eqn.params["length"] == steps
    ]  # fmt: skip
    found = [v.aval.shape for v in scan.outvars if v.aval.shape[2:] == (2, 4)]
    assert (stages, ring, 2, 4) in found and stack.run.ring == ring
    # What else there is of all microbatches, the derivatives by x, lies on all stages.
    assert all(shape[1] <= max(ring, 8 // stages) for shape in found)


def every_equation(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for value in eqn.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from every_equation(inner)


def test_what_it_does_not_take():
    stack = nn.Stack(Residual(), depth=4, run=nn.Pipeline(2, 4))
    variables = stack.init(KEY, X)

    def refused(words, stack=stack, schedule="1f1b", loss=lambda y: y.sum(), args=(), **options):
        with pytest.raises(PipelineError, match=words):
            nn.pipeline_value_and_grad(stack, loss, schedule, **options)(variables, X, *args)

    refused("schedule expected '1f1b' or 'gpipe'; found 'zb'", schedule="zb")
    refused("expected a Stack; found", stack=dense(4))
    refused("run=Pipeline", stack=stack.clone(run="scan"))
    refused("found delay=2; expected 1", stack=stack.clone(run=nn.Pipeline(2, 4, delay=2)))
    refused("a multiple of 2 microbatches", stack=stack.clone(run=nn.Pipeline(2, 5, 2)))
    refused("with after=", stack=stack.clone(after=[dense(4)]))
    refused("return one number", loss=lambda y: y)
    refused("cut into 4 microbatches", loss=lambda y, to: y.sum(), args=(jnp.ones(3),))
    refused("names the variables", whole=1)
