"""Models written on the functional core alone: scopes, functions and lifts, no Module anywhere."""

from __future__ import annotations

import functools
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import ON_FLAX, Library, assert_same, both, ours, shapes
from helpers.models import cheap
from helpers.run import keys, ramp


def dense(scope: Any, x: Any, features: int, *, bias: bool = True) -> Any:
    y = x @ scope.param("kernel", cheap, (x.shape[-1], features))
    return y + scope.param("bias", lambda key, n: jnp.zeros((n,)), features) if bias else y


def dropout(scope: Any, x: Any, rate: float) -> Any:
    kept = jax.random.bernoulli(scope.make_rng("dropout"), 1.0 - rate, x.shape)
    return jnp.where(kept, x / (1.0 - rate), 0.0)


def layer_norm(scope: Any, x: Any) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    scale = scope.param("scale", lambda key, n: jnp.ones((n,)), x.shape[-1])
    return scale * centred / jnp.sqrt(jnp.var(x, -1, keepdims=True) + 1e-6)


def mlp(scope: Any, x: Any, sizes: tuple[int, ...]) -> Any:
    for size in sizes:
        x = jnp.tanh(scope.child(dense, prefix="dense_")(x, size))
    return x


def test_dense_layer_by_functions() -> None:
    def run(lib: Library) -> Any:
        x = ramp(2, 3)
        y, variables = lib.core.init(dense)(jax.random.key(0), x, 4)
        again = lib.core.apply(dense)(variables, x, 4)
        assert_same(again, y)
        return y, variables

    _, variables = both(run)
    assert shapes(variables) == {"params": {"kernel": (3, 4), "bias": (4,)}}


def test_children_take_automatic_and_given_names() -> None:
    def run(lib: Library) -> Any:
        def model(scope: Any, x: Any) -> Any:
            x = scope.child(mlp, "body")(x, (3, 4))
            head = scope.push("head")
            x = dense(head, x, 2)
            x = scope.child(mlp, prefix="mlp_")(x, (2,))
            return scope.child(dense)(x, 2)

        return lib.core.init(model)(jax.random.key(1), ramp(3))

    both(run)


def test_a_child_called_twice_is_one_set_of_variables() -> None:
    def run(lib: Library) -> Any:
        def model(scope: Any, x: Any) -> Any:
            shared = scope.child(dense, "shared")
            return shared(shared(x, 3), 3)

        return lib.core.init(model)(jax.random.key(1), ramp(3))

    both(run)


def test_recurrent_network() -> None:
    def run(lib: Library) -> Any:
        def cell(scope: Any, h: Any, x: Any) -> Any:
            both_in = jnp.concatenate([h, x], -1)
            h = jnp.tanh(scope.child(dense, "cell")(both_in, h.shape[-1]))
            return h, scope.child(dense, "out")(h, 2)

        rnn = lib.lift.scan(
            cell,
            variable_broadcast="params",
            split_rngs={"params": False},
            in_axes=1,
            out_axes=1,
        )
        h, xs = ramp(2, 3), ramp(2, 4, 5)
        out, variables = lib.core.init(rnn)(jax.random.key(0), h, xs)
        # The loop that it equals.
        y, ys = h, []
        for t in range(xs.shape[1]):
            y, step = lib.core.apply(cell)(variables, y, xs[:, t])
            ys.append(step)
        np.testing.assert_allclose(out[0], y, rtol=1e-6)
        np.testing.assert_allclose(out[1], jnp.stack(ys, 1), rtol=1e-6)
        return out, variables

    both(run)


def test_recurrent_dropout_mask_is_the_same_at_each_step() -> None:
    def run(lib: Library) -> Any:
        def cell(scope: Any, h: Any, x: Any) -> Any:
            same = scope.child(dropout, "same")(jnp.ones_like(h), 0.5)
            return h + x, same

        rnn = functools.partial(lib.lift.scan, cell, variable_axes={})
        args = (ramp(8), ramp(3, 8))
        rngs = {"dropout": jax.random.key(3)}
        shared = lib.core.apply(rnn(split_rngs={"dropout": False}))({}, *args, rngs=rngs)
        split = lib.core.apply(rnn(split_rngs={"dropout": True}))({}, *args, rngs=rngs)
        return shared, split

    (_, same), (_, other) = both(run)
    assert (same[0] == same).all()
    assert (other[0] != other[1]).any()


def test_tied_autoencoder() -> None:
    """The decoder is the encoder with each kernel transposed."""

    def run(lib: Library) -> Any:
        def transposed(collections: Any) -> Any:
            return jax.tree.map(lambda kernel: kernel.T, collections)

        def encode(scope: Any, x: Any) -> Any:
            return dense(scope, x, 2, bias=False)

        def tied(scope: Any, x: Any) -> Any:
            return dense(scope, x, 5, bias=False)

        decode = lib.lift.map_variables(tied, "params", transposed, transposed)

        def autoencoder(scope: Any, x: Any) -> Any:
            inner = scope.push("shared")
            return decode(inner, encode(inner, x))

        return lib.core.init(autoencoder)(jax.random.key(0), ramp(5))

    y, variables = both(run)
    kernel = variables["params"]["shared"]["kernel"]
    np.testing.assert_allclose(y, ramp(5) @ kernel @ kernel.T, rtol=1e-5)


def test_weight_normalised_layer() -> None:
    """The kernel is stored as it was drawn and used with columns of length one."""

    def run(lib: Library) -> Any:
        def unit(collections: Any) -> Any:
            def normalise(path: Any, leaf: Any) -> Any:
                kernel = path[-1].key == "kernel"
                return leaf / jnp.linalg.norm(leaf, axis=0) if kernel else leaf

            return jax.tree_util.tree_map_with_path(normalise, collections)

        layer = lib.lift.map_variables(
            lambda scope, x: dense(scope, x, 3), "params", unit, lambda v: v, init=True
        )
        y, variables = lib.core.init(layer)(jax.random.key(0), ramp(4))
        return y, variables, lib.core.apply(layer)(variables, ramp(4))

    y, variables, again = both(run)
    kernel = variables["params"]["kernel"]
    expected = ramp(4) @ (kernel / jnp.linalg.norm(kernel, axis=0))
    np.testing.assert_allclose(again, expected, rtol=1e-5)
    assert_same(again, y)


def test_big_residual_network() -> None:
    """Groups of layers: a scan over groups of a scan over checkpointed blocks."""

    def run(lib: Library) -> Any:
        def block(scope: Any, x: Any, _: Any) -> Any:
            y = scope.child(layer_norm, "norm")(x)
            y = jnp.tanh(scope.child(dense, "wide")(y, 6))
            y = dropout(scope.push("drop"), y, 0.5)
            return x + scope.child(dense, "narrow")(y, x.shape[-1]), None

        stack = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True, "dropout": True},
        }
        inner = lib.lift.scan(lib.lift.remat(block), **stack, length=3)
        network = lib.lift.scan(inner, **stack, length=2)
        x = ramp(2, 4)
        (y, _), variables = lib.core.init(network)(keys(), x, None)

        def loss(variables: Any) -> Any:
            return lib.core.apply(network)(variables, x, None, rngs=keys())[0].sum()

        return y, variables, jax.grad(loss)(variables)

    _, variables, _ = both(run)
    assert shapes(variables["params"]["wide"]["kernel"]) == (2, 3, 4, 6)


def test_ensemble_and_multi_scope() -> None:
    """vmap over members; two scopes of one model go through one lift together."""

    def run(lib: Library) -> Any:
        def body(scopes: Any, x: Any) -> Any:
            first, second = scopes
            return dense(second, dense(first, x, 3), 2)

        def model(scope: Any, x: Any) -> Any:
            members = lib.lift.vmap(
                body,
                variable_axes={"params": -1},
                split_rngs={"params": True},
                axis_size=3,
                in_axes=None,
            )
            return members((scope.push("a"), scope.push("b")), x)

        return lib.core.init(model)(jax.random.key(0), ramp(4))

    y, variables = both(run)
    assert shapes(y) == (3, 2)
    assert shapes(variables["params"]["a"]["kernel"]) == (4, 3, 3)


def test_batch_norm_keeps_running_statistics() -> None:
    def run(lib: Library) -> Any:
        def norm(scope: Any, x: Any, *, train: bool) -> Any:
            mean = scope.variable("batch_stats", "mean", jnp.zeros, x.shape[-1:])
            if not train:
                return x - mean.value
            now = x.mean(0)
            if not scope.is_mutable_collection("params"):
                mean.value = 0.9 * mean.value + 0.1 * now
            return x - now

        x = ramp(4, 3)
        _, variables = lib.core.init(norm)(jax.random.key(0), x, train=True)
        y, changed = lib.core.apply(norm, mutable=["batch_stats"])(variables, x, train=True)
        return y, changed, lib.core.apply(norm)(changed, x, train=False)

    both(run)


def test_gradients_inside_a_model() -> None:
    """One step of an inner optimiser on a child's parameters, differentiable from outside."""

    def run(lib: Library) -> Any:
        def inner_loss(scope: Any, x: Any) -> Any:
            return jnp.sum(dense(scope, x, 2) ** 2)

        def model(scope: Any, x: Any) -> Any:
            child = scope.push("inner")
            loss, back = lib.lift.vjp(inner_loss, child, x)
            grads, dx = back(jnp.ones_like(loss))
            return loss, grads, dx

        return lib.core.init(model)(jax.random.key(0), ramp(3))

    both(run)


def test_value_and_grad_and_jvp() -> None:
    def run(lib: Library) -> Any:
        def loss(scope: Any, x: Any) -> Any:
            return jnp.sum(jnp.tanh(dense(scope, x, 2)))

        def model(scope: Any, x: Any) -> Any:
            value = loss(scope, x)
            tangents = {"params": jax.tree.map(jnp.ones_like, scope.variables().get("params", {}))}
            moved = lib.lift.jvp(loss, scope, (x,), (jnp.ones_like(x),), tangents)
            return value, lib.lift.value_and_grad(loss, scope, x), moved

        return lib.core.init(model)(jax.random.key(0), ramp(3))

    both(run)


def test_custom_backward_pass() -> None:
    def run(lib: Library) -> Any:
        def forward(scope: Any, x: Any) -> Any:
            return lib.lift.vjp(lambda scope, x: dense(scope, x, 2), scope, x)

        def backward(back: Any, cotangent: Any) -> Any:
            params, dx = back(cotangent)
            return jax.tree.map(jnp.sign, params), dx

        layer = lib.lift.custom_vjp(lambda scope, x: dense(scope, x, 2), forward, backward)
        _, variables = lib.core.init(layer)(jax.random.key(0), ramp(3))

        def loss(variables: Any, x: Any) -> Any:
            return lib.core.apply(layer)(variables, x).sum()

        return jax.grad(loss, argnums=(0, 1))(variables, ramp(3))

    grads, _ = both(run)
    assert set(np.unique(grads["params"]["kernel"])) <= {-1.0, 0.0, 1.0}


def test_loop_until_and_branches() -> None:
    def run(lib: Library) -> Any:
        def grow(scope: Any, x: Any) -> Any:
            steps = scope.variable("state", "steps", lambda: jnp.int32(0))
            steps.value += 1
            return jnp.tanh(dense(scope.push("w"), x, 3)) + 0.1

        def model(scope: Any, x: Any) -> Any:
            x = grow(scope, x)
            x = lib.lift.while_loop(
                lambda scope, x: scope.get_variable("state", "steps") < 4,
                lambda scope, x: grow(scope.rewound(), x),
                scope,
                x,
                carry_variables="state",
                broadcast_variables="params",
            )
            scope.param("k", cheap, ())

            def scaled(scope: Any, x: Any) -> Any:
                return x * scope.rewound().param("k", cheap, ())

            x = lib.lift.cond(x[0] > 0.0, scaled, lambda scope, x: -x, scope, x)
            pick = [lambda s, x: x, lambda s, x: x * 2.0, lambda s, x: x * 3.0]
            return lib.lift.switch(2, pick, scope, x)

        y, variables = lib.core.init(model)(jax.random.key(0), ramp(3))
        return y, variables, lib.core.apply(model, mutable="state")(variables, ramp(3))

    both(run)


def test_swap_collection() -> None:
    def run(lib: Library) -> Any:
        def count(scope: Any) -> Any:
            here = scope.variable("state", "n", lambda: jnp.int32(1))
            here.value += 1
            return here.value

        swapped = lib.lift.swap_collection(count, "state", "other")
        given = {"other": {"n": jnp.int32(5)}}
        return lib.core.apply(swapped, mutable=["state", "other"])(given)

    both(run)


@pytest.mark.skipif(ON_FLAX, reason="the reference's core jit takes a cache key first")
def test_jit_of_a_stack() -> None:
    lib = ours()
    plain = lambda scope, x: mlp(scope, x, (3, 3))  # noqa: E731
    stack = lib.lift.jit(plain)
    y, variables = lib.core.init(stack)(jax.random.key(0), ramp(3))
    assert shapes(variables) == shapes(lib.core.init(plain)(jax.random.key(0), ramp(3))[1])
    np.testing.assert_allclose(lib.core.apply(stack)(variables, ramp(3)), y, rtol=1e-6)
    np.testing.assert_allclose(lib.core.apply(plain)(variables, ramp(3)), y, rtol=1e-6)


def test_lazy_init_and_bind() -> None:
    def run(lib: Library) -> Any:
        spec = jax.ShapeDtypeStruct((3,), jnp.float32)
        variables = lib.core.lazy_init(dense)(jax.random.key(0), spec, 2)
        with lib.core.bind(variables).temporary() as scope:
            return variables, dense(scope, ramp(3), 2)

    both(run)


def test_metadata_boxes_follow_the_axes() -> None:
    def run(lib: Library) -> Any:
        def layer(scope: Any, x: Any) -> Any:
            boxed = lib.nn.with_partitioning(cheap, ("in", "out"))
            w = scope.param("w", boxed, (3, 3), unbox=True)
            return x @ w, None

        deep = lib.lift.scan(
            layer,
            variable_axes={"params": 1},
            split_rngs={"params": True},
            length=2,
            metadata_params={"partition_name": "layers"},
        )
        return lib.core.init(deep)(jax.random.key(0), ramp(3))

    _, variables = both(run)
    assert variables["params"]["w"].names == ("in", "layers", "out")
    assert shapes(ours().core.unbox(variables)) == {"params": {"w": (3, 2, 3)}}


@pytest.mark.skipif(ON_FLAX, reason="about liftax's own rooms")
def test_the_core_needs_no_module() -> None:
    program = """
import sys, jax
import jax.numpy as jnp
from liftax.core import apply, init, lift
def layer(scope, x):
    return x @ scope.param('w', lambda key: jnp.ones((2, 2))), None
deep = lift.scan(layer, variable_axes={'params': 0}, split_rngs={'params': True}, length=2)
(y, _), variables = init(deep)(jax.random.key(0), jnp.ones(2))
assert float(y[0]) == 4.0
"""
    path = [entry for entry in sys.path if entry.endswith("src")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
