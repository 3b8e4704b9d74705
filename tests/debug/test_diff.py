"""The first layer and module at which two models part."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = np.random.RandomState(1).randn(3, 4).astype(np.float32)


class Block(nn.Module):
    dtype: object = None

    @nn.compact
    def __call__(self, x):
        return x + nn.Dense(4, name="down", dtype=self.dtype)(nn.relu(nn.Dense(6, name="up")(x)))


class Model(nn.Module):
    run: str = "scan"
    store: str = "stacked"
    dtype: object = None
    remat: object = "auto"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        options = {"run": self.run, "store": self.store, "remat": self.remat}
        x = nn.Stack(Block(self.dtype), depth=6, name="deep", **options)(x)
        return nn.LayerNorm(name="last")(x)


@functools.cache
def made():
    """When a test asks: each worker imports this module, and one of them runs its tests."""
    return Model().init(KEY, X)


def changed(layer, module="down"):
    copy = jax.tree.map(lambda x: x, made())
    kernel = copy["params"]["deep"]["block_0"][module]["kernel"]
    copy["params"]["deep"]["block_0"][module]["kernel"] = kernel.at[layer].add(0.5)
    return copy


@pytest.mark.parametrize(
    "other",
    [
        Model(run="loop"),
        Model(run="scan of 4"),
        Model(remat=nn.Remat(every=2, nested=True)),
        Model(store="layers"),
    ],
    ids=["loop", "groups", "nested", "layers"],
)
def test_however_it_runs_and_is_stored(other):
    def form(variables):
        if other.store == "stacked":
            return variables
        return nn.to_layers(variables, nn.stackings_of(Model(), KEY, X))

    same = nn.diff(Model(), made(), other, form(made()), X)
    assert not same and str(same) == "no difference"
    paths = [row.module for row in same.rows]
    assert paths.count("deep/block_0/up") == 6 and len(paths) == 3 + 3 * 6 + 1
    found = nn.diff(Model(), made(), other, form(changed(3)), X)
    assert (found.first.module, found.first.layer) == ("deep/block_0/down", 3)


def test_order_is_that_of_returning():
    rows = [(r.module, r.layer) for r in nn.diff(Model(), made(), Model(), made(), X).rows]
    assert rows[:5] == [
        ("first", 0),
        ("deep/block_0/up", 0),
        ("deep/block_0/down", 0),
        ("deep/block_0", 0),
        ("deep/block_0/up", 1),
    ]
    assert rows[-2:] == [("last", 0), ("", 0)]


def test_dtypes():
    narrow = Model(dtype=jnp.bfloat16)
    found = nn.diff(Model(), made(), narrow, made(), X)
    assert found.first.module == "deep/block_0/down" and found.first.layer == 0
    assert "float32[3,4], bfloat16[3,4]" in str(found)
    assert not nn.diff(Model(), made(), narrow, made(), X, tolerance=0.1)


def test_nan_and_shapes():
    found = nn.diff(
        nn.Dense(2), *[nn.Dense(2).init(KEY, X)] * 1, nn.Dense(3), nn.Dense(3).init(KEY, X), X
    )
    assert found.first.error == float("inf")
    dense = nn.Dense(2)
    good = dense.init(KEY, X)
    bad = jax.tree.map(lambda x: x * jnp.nan, good)
    assert nn.diff(dense, good, dense, bad, X)
    assert not nn.diff(dense, bad, dense, bad, X)


def test_nothing_in_common():
    class Named(nn.Module):
        name_of: str

        @nn.compact
        def other(self, x):
            return nn.Dense(2, name=self.name_of)(x)

    models = [Named("a"), Named("b")]
    pairs = [(m, m.init(KEY, X, method="other")) for m in models]
    with pytest.raises(ValueError, match="no module of the same path"):
        nn.diff(*pairs[0], *pairs[1], X, method="other")
