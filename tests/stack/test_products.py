"""Remat("products"): what a stack keeps for the backward pass, by shape and dtype."""

import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

DEPTH, BATCH, LENGTH, WIDTH = 3, 2, 16, 8
X = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, WIDTH)).astype(jnp.bfloat16)
RNGS = {"params": jax.random.key(0), "dropout": jax.random.key(2)}
HALF = {"dtype": jnp.bfloat16}

CARRY = f"bfloat16[{BATCH},{LENGTH},{WIDTH}]"
WIDE = f"bfloat16[{BATCH},{LENGTH},{4 * WIDTH}]"
HEADS = f"bfloat16[{BATCH},{LENGTH},2,4]"
VALUES = f"bfloat16[{BATCH},2,4,{LENGTH}]"  # the sum of an attention's values
KEY = "key<fry>[]"


def layer(inner):
    """A residual layer around a function of a module's own layers."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + inner(x)

    return Layer()


def feed_forward(activation, norm=lambda: nn.LayerNorm(**HALF), last=lambda y: y):
    def inner(x):
        y = activation(nn.Dense(4 * WIDTH, **HALF)(norm()(x)))
        return last(nn.Dense(WIDTH, **HALF)(y))

    return layer(inner)


def gated(x):
    y = nn.RMSNorm(**HALF)(x)
    y = nn.silu(nn.Dense(4 * WIDTH, **HALF)(y)) * nn.Dense(4 * WIDTH, **HALF)(y)
    return nn.Dense(WIDTH, **HALF)(y)


def attends(x):
    return nn.MultiHeadDotProductAttention(2, **HALF)(nn.LayerNorm(**HALF)(x))


def both(x):
    x = x + attends(x)
    return gated(x)


def dropped(y):
    return nn.Dropout(0.5, deterministic=False)(y)


KEPT = {
    "relu": (feed_forward(nn.relu), [CARRY, WIDE]),
    "gelu": (feed_forward(nn.gelu), [CARRY, WIDE]),
    "softmax": (feed_forward(nn.softmax), [CARRY, WIDE]),
    "PReLU": (feed_forward(lambda y: nn.PReLU()(y)), [CARRY, WIDE]),
    "RMSNorm": (feed_forward(nn.relu, lambda: nn.RMSNorm(**HALF)), [CARRY, WIDE]),
    "GroupNorm": (feed_forward(nn.relu, lambda: nn.GroupNorm(2, **HALF)), [CARRY, WIDE]),
    "InstanceNorm": (feed_forward(nn.relu, lambda: nn.InstanceNorm(**HALF)), [CARRY, WIDE]),
    "Dropout": (feed_forward(dropped, last=dropped), [CARRY, WIDE, KEY, KEY]),
    "upcast": (feed_forward(lambda y: jnp.sin(y.astype(jnp.float32))), [CARRY, WIDE]),
    "gated": (layer(gated), [CARRY, WIDE, WIDE]),
    "attention": (layer(attends), [CARRY, HEADS, HEADS, HEADS, VALUES]),
    "decoder layer": (layer(both), [CARRY] * 2 + [HEADS] * 3 + [VALUES, WIDE, WIDE]),
    "Conv": (
        layer(lambda x: nn.Conv(WIDTH, (3,), **HALF)(nn.gelu(nn.Conv(WIDTH, (3,), **HALF)(x)))),
        [CARRY, CARRY],
    ),
}


def loss(stack, x=X):
    def of(variables):
        y = stack.apply(variables, x, rngs={"dropout": RNGS["dropout"]})
        return (y.astype(jnp.float32) ** 2).mean()

    return of


def kept(stack, variables):
    """What the forward loop hands to the backward one: its outputs along the axis of layers."""
    program = jax.make_jaxpr(jax.grad(loss(stack)))(variables)
    forward = next(e for e in program.jaxpr.eqns if e.primitive.name == "scan")
    stacked = [v.aval for v in forward.outvars if v.aval.shape[:1] == (DEPTH,)]
    return [jax.core.ShapedArray(a.shape[1:], a.dtype) for a in stacked]


def texts(avals):
    return sorted(f"{a.dtype}[{','.join(map(str, a.shape))}]" for a in avals)


def stack_of(block, **options):
    return nn.Stack(block, depth=DEPTH, **options)


@pytest.mark.parametrize("name", KEPT)
def test_what_is_kept_is_products_and_keys(name):
    block, expected = KEPT[name]
    stack = stack_of(block, remat=nn.Remat("products"))
    variables = jax.eval_shape(stack.init, RNGS, X)
    found = kept(stack, variables)
    assert texts(found) == sorted(expected)
    plain = kept(stack.clone(remat=None), variables)
    assert sum(a.size for a in found) < sum(a.size for a in plain)


def test_scores_are_kept_where_they_are_small():
    """Of a sequence shorter than a head is wide, scores are the smaller thing to keep."""
    stack = stack_of(layer(attends), remat=nn.Remat("products"))
    x = X[:, :2]
    program = jax.make_jaxpr(jax.grad(loss(stack, x)))(stack.init(RNGS, x))
    assert f"bf16[{DEPTH},{BATCH},2,2,2]" in str(program)


@pytest.mark.parametrize("name", ["upcast", "Dropout", "decoder layer", "Conv"])
def test_the_numbers_are_those_of_the_plain_scan(name):
    stack = stack_of(KEPT[name][0], remat=nn.Remat("products"))
    variables, x = stack.init(RNGS, X), X.astype(jnp.float32)
    value, grads = jax.value_and_grad(loss(stack, x))(variables)
    same, as_plain = jax.value_and_grad(loss(stack.clone(remat=None), x))(variables)
    np.testing.assert_allclose(value, same, rtol=1e-2)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(as_plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.1, atol=0.02 * float(jnp.abs(b).max() + 1e-6))


def recomputes(stack, variables):
    program = str(jax.make_jaxpr(stack.apply)(variables, X))
    return "remat" in program or "checkpoint" in program


def test_it_is_what_a_scanned_stack_does_by_itself():
    stack = stack_of(KEPT["gated"][0])
    variables = stack.init(RNGS, X)
    assert texts(kept(stack, variables)) == sorted(KEPT["gated"][1])
    assert recomputes(stack, variables)
    for options in ({"run": "loop"}, {"run": "scan of 2"}, {"remat": None}):
        assert not recomputes(stack.clone(**options), variables)
    with nn.override_stacks(remat="off"):
        assert not recomputes(stack, variables)
    with nn.override_stacks(remat="auto"):
        assert recomputes(stack.clone(remat=None), variables)
    with jax.disable_jit():
        assert stack.apply(variables, X).shape == X.shape


@pytest.mark.parametrize("depth", [4, 5])
def test_groups_keep_products_and_their_borders(depth):
    """Of what lies between the layers of a group, nothing."""
    stack = nn.Stack(KEPT["gated"][0], depth=depth, run="scan of 2")
    found = nn.saved_residuals(stack, jax.eval_shape(stack.init, RNGS, X), X)
    # Of the last turn what comes out is kept once, for the layers that fill no group.
    in_loop = [r for r in found.rows if r.loop is not None and r.dear]
    assert sum(r.loop is not None and not r.dear for r in found.rows) == depth % 2
    assert {r.loops for r in in_loop} == {(2,)}
    assert texts(jax.core.ShapedArray(r.shape[1:], r.dtype) for r in in_loop) == sorted(
        [CARRY, CARRY] + 2 * [WIDE, WIDE]  # what enters, and the last product of the first
    )
    assert not any(r.operation in ("logistic", "rsqrt") for r in found.rows)


def stored_inside(remat):
    """The bytes that loops inside of the backward pass's loop hand on, of one group of four."""
    stack = nn.Stack(KEPT["gelu"][0], depth=8, remat=remat)
    variables = jax.eval_shape(stack.init, RNGS, X)
    program = jax.make_jaxpr(jax.grad(loss(stack)))(variables)

    def scans(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "scan":
                yield eqn
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from scans(inner)

    inner = [e for e in scans(program.jaxpr) if e.params["length"] == 4]
    outs = [v.aval for e in inner for v in e.outvars if v.aval.shape[:1] == (4,)]
    return sum(a.size * a.dtype.itemsize for a in outs)


def test_a_group_is_computed_again_from_its_products():
    """A scan in what is recomputed would store as any scan does."""
    nested, groups = (stored_inside(nn.Remat(every=4, nested=n)) for n in (True, False))
    wide = 4 * BATCH * LENGTH * 4 * WIDTH * 2  # of four layers, in bfloat16
    assert groups <= nested + 2 * wide


def test_a_layer_with_a_loop_of_its_own_keeps_less():
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + nn.RNN(nn.LSTMCell(WIDTH))(nn.LayerNorm()(x))

    x = jnp.ones(X.shape)

    def size(**options):
        stack = stack_of(Layer(), **options)
        program = jax.jit(jax.grad(loss(stack, x))).lower(stack.init(RNGS, x)).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert size() < 0.8 * size(remat=None)


@pytest.mark.parametrize("remat", [None, "auto", nn.Remat(), nn.Remat("products", every=2)])
def test_what_is_computed_again_is_not_printed_again(remat, capfd):
    class Inner(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            jax.debug.print("step {}", carry.sum())
            return carry + x, None

    class Talks(nn.Module):
        @nn.compact
        def __call__(self, x):
            jax.debug.print("layer {}", x.sum(), ordered=True)
            y = nn.Dense(WIDTH)(jnp.sin(x))
            y, _ = nn.scan(Inner, length=2)()(y, jnp.arange(2.0))
            jax.debug.callback(lambda _: print("called"), y)
            return jnp.sin(y)

    stack = nn.Stack(Talks(), depth=4, remat=remat)
    x = jnp.ones((1, WIDTH))
    variables = stack.init(RNGS, x)
    jax.effects_barrier()
    capfd.readouterr()
    jax.jit(jax.grad(lambda v: stack.apply(v, x).sum()))(variables)
    jax.effects_barrier()
    said = capfd.readouterr().out.split("\n")
    starts = [line.split(" ")[0] for line in said]
    assert (starts.count("layer"), starts.count("called"), starts.count("step")) == (4, 4, 8)


def test_a_callback_that_returns_a_value_runs_where_its_value_is_needed():
    class Asks(nn.Module):
        @nn.compact
        def __call__(self, x):
            shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
            return jnp.sin(nn.Dense(WIDTH)(x)) + (
                jax.experimental.io_callback(lambda a: a, shape, jax.lax.stop_gradient(x))
            )

    stack = nn.Stack(Asks(), depth=2)
    x = jnp.ones((1, WIDTH))
    variables = stack.init(RNGS, x)
    grads = jax.jit(jax.grad(lambda v: stack.apply(v, x).sum()))(variables)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
