"""Optax on stacked parameters is what it is on layers that are written out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jnp.ones((2, 4))


def tree_of(axis=0):
    """Parameters in a stack, in a stack of stacks and in none; gradients that differ by layer."""
    layout = [
        nn.Stacking.of("deep", 3, axis=axis),
        nn.Stacking.of("nest", 2, inside=[nn.Stacking.of("inner", 2)]),
    ]
    numbers = np.random.default_rng(0)

    def made(*shape):
        return jnp.asarray(numbers.normal(size=shape), jnp.float32)

    layer = {"kernel": (4, 6), "bias": (6,)}
    stacked = {
        name: shape[:axis] + (3,) + shape[axis:] if len(shape) >= axis else (*shape, 3)
        for name, shape in layer.items()
    }
    shapes = {
        "first": {"kernel": (5, 4)},
        "deep": stacked,
        "nest": {"inner": {"kernel": (2, 2, 4, 6)}},
    }
    params = jax.tree.map(lambda s: made(*s), shapes, is_leaf=lambda s: isinstance(s, tuple))
    grads = jax.tree.map(lambda x: x**3 * jnp.linspace(0.1, 9, x.size).reshape(x.shape), params)
    return layout, params, grads


TXS = {
    "adamw": lambda: optax.adamw(1e-2),
    "lion": lambda: optax.lion(1e-2),
    "lamb": lambda: optax.lamb(1e-2),
    "lars": lambda: optax.lars(1e-2),
    "adafactor": lambda: optax.adafactor(1e-2, min_dim_size_to_factor=4),
    "block rms": lambda: optax.chain(optax.clip_by_block_rms(0.5), optax.sgd(0.1)),
    "adaptive": lambda: optax.adaptive_grad_clip(0.01),
    "muon": lambda: optax.contrib.muon(1e-2),
    "schedule": lambda: optax.lamb(optax.linear_schedule(1e-1, 1e-3, 3)),
    "masked": lambda: optax.masked(
        optax.lamb(1e-2), lambda tree: jax.tree.map(lambda x: x.ndim > 1, tree)
    ),
}


FAST = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


@pytest.mark.parametrize("name", TXS)
def test_update_for_update(name):
    layout, params, grads = tree_of()

    def run(tx, w, g):
        @functools.partial(jax.jit, compiler_options=FAST)
        def step(w, state, g):
            updates, state = tx.update(g, state, w)
            return optax.apply_updates(w, updates), updates, state

        first = step(w, tx.init(w), g)
        second = step(first[0], first[2], g)
        return [first[1], second[1]], second[2]

    ours, state = run(nn.per_layer(TXS[name](), layout), params, grads)
    theirs, written = run(TXS[name](), *(nn.to_layers(t, layout) for t in (params, grads)))
    close(nn.to_layers(ours, layout), theirs)
    close(nn.to_layers(state, layout).by_layer, written)
    close(nn.to_stacked(nn.PerLayerState(written), layout), state)


def close(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def update(tx, grads, params):
    """The first one, as one program."""
    return jax.jit(tx.update)(grads, tx.init(params), params)


def test_along_another_axis():
    layout, params, grads = tree_of(axis=1)
    tx, written = nn.per_layer(optax.lamb(1e-2), layout), optax.lamb(1e-2)
    updates, state = update(tx, grads, params)
    w, g = nn.to_layers(params, layout), nn.to_layers(grads, layout)
    expected, after = update(written, g, w)
    close(nn.to_layers(updates, layout), expected)
    close(nn.to_layers(state, layout).by_layer, after)


def test_one_program_for_all_layers():
    def size(depth):
        params = {"deep": {"kernel": jax.ShapeDtypeStruct((depth, 4, 6), jnp.float32)}}
        tx = nn.per_layer(optax.contrib.muon(1e-2), nn.Stacking.of("deep", depth))
        state = jax.eval_shape(tx.init, params)
        return len(str(jax.make_jaxpr(tx.update)(params, state, params)).splitlines())

    assert size(3) == size(30)


def test_variables_with_a_collection_and_boxes():
    stack = nn.Stack(
        nn.Dense(4, kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "m"))),
        depth=3,
        metadata_params={nn.PARTITION_NAME: "layers"},
    )
    variables = stack.init(KEY, X)
    tx = nn.per_layer(optax.lamb(1e-2), stack)
    updates, _ = update(tx, variables, variables)
    params = nn.unbox(variables)["params"]
    tx = nn.per_layer(optax.lamb(1e-2), stack)
    close(nn.unbox(updates)["params"], update(tx, params, params)[0])


def test_what_acts_on_all_at_once_stands_outside():
    layout, params, grads = tree_of()
    bad = nn.per_layer(optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(1e-2)), layout)
    with pytest.raises(nn.errors.PerLayerError, match="(?s)the update of .* depends on .*chain"):
        bad.update(grads, bad.init(params), params)
    good = optax.chain(optax.clip_by_global_norm(1.0), nn.per_layer(optax.lamb(1e-2), layout))
    update(good, grads, params)
    around = optax.apply_if_finite(nn.per_layer(optax.lamb(1e-2), layout), 3)
    update(around, grads, params)
    inside = nn.per_layer(optax.apply_if_finite(optax.lamb(1e-2), 3), layout)
    with pytest.raises(nn.errors.PerLayerError, match="depends on the parameter"):
        inside.update(grads, inside.init(params), params)


def test_random_numbers_are_refused():
    stack = nn.Stack(nn.Dense(4), depth=3)
    params = stack.init(KEY, X)["params"]
    noisy = nn.per_layer(optax.add_noise(0.1, 0.1, 0), stack)
    with pytest.raises(nn.errors.PerLayerError, match="draws random numbers"):
        noisy.update(params, noisy.init(params), params)


def test_layers_written_out_and_no_stack():
    stack = nn.Stack(nn.Dense(4), depth=3, store="layers")
    params = stack.init(KEY, X)["params"]
    tx, plain = nn.per_layer(optax.lamb(1e-2), stack), optax.lamb(1e-2)
    close(update(tx, params, params)[0], update(plain, params, params)[0])
    stacked = stack.clone(store="stacked").init(KEY, X)["params"]
    with pytest.raises(nn.errors.StackingError, match="where the layout has 4 layers for block_0"):
        nn.per_layer(optax.lamb(1e-2), nn.Stack(nn.Dense(4), depth=4)).init(stacked)
    with pytest.raises(nn.errors.StackingError, match="no stack found"):
        tx.init({"kernel": X})
