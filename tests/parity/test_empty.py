"""Loops of no iterations, batches of nothing, and ``unroll=0``: as in Linen."""

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
EACH = {"variable_axes": {"params": 0, "batch_stats": 1}, "split_rngs": {"params": True}}
SHARED = {"variable_broadcast": "params", "split_rngs": {"params": False}}
ONE_SET = {"variable_axes": {"params": None}, "split_rngs": {"params": False}}
NO_BATCH, NO_TIME = jnp.zeros((0, 5, 3)), jnp.zeros((2, 0, 3))


def cases(nn):
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            y = nn.Dense(2)(c)
            return y, y.sum()

    class Normed(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return nn.BatchNorm(use_running_average=False)(c), None

    class Drop(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(2)(x))

    c, nothing, three = jnp.ones((3, 2)), jnp.zeros(0), jnp.ones(3)
    split = {"variable_axes": {"params": 0}, "split_rngs": {"params": True, "dropout": True}}
    carried = {"variable_broadcast": "params", "variable_axes": {"batch_stats": 0}}
    return {
        "length=0": (nn.scan(Layer, length=0, **EACH), c, None),
        "nothing": (nn.scan(Layer, **EACH), c, nothing),
        "nothing, shared": (nn.scan(Layer, **SHARED), c, nothing),
        "nothing, shared, reverse": (nn.scan(Layer, reverse=True, **SHARED), c, nothing),
        "nothing, normed": (nn.scan(Normed, **EACH), c, nothing),
        "nothing, shared and each": (
            nn.scan(Normed, **carried, split_rngs={"params": False}),
            c,
            nothing,
        ),
        "nothing, weak": (nn.scan(Layer, **EACH), jnp.broadcast_to(1.0, (3, 2)), nothing),
        "unroll=0": (nn.scan(Layer, unroll=0, **EACH), c, three),
        "unroll=0, shared": (nn.scan(Layer, unroll=0, **SHARED), c, three),
        "unroll=0, nothing": (nn.scan(Layer, unroll=0, **EACH), c, nothing),
        "vmap": (nn.vmap(Drop, **split), jnp.zeros((0, 2))),
        "vmap, shared": (nn.vmap(nn.Dense, **ONE_SET), jnp.zeros((0, 2))),
        "axis_size=0": (nn.vmap(Drop, **split, in_axes=None, axis_size=0), c),
        "remat": (nn.remat(Drop), jnp.zeros((0, 2))),
        "remat_scan": (nn.remat_scan(nn.Dense, lengths=(0,)), c),
        "remat_scan, outside": (nn.remat_scan(nn.Dense, lengths=(0, 2)), c),
        "remat_scan, inside": (nn.remat_scan(nn.Dense, lengths=(2, 0)), c),
        "RNN, batch": (lambda: nn.RNN(nn.LSTMCell(4)), NO_BATCH),
        "RNN, time": (lambda: nn.RNN(nn.LSTMCell(4), return_carry=True), NO_TIME),
        "RNN, reverse": (lambda: nn.RNN(nn.GRUCell(4), reverse=True, keep_order=True), NO_TIME),
        "attention, batch": (lambda: nn.MultiHeadDotProductAttention(2, qkv_features=4), NO_BATCH),
        "attention, time": (lambda: nn.MultiHeadDotProductAttention(2, qkv_features=4), NO_TIME),
    }


OURS, LINENS = cases(liftax), cases(linen)


@pytest.mark.parametrize("name", OURS)
def test_as_in_linen(name):
    def run(case):
        make, *args = case
        dense = name.startswith(("vmap, shared", "remat_scan"))
        model = make(2) if dense else make()
        y, variables = model.init_with_output(KEYS, *args)
        states = {k: v for k, v in variables.items() if k != "params"}

        def loss(params):
            out, changed = model.apply(
                {**states, "params": params}, *args, rngs=KEYS, mutable=list(states)
            )
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(out)), (out, changed)

        made = model.init(KEYS, *args)
        return y, variables, made, jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    ours, theirs = run(OURS[name]), run(LINENS[name])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), ours, theirs)


def test_no_time_at_all_leaves_the_carry():
    # Linen: a TypeError of gather.
    rnn = liftax.RNN(liftax.GRUCell(4), return_carry=True)
    lengths, carry = jnp.zeros(2, int), jnp.full((2, 4), 3.0)
    (end, y), _ = rnn.init_with_output(KEYS, NO_TIME, seq_lengths=lengths, initial_carry=carry)
    np.testing.assert_array_equal(end, carry)
    assert y.shape == (2, 0, 4)


@pytest.mark.parametrize("store", ["stacked", "layers"])
@pytest.mark.parametrize(
    "options",
    [{}, {"run": "loop"}, {"run": "scan of 2"}, {"remat": liftax.Remat(every=2)}, {"unroll": 0}],
    ids=str,
)
def test_a_stack_of_no_layers(store, options):
    stack = liftax.Stack(liftax.Dense(3), depth=0, store=store, **options)
    x = jnp.ones((2, 3))
    y, variables = stack.init_with_output(KEYS, x)
    assert variables["params"]["block_0"]["kernel"].shape == (0, 3, 3)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(jax.grad(lambda x: stack.apply(variables, x).sum())(x), x)
