"""A pipeline equals the loop over microbatches: values, gradients, keys, statistics, outputs.

On one device it is that loop, but with `bubbles="nan"`; with a device for each stage it is none.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from helpers.quick import FUSED, quickly
from hypothesis import given, settings
from hypothesis import strategies as st
from stack.blocks import KEY, Calls, Uses, dense, equal, same, spread

import liftax as nn
from liftax import equations
from liftax.errors import MicrobatchError, PipelineError

X = jax.random.normal(jax.random.key(3), (12, 4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + dense(x.shape[-1])(nn.tanh(nn.LayerNorm()(x)))


def loop(stack, microbatches):
    """What a pipeline equals."""

    def run(variables, x):
        parts = x.reshape(microbatches, -1, *x.shape[1:])
        return jax.lax.map(lambda part: stack.apply(variables, part), parts).reshape(x.shape)

    return run


def value_and_grads(fn, variables, x):
    def loss(variables, x):
        y = fn(variables, x)
        return jnp.sum(jnp.sin(y)), y

    both = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
    return jax.jit(both, compiler_options=FUSED)(variables, x)


SHAPES = [(4, 6, 1, 2, 1), (2, 6, 2, 1, 2)]


def check_loop(stages, microbatches, repeats, layers, delay):
    calls = Calls()

    class Counted(Block):
        @nn.compact
        def __call__(self, x):
            calls.n += 1
            return x + dense(x.shape[-1])(nn.tanh(nn.LayerNorm()(x)))

    stack = nn.Stack(Counted(), depth=stages * repeats * layers)
    variables = stack.init(KEY, X)
    (_, y), grads = value_and_grads(loop(stack, microbatches), variables, X)
    for bubbles, devices in (("stop", stages), ("nan", 1)):
        run = nn.Pipeline(stages, microbatches, repeats, bubbles=bubbles, delay=delay)
        piped = stack.clone(run=run)
        calls.n = 0
        with spread(devices):
            (_, found), slopes = value_and_grads(piped.apply, variables, X)
        assert calls.n == 1
        # In the other mode the compiler fuses otherwise; what comes out is no NaN.
        (equal if bubbles == "stop" else same)(found, y)
        # Sums of twelve rows of up to 30 each, some of which cancel out.
        same(slopes, grads, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_loop(shape):
    check_loop(*shape)


@settings(max_examples=3, deadline=None)
@given(st.data())
def test_any_stages_microbatches_repeats_and_layers(data):
    stages, repeats = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    layers, delay = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    least = stages * delay if repeats > 1 else 1
    parts = data.draw(st.sampled_from([n for n in (1, 2, 3, 4, 6, 12) if n >= least]))
    stack = nn.Stack(Block(), depth=stages * repeats * layers)
    variables = stack.init(KEY, X)
    piped = stack.clone(run=nn.Pipeline(stages, parts, repeats, delay=delay))
    expected = jax.jit(loop(stack, parts), compiler_options=FUSED)(variables, X)
    for devices in (1, stages):
        with spread(devices):
            equal(jax.jit(piped.apply, compiler_options=FUSED)(variables, X), expected)


def test_steps_and_bubbles():
    run = nn.Pipeline(stages=4, microbatches=16, repeats=4)
    assert (run.steps, run.bubble) == (67, 3 / 67)
    assert nn.Pipeline(4, 16, delay=2).steps == 22
    assert hash(nn.Pipeline(4, 16, microbatched={"cache": 0})) is not None


def loops_and_products(run, devices=1):
    """Of a gradient: the lengths of its outermost loops, and the axes along which it has several
    products at once."""
    stack = nn.Stack(Block(), depth=8, run=run)
    variables = jax.eval_shape(stack.init, KEY, X)
    fn = loop(stack, 6) if run == "scan" else stack.apply
    with spread(devices):
        program = jax.make_jaxpr(jax.grad(lambda v: fn(v, X).sum()))(variables).jaxpr
    loops = [e.params["length"] for e in program.eqns if e.primitive.name == "scan"]
    products = [e for e in equations.all_of(program) if e.primitive.name == "dot_general"]
    return loops, {e.params["dimension_numbers"][1] for e in products}


def test_the_program_has_one_loop_of_that_many_steps():
    run = nn.Pipeline(2, 6, 2)
    for found in (
        loops_and_products(run, devices=2),
        loops_and_products(dataclasses.replace(run, bubbles="nan")),
    ):
        assert found == ([13, 13], {((0,), (0,))})


def test_on_one_device_it_is_the_loop_over_microbatches():
    """A bubble would be computed for nothing, and a product of several is slower than several."""
    loops, products = loops_and_products(nn.Pipeline(2, 6, 2))
    assert (loops, products) == loops_and_products("scan")
    assert 13 not in loops and products == {((), ())}


def test_initial_values_are_those_of_a_scan():
    stack = nn.Stack([Block(), Block()], repeats=4, before=[Block()])
    piped = stack.clone(run=nn.Pipeline(4, 3))
    equal(jax.jit(piped.init)(KEY, X), jax.jit(stack.init)(KEY, X))
    equal(piped.init(KEY, X), stack.init(KEY, X))


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False, momentum=0.9)(x)
        self.sow("intermediates", "mean", x[:, 0])
        return x + nn.Dropout(0.3, deterministic=False)(dense(x.shape[-1])(x))


@pytest.mark.parametrize("splits", [{}, {"dropout": False}])
@quickly()
def test_keys_statistics_and_what_is_sown(splits):
    stack = nn.Stack(Normed(), depth=4, split_rngs=splits)
    variables = stack.init({"params": KEY, "dropout": KEY}, X)

    @functools.partial(jax.jit, static_argnums=0)
    def apply(stack, variables, x, key):
        mutable = ["batch_stats", "intermediates"]
        return stack.apply(variables, x, rngs={"dropout": key}, mutable=mutable)

    ys, sown, now = [], [], variables
    for m, x in enumerate(jnp.split(X, 6)):
        y, new = apply(stack, now, x, jax.random.fold_in(KEY, m))
        now = {**now, "batch_stats": new["batch_stats"]}
        ys.append(y)
        sown.append(new["intermediates"])
    for run in (nn.Pipeline(2, 6, 2, bubbles="nan"), nn.Pipeline(4, 6)):
        y, new = apply(stack.clone(run=run), variables, X, KEY)
        same(y, jnp.concatenate(ys))
        same(new["batch_stats"], now["batch_stats"])
        same(new["intermediates"], jax.tree.map(lambda *parts: jnp.stack(parts, 1), *sown))


class Attends(nn.Module):
    """Takes arguments of every kind, and returns outputs."""

    @nn.compact
    def __call__(self, x, rate, scale, *, context=None):
        h = dense(x.shape[-1])(x)
        return x + rate[:, None] * h * scale + context.sum(0)[:, None], {"h": h, "mean": h.mean()}


@quickly()
def test_arguments_and_outputs():
    stack = nn.Stack(Attends(), depth=4, outputs=True, per_layer=["rate"])
    rate, scale = jax.random.uniform(KEY, (4, 12)), jnp.full(4, 0.5)
    context = jax.random.normal(KEY, (3, 12))
    variables = stack.init(KEY, X, rate, scale, context=context)
    parts = [
        stack.apply(variables, X[at], rate[:, at], scale, context=context[:, at])
        for at in (slice(i, i + 3) for i in range(0, 12, 3))
    ]
    for bubbles in ("stop", "nan"):
        declared = {"rate": 0, "context": 1}
        piped = stack.clone(run=nn.Pipeline(2, 4, 2, microbatched=declared, bubbles=bubbles))
        y, ys = piped.apply(variables, X, rate, scale, context=context)
        same(y, jnp.concatenate([part for part, _ in parts]))
        same(ys, jax.tree.map(lambda *parts: jnp.stack(parts, 1), *[ys for _, ys in parts]))

    def without(**microbatched):
        run = nn.Pipeline(2, 4, 2, microbatched=microbatched)
        return stack.clone(run=run).apply(variables, X, rate, scale, context=context)

    with pytest.raises(MicrobatchError, match="whether argument 'rate' has a batch"):
        without(context=1)
    with pytest.raises(PipelineError, match="argument 'context' is no batch as long as"):
        without(rate=0, context=0)


class Remembers(nn.Module):
    @nn.compact
    def __call__(self, x):
        memory = self.variable("memory", "sum", lambda: jnp.zeros(x.shape))
        count = self.variable("count", "n", lambda: jnp.zeros((), jnp.int32))
        memory.value += x
        count.value += 1
        return nn.tanh(dense(x.shape[-1])(x)) + memory.value


@quickly()
def test_collections_with_a_batch():
    stack = nn.Stack(Remembers(), depth=4)
    variables = stack.init(KEY, X)
    y, after = stack.apply(variables, X, mutable=["memory", "count"])
    for bubbles in ("stop", "nan"):
        run = nn.Pipeline(2, 4, 2, microbatched={"memory": 0, "count": None}, bubbles=bubbles)
        found, new = stack.clone(run=run).apply(variables, X, mutable=["memory", "count"])
        same((found, new["memory"]), (y, after["memory"]))
        # One for each microbatch, and one of init.
        assert new["count"]["block_0"]["n"].tolist() == [5] * 4
    with pytest.raises(MicrobatchError, match="whether the variables of collection 'count'"):
        stack.clone(run=nn.Pipeline(2, 4)).apply(variables, X, mutable=["memory"])


@quickly()
def test_carried_collections_go_with_their_microbatch():
    stack = nn.Stack(Remembers(), depth=4, variable_carry="memory")
    variables, mutable = stack.init(KEY, X), ["memory", "count"]
    expected, after = stack.apply(variables, X, mutable=mutable)
    for bubbles in ("stop", "nan"):
        run = nn.Pipeline(2, 4, microbatched={"memory": 0, "count": None}, bubbles=bubbles)
        y, new = stack.clone(run=run).apply(variables, X, mutable=mutable)
        same((y, new["memory"]), (expected, after["memory"]))
    with pytest.raises(MicrobatchError, match="hands variable memory/.* to the next"):
        run = nn.Pipeline(2, 4, microbatched={"count": None})
        stack.clone(run=run).apply(variables, X, mutable=mutable)


@pytest.mark.parametrize(
    ("bubbles", "remat"),
    [("nan", None), *((b, nn.Remat(every=2, nested=True)) for b in ("nan", "stop"))],
)
@quickly()
def test_what_is_recomputed(bubbles, remat):
    stack = nn.Stack([Block(), Block()], repeats=4, before=[Block()])
    variables = stack.init(KEY, X)
    piped = stack.clone(run=nn.Pipeline(2, 4, bubbles=bubbles), remat=remat)
    same(
        value_and_grads(piped.apply, variables, X),
        value_and_grads(stack.apply, variables, X),
        rtol=1e-4,
        atol=1e-5,
    )


@quickly()
def test_shared_weights_storage_and_frozen_layers():
    tied = nn.Dense(4)
    for stack, modes in (
        (nn.Stack(Uses(tied), depth=4, shared=[tied]), ("nan", "stop")),
        (nn.Stack(Block(), depth=4, store="layers", frozen=[1]), ("nan",)),
    ):
        variables = stack.init(KEY, X)
        expected = value_and_grads(lambda v, x, s=stack: s.apply(v, x), variables, X)
        for bubbles in modes:
            with nn.override_stacks(run=nn.Pipeline(2, 4, 2, bubbles=bubbles)):
                found = value_and_grads(lambda v, x, s=stack: s.apply(v, x), variables, X)
            same(found, expected, rtol=1e-4, atol=1e-5)


@quickly()
def test_forward_derivatives_and_vmap():
    stack = nn.Stack(Block(), depth=4)
    variables = stack.init(KEY, X)
    piped = stack.clone(run=nn.Pipeline(4, 6, bubbles="nan"))
    both = jnp.stack([X, X + 1])
    same(*[jax.vmap(s.apply, (None, 0))(variables, both) for s in (piped, stack)])
    same(*[jax.jvp(lambda x, s=s: s.apply(variables, x), (X,), (X,)) for s in (piped, stack)])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stages": 0}, "stages expected an int, 1 or more; found 0"),
        ({"microbatches": 2.5}, "microbatches expected an int"),
        ({"rows": ["data"]}, r"rows expected the name .* found \(?\['data'\]"),
        ({"bubbles": "zero"}, "bubbles expected 'stop' or 'nan'; found 'zero'"),
        ({"axis": 1}, "axis expected the name of an axis of the mesh"),
        ({"microbatched": "cache"}, "microbatched expected a mapping"),
        ({"microbatched": {"cache": "batch"}}, r"microbatched\['cache'\] expected an axis"),
        ({"microbatches": 2, "repeats": 2}, "at least 4 microbatches, or repeats=1"),
    ],
)
def test_options_that_mean_nothing(options, words):
    with pytest.raises(PipelineError, match=words):
        nn.Pipeline(**{"stages": 4, "microbatches": 8, **options})


@quickly()
def test_layers_and_batches_that_do_not_come_out_even():
    stack = nn.Stack(Block(), depth=6)
    variables = stack.init(KEY, X)
    with pytest.raises(PipelineError, match="found: 6 repeats of the pattern, stages=4"):
        stack.clone(run=nn.Pipeline(4, 2)).apply(variables, X)
    with pytest.raises(PipelineError, match=r"float32\[12, 4\], with its batch along axis 0"):
        stack.clone(run=nn.Pipeline(3, 5)).apply(variables, X)


@quickly()
def test_memory_does_not_grow_with_what_a_step_takes_of_the_weights():
    """Of the layers' own a step takes another part each time, and none of them is stored."""
    stack = nn.Stack(dense(64), depth=4)
    x = jnp.ones((16, 64))
    variables = stack.init(KEY, x)

    def temporary(microbatches, bubbles):
        piped = stack.clone(run=nn.Pipeline(2, microbatches, 2, bubbles=bubbles))
        grad = jax.jit(jax.grad(lambda v: piped.apply(v, x).sum()))
        return grad.lower(variables).compile().memory_analysis().temp_size_in_bytes

    for bubbles in ("nan", "stop"):
        assert temporary(16, bubbles) - temporary(4, bubbles) < 64 * 64 * 4 * 2


@quickly()
def test_a_stack_in_a_stage_is_a_scan():
    stack = nn.Stack(nn.Stack(Block(), depth=2), depth=2)
    variables = stack.init(KEY, X)
    with nn.override_stacks(run=nn.Pipeline(2, 4)):
        found = stack.apply(variables, X)
    same(found, stack.apply(variables, X))


def test_a_lift_of_its_own():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, rate, scale):
            h = dense(x.shape[-1])(x)
            return x + rate * scale * h, h.mean()

    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    options["in_axes"] = (0, nn.broadcast)
    piped = nn.pipeline(Layer, 2, 4, 2, bubbles="nan", length=4, **options)()
    scanned = nn.scan(Layer, length=4, **options)()
    rates, scale = jnp.arange(4.0), jnp.asarray(0.5)
    variables = scanned.init(KEY, X, rates, scale)
    equal(piped.init(KEY, X, rates, scale), variables)
    y, means = piped.apply(variables, X, rates, scale)
    parts = [scanned.apply(variables, part, rates, scale) for part in jnp.split(X, 4)]
    same(y, jnp.concatenate([part for part, _ in parts]))
    same(means, jnp.stack([mean for _, mean in parts], 1))
    with pytest.raises(PipelineError, match="pipeline of Layer: the layers cannot be cut"):
        nn.pipeline(Layer, 3, 4, length=4, **options)().apply(variables, X, rates, scale)


def test_the_layout_draws_the_stages():
    stack = nn.Stack(Block(), depth=16, run=nn.Pipeline(2, 4, 4))
    layout = nn.layout(stack, KEY, X)
    assert "⇉ 2 stages × 4 along 'stage': [0-1 4-5 8-9 12-13] → [2-3 6-7 10-11 14-15]" in str(
        layout
    )
    assert "4 microbatches in 17 steps, bubble 6%, each stage sends 96 B a step" in str(layout)
    assert not layout.findings and type(layout).from_dict(layout.to_dict()).lifts == layout.lifts
    with nn.override_stacks(run=nn.Pipeline(4, 6)):
        (found,) = nn.layout(stack, KEY, X).findings
    assert (found.code, found.severity) == ("LX910", "warning")
    assert "in 33% of 9 steps" in found.message and "into 9 microbatches or more" in found.message
