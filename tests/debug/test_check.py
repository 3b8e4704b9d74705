"""What may be a slip in a model, read from its program."""

import jax
import jax.numpy as jnp
import optax
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((2, 4), "float32")


def codes(module, *args, **streams):
    found = nn.check(module, {"params": KEY, **streams}, *(args or (X,)))
    return {f.code: f.variables for f in found.findings}


class Block(nn.Module):
    kind: str

    @nn.compact
    def __call__(self, x):
        gain = self.param("gain", nn.initializers.ones, (4,))
        y = nn.Dense(4, name="inner")(x)
        if self.kind == "forgotten":
            return y
        if self.kind == "cut":
            return y * jax.lax.stop_gradient(gain)
        if self.kind == "chosen":
            return jnp.where(gain > 0, y, x)
        if self.kind == "one key":
            key = self.make_rng("noise")
            first, again = jax.random.split(key)[0], jax.random.split(key)[0]
            return y * gain + jax.random.normal(first, x.shape) * jax.random.uniform(again)
        if self.kind == "two keys":
            first, second = jax.random.split(self.make_rng("noise"))
            return y * gain + jax.random.normal(first, x.shape) * jax.random.uniform(second)
        return y * gain


def deep(kind):
    return nn.Stack(Block(kind), depth=3)


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        ("forgotten", {"LX905": ("block_0/gain",)}),
        ("cut", {"LX906": ("block_0/gain",)}),
        ("chosen", {"LX906": ("block_0/gain",)}),
        ("one key", {"LX907": ("Stack/block_0",)}),
        ("two keys", {}),
        ("right", {}),
    ],
)
def test_by_path_in_a_stack(kind, found):
    assert codes(deep(kind), noise=KEY) == found


def test_what_is_meant_is_silenced():
    with nn.silenced("LX906"):
        assert codes(deep("cut")) == {}


def test_two_modules_with_one_key():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, x, key):
            one = nn.Dropout(0.5, deterministic=False, name="one")(x, rng=key)
            return nn.Dropout(0.5, deterministic=False, name="two")(one, rng=key)

    (found,) = nn.check(Model(), {}, X, KEY).findings
    assert found.code == "LX907" and found.variables == ("Model/one", "Model/two")
    assert "test_check.py" in found.message


def test_branches_are_one_draw():
    def fn(key, x):
        draw = lambda x: x + jax.random.normal(key, x.shape)  # noqa: E731
        return jax.lax.cond(x[0, 0] > 0, draw, lambda x: draw(-x), x)

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return fn(self.make_rng("noise"), x)

    assert codes(Model(), noise=KEY) == {}


def test_the_innermost_module_that_widens():
    class Model(nn.Module):
        dtype_of: object = None

        @nn.compact
        def __call__(self, x):
            return nn.Dense(4, dtype=self.dtype_of, name="dense")(nn.relu(x))

    narrow = jax.ShapeDtypeStruct((2, 4), "bfloat16")
    assert codes(Model(), narrow) == {"LX908": ("dense",)}
    assert codes(Model(jnp.bfloat16), narrow) == {}
    assert codes(Model(jnp.float32), narrow) == {"LX908": ("",)}  # asked for within


@pytest.mark.parametrize(
    ("tx", "mixes"),
    [
        (optax.lamb(optax.linear_schedule(0.0, 1e-3, 100)), True),
        (optax.adamw(1e-3), False),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.lamb(1e-3)), False),  # cannot be told
        (nn.per_layer(optax.lamb(1e-3), nn.Stack(nn.Dense(4), depth=3)), False),
    ],
)
def test_an_optimizer_bare_on_a_stack(tx, mixes):
    found = nn.check(nn.Stack(nn.Dense(4), depth=3), KEY, X, tx=tx).findings
    assert [f.code for f in found] == ["LX909"] * mixes
    assert not nn.check(nn.Dense(4), KEY, X, tx=tx if mixes else None)


def test_what_a_layout_finds_and_what_is_written():
    ensemble = nn.vmap(nn.Dense, variable_axes={"params": 0}, split_rngs={"params": True})(3)
    assert set(codes(ensemble)) == {"LX901"}

    class Sows(nn.Module):
        @nn.compact
        def __call__(self, x):
            self.sow("losses", "penalty", jnp.sum(nn.Dense(2)(x)))
            return nn.BatchNorm(use_running_average=False)(x)

    assert codes(Sows()) == {}
    assert str(nn.check(nn.Dense(2), KEY, X)) == "nothing found"
