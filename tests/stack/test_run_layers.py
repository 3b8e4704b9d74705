"""Another method of the layers, some of them, and the last one first: beside the loop in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jnp.linspace(0.1, 1.0, 4)


class Block(nn.Module):
    shift: float = 0.0

    def setup(self):
        self.dense = nn.Dense(4, use_bias=False)
        self.count = self.variable("state", "count", lambda: jnp.zeros((), jnp.int32))

    def __call__(self, x, rate=1.0):
        if self.is_mutable_collection("state") and not self.is_initializing():
            self.count.value += 1
        return x + jnp.sin(self.dense(x)) * rate + self.shift

    def decode(self, x, rate):
        return x - rate * self.dense(x)


class Pairs(Block):
    def __call__(self, x):
        y = super().__call__(x)
        return y, y * 2


def by_hand(stack, variables, x, numbers, call=lambda layer, x, i: layer(x)):
    bound = stack.bind(variables)
    for i in numbers:
        x = call(bound[i], x, i)
    return x


def run(stack, variables, x, *args, **how):
    return stack.apply(variables, x, *args, method="run_layers", **how)


SIX = nn.Stack(Block(), depth=6)
V = SIX.init(KEY, X)


@pytest.mark.parametrize("how", ["scan", "loop", "scan of 4"])
@pytest.mark.parametrize(
    ("layers", "numbers"),
    [
        (slice(0, 4), range(4)),
        (slice(2, None), range(2, 6)),
        (-1 % 6, range(5)),
        (slice(3, 3), ()),
        (np.array([True, False, True, True, False, True]), (0, 2, 3, 5)),
    ],
)
def test_some_layers(how, layers, numbers):
    stack = SIX.clone(run=how)
    np.testing.assert_allclose(
        run(stack, V, X, layers=layers), by_hand(SIX, V, X, numbers), rtol=1e-5
    )


def test_a_slice_is_a_scan_over_it_alone():
    jaxpr = str(jax.make_jaxpr(lambda v: run(SIX, v, X, layers=slice(1, 4)))(V))
    assert "length=3" in jaxpr and "length=6" not in jaxpr and "cond" not in jaxpr


def test_a_traced_number_and_its_gradient():
    early = jax.jit(lambda v, n: run(SIX, v, X, layers=n).sum())
    for n in (0, 3, 6):
        np.testing.assert_allclose(early(V, n), by_hand(SIX, V, X, range(n)).sum(), rtol=1e-5)
    params = {"params": V["params"]}
    both = [
        jax.grad(lambda p, f=f: f({**V, **p}))(params)
        for f in (lambda v: early(v, 3), lambda v: by_hand(SIX, v, X, range(3)).sum())
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *both)


@pytest.mark.parametrize(
    "layers", [slice(2, 4), jnp.array([False, False, True, True, False, False])]
)
def test_variables_of_layers_that_do_not_run_stay(layers):
    _, written = run(SIX, V, X, layers=layers, mutable=["state"])
    assert written["state"]["block_0"]["count"].tolist() == [0, 0, 1, 1, 0, 0]


def test_backwards_and_by_another_method():
    stack = nn.Stack(
        [Block(), Block(0.1)],
        repeats=2,
        before=[Block(0.2)],
        after=[Block(0.3)],
        per_layer=["rate"],
    )
    variables = stack.init(KEY, X)
    rates = jnp.linspace(0.1, 0.6, 6)
    found = run(stack, variables, X, rates, call="decode", reverse=True)
    call = lambda layer, x, i: layer.decode(x, rates[i])  # noqa: E731
    wanted = by_hand(stack, variables, X, reversed(range(6)), call)
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    some = run(stack, variables, X, rate=rates, call="decode", layers=slice(0, 3))
    np.testing.assert_allclose(some, by_hand(stack, variables, X, range(3), call), rtol=1e-5)


@pytest.mark.parametrize("store", ["stacked", "layers"])
def test_either_storage_and_keys_of_their_own(store):
    class Noisy(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x + jax.random.normal(self.make_rng("noise"), x.shape)

    stack = nn.Stack(Noisy(), depth=4, store=store)
    rngs = {"noise": KEY}
    whole = stack.apply({}, X, rngs=rngs)
    first = run(stack, {}, X, layers=slice(0, 2), rngs=rngs)
    rest = run(stack, {}, first, layers=slice(2, 4), rngs=rngs)
    np.testing.assert_allclose(rest, whole, rtol=1e-5)  # layer 2 has the key of layer 2


def test_outputs_of_some_layers():
    stack = nn.Stack(Pairs(), depth=5, outputs=[1, 3])
    variables = stack.init(KEY, X)
    every = stack.clone(outputs=True)
    y, ys = stack.apply(variables, X)
    z, all_of_them = every.apply(variables, X)
    np.testing.assert_allclose(ys, all_of_them[jnp.array([1, 3])], rtol=1e-6)
    _, some = run(every, variables, X, layers=slice(1, 4))
    assert some.shape == (3, 4)
    with pytest.raises(nn.errors.StackError, match="outputs has layer 1, which does not run here"):
        run(stack, variables, X, layers=slice(2, 4))
    back, in_order = run(every, variables, X, reverse=True)
    np.testing.assert_allclose(in_order[0], 2 * back, rtol=1e-6)


def test_a_cache_is_written_where_it_stands():
    class Caches(nn.Module):
        @nn.compact
        def __call__(self, x):
            cache = self.variable("cache", "x", jnp.zeros, (2, 4))
            cache.value = jax.lax.dynamic_update_slice(cache.value, x[None], (1, 0))
            return x + nn.Dense(4)(x)

    stack = nn.Stack(Caches(), depth=4)
    variables = stack.init(KEY, X)
    step = jax.jit(lambda v, n: run(stack, v, X, layers=n, mutable=["cache"])[1])
    rows = step({**variables, "cache": jax.tree.map(jnp.zeros_like, variables["cache"])}, 2)
    assert jnp.any(rows["cache"]["block_0"]["x"][:, 1], axis=-1).tolist() == [
        True,
        True,
        False,
        False,
    ]


def test_init_makes_all_layers():
    made = SIX.init(KEY, X, method="run_layers", layers=slice(0, 2))
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, V)


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ({"call": "encode"}, "Block has no method 'encode'"),
        ({"layers": 7}, "layers=7, and the stack has 6 layers"),
        ({"layers": slice(0, 6, 2)}, "has a step"),
        ({"layers": jnp.ones(3, bool)}, "6 bools, one for each layer; found bool"),
        ({"layers": 1.5}, "layers expected a slice, an int"),
    ],
)
def test_what_does_not_fit(how, match):
    with pytest.raises(nn.errors.StackError, match=match):
        run(SIX, V, X, **how)


def test_a_pattern_runs_in_whole_repeats():
    stack = nn.Stack([Block(), Block()], repeats=3, before=[Block()])
    variables = stack.init(KEY, X)
    found = run(stack, variables, X, layers=slice(1, 5))
    np.testing.assert_allclose(found, by_hand(stack, variables, X, range(1, 5)), rtol=1e-5)
    with pytest.raises(nn.errors.StackError, match="within a repeat of the pattern of 2"):
        run(stack, variables, X, layers=slice(0, 4))
    with pytest.raises(nn.errors.StackError, match="a stack of one repeated layer"):
        jax.jit(lambda n: run(stack, variables, X, layers=n))(3)


@pytest.mark.parametrize("outputs", [[], [5], ["a"], "all"])
def test_outputs_that_are_none(outputs):
    with pytest.raises(nn.errors.StackError, match="Stack: outputs"):
        nn.Stack(Pairs(), depth=5, outputs=outputs)
