"""What a backward pass keeps, as `saved_residuals` reads it from the program."""

import jax
import jax.numpy as jnp
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jnp.ones((8, 4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        y = nn.Dense(16, name="up")(nn.LayerNorm()(x))
        return x + nn.Dense(4, name="down")(nn.gelu(y))


class Model(nn.Module):
    remat: object = None

    @nn.compact
    def __call__(self, x):
        x = jnp.sin(nn.Dense(4, name="first")(x))
        return nn.Stack(Block(), depth=6, remat=self.remat, name="deep")(x)


def shapes_of(module, *args, **kwargs):
    return jax.eval_shape(module.init, KEY, *args, **kwargs)


def kept(module, *args, **kwargs):
    return nn.saved_residuals(module, shapes_of(module, *args), *args, **kwargs)


def test_what_is_dear_is_told_from_what_is_cheap():
    found = kept(Model(nn.Remat("products")), X)
    assert [(r.module, r.operation, r.shape, r.loops) for r in found.rows] == [
        ("", "cos", (8, 4), ()),  # of the sine
        ("deep/block_0/up", "dot_general", (6, 8, 16), (6,)),
        ("deep", "carry", (6, 8, 4), (6,)),
    ]
    assert [r.dear for r in found.rows] == [False, True, True]
    assert found.bytes == 4 * (8 * 4 + 6 * 8 * 16 + 6 * 8 * 4)
    assert found.cheap_bytes == 4 * 8 * 4
    assert found.by_module()["deep/block_0/up"] == 4 * 6 * 8 * 16


def test_a_plain_scan_keeps_what_is_cheap():
    plain, products = kept(Model(), X), kept(Model(nn.Remat("products")), X)
    assert plain.bytes > 4 * products.bytes
    assert plain.cheap_bytes > 0.8 * plain.bytes
    assert "deep/block_0/LayerNorm_0" in plain.by_module()


def test_it_adds_up_to_what_jax_stores():
    """Of a loop that is written out, what `jax.vjp` holds besides the variables."""
    module = Model()
    variables = module.init(KEY, X)
    unrolled = nn.Stack(Block(), depth=3, run="loop", remat=None)
    variables = unrolled.init(KEY, X)
    _, pullback = jax.vjp(lambda p: unrolled.apply({"params": p}, X), variables["params"])
    held = {id(a): a for a in jax.tree.leaves(pullback)}.values()
    given = [a.shape for a in jax.tree.leaves(variables)]
    arrays = [a for a in held if a.shape not in given and a.ndim]
    found = kept(unrolled, X)
    assert found.bytes <= sum(a.nbytes for a in arrays) + 4 * X.nbytes


@pytest.mark.parametrize("nest", ["scan in scan", "vmap in scan", "remat"])
def test_loops_are_counted_from_the_outside(nest):
    class Outer(nn.Module):
        @nn.compact
        def __call__(self, x):
            if nest == "vmap in scan":
                mapped = nn.vmap(
                    Block, variable_axes={"params": None}, split_rngs={"params": False}
                )
                return mapped(name="mapped")(x)
            if nest == "scan in scan":
                return nn.Stack(Block(), depth=2, remat=None, name="inner")(x)
            return Block(name="inner")(x)

    remat = nn.Remat("products") if nest == "remat" else None
    found = kept(nn.Stack(Outer(), depth=3, remat=remat), X)
    lengths = (3, 2) if nest == "scan in scan" else (3,)
    assert lengths in {r.loops for r in found.rows}
    products = [r for r in found.rows if r.operation == "dot_general"]
    assert all(r.dear and r.module.endswith(("up", "down")) for r in products)


def test_streams_and_shapes_go_in():
    class Drops(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.Dropout(0.5, deterministic=not train)(nn.Dense(4)(x))

    stack = nn.Stack(Drops(), depth=3)
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    variables = jax.eval_shape(lambda x: stack.init(KEY, x, False), shape)
    rngs = {"dropout": jax.random.key(1)}
    found = nn.saved_residuals(stack, variables, shape, True, rngs=rngs)
    assert [r.dtype for r in found.rows if r.operation.startswith("random")] == ["key<fry>"]
    assert "kept" in str(found)


def test_nothing_is_kept_of_what_is_linear():
    found = kept(nn.Dense(3, use_bias=False), X)
    assert found.rows == () and str(found) == "0 B kept, 0 B of it cheap"


def test_weights_in_another_shape_are_the_weights():
    """A loop over groups of layers sees `[groups, layers, ...]`: nothing is kept for that."""
    stack = nn.Stack(nn.Dense(4), depth=6, run="scan of 3")
    x = jax.ShapeDtypeStruct((2, 4), "float32")
    shapes = jax.eval_shape(stack.init, jax.random.key(0), x)
    kept = nn.saved_residuals(stack, shapes, x)
    assert kept.cheap_bytes == 0 and {row.shape for row in kept.rows} == {(2, 2, 4)}
