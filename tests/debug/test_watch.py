"""A few numbers of each module and layer, from one trace of a compiled step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (3, 4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        return x + nn.relu(nn.Dense(4, name="up")(x))


class Model(nn.Module):
    remat: object = "auto"
    run: str = "scan"

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(4, name="first")(x)
        return nn.Stack(Block(), depth=4, remat=self.remat, run=self.run, name="deep")(x)


V = Model().init(KEY, X)


def step_of(model):
    return lambda v, x: jax.value_and_grad(lambda v: (model.apply(v, x) ** 2).mean())(v)


def by_hand(x):
    """Outputs of each layer's Dense and of each layer, and the gradients with respect to them."""
    p = V["params"]
    block = p["deep"]["block_0"]["up"]

    def forward(extra):
        y = x @ p["first"]["kernel"] + p["first"]["bias"] + extra["first"]
        outputs = {"first": y, "up": [], "block": []}
        for i in range(4):
            up = y @ block["kernel"][i] + block["bias"][i] + extra["up"][i]
            y = y + nn.relu(up) + extra["block"][i]
            outputs["up"].append(up)
            outputs["block"].append(y)
        return (y**2).mean(), outputs

    zeros = {"first": 0 * x, "up": [0 * x] * 4, "block": [0 * x] * 4}
    grads, outputs = jax.grad(forward, has_aux=True)(zeros)
    return outputs, grads


@pytest.mark.parametrize(
    "model",
    [Model(), Model(None), Model(nn.Remat()), Model(nn.Remat(every=2, nested=True))],
    ids=["products", "plain", "remat", "nested"],
)
def test_outputs_and_gradients_of_each_layer(model):
    (loss, grads), seen = jax.jit(nn.watch(step_of(model)))(V, X)
    plain = step_of(model)(V, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), (loss, grads), plain)
    for of, wanted in zip(("outputs", "gradients"), by_hand(X), strict=True):
        found = seen[of]
        for path, name in (
            ("first", "first"),
            ("deep/block_0/up", "up"),
            ("deep/block_0", "block"),
        ):
            each = jnp.stack(wanted[name]) if name != "first" else wanted[name][None]
            rms = jnp.sqrt((each**2).mean((1, 2)))
            np.testing.assert_allclose(found[path]["rms"].ravel(), rms, rtol=1e-4)
            most = jnp.abs(each).max((1, 2))
            np.testing.assert_allclose(found[path]["max"].ravel(), most, rtol=1e-4)
    assert seen["gradients"]["deep/block_0/up"]["zeros"].max() > 0  # where relu is flat


def test_layers_that_are_written_out_are_apart():
    _, seen = nn.watch(step_of(Model(run="loop")), of=["outputs"], stats=["max"])(V, X)
    ups = [path for path in seen["outputs"] if path.startswith("deep/block_0/up")]
    assert ups == ["deep/block_0/up", *(f"deep/block_0/up ({i})" for i in (2, 3, 4))]
    assert list(seen["outputs"]["first"]) == ["max"] and list(seen.values) == ["outputs"]


def test_what_is_not_finite_is_told_by_layer():
    kernel = V["params"]["deep"]["block_0"]["up"]["kernel"].at[2, 0, 0].set(jnp.inf)
    bad = jax.tree.map(lambda x: x, V)
    bad["params"]["deep"]["block_0"]["up"]["kernel"] = kernel
    _, seen = nn.watch(lambda v: Model().apply(v, X))(bad)
    assert seen["gradients"] == {}
    shares = seen["outputs"]["deep/block_0/up"]["nonfinite"]
    assert (shares > 0).tolist() == [False, False, True, True]


def test_a_gradient_outside_and_one_trace():
    calls = []

    class Counted(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(1)
            return Model(nn.Remat())(x)

    model = Counted()
    variables = model.init(KEY, X)
    calls.clear()
    loss = lambda v: (model.apply(v, X) ** 2).mean()  # noqa: E731
    grads, seen = jax.grad(nn.watch(loss), has_aux=True)(variables)
    assert len(calls) == 1 and "Model_0/deep/block_0/up" in seen["outputs"]
    wanted = jax.grad(loss)(variables)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), grads, wanted)


def test_nothing_is_kept_for_it():
    """What a backward pass stores does not grow: what crosses the two loops is the same."""

    def stored(fn):
        scans = [e for e in jax.make_jaxpr(fn)(V, X).eqns if e.primitive.name == "scan"]
        return sorted(v.aval.shape for v in scans[0].outvars if v.aval.ndim > 1)

    model = Model(nn.Remat("products"))
    assert stored(step_of(model)) == stored(nn.watch(step_of(model)))


def test_table_and_page(tmp_path):
    _, seen = nn.watch(lambda v: Model().apply(v, X), of=["outputs"], stats=["rms", "zeros"])(V)
    lines = str(seen).splitlines()
    assert lines[0].startswith("outputs  first  ") and len(lines) == 2 * len(seen["outputs"])
    seen.to_html(tmp_path / "seen.html")
    page = (tmp_path / "seen.html").read_text()
    assert page.count("<h2>") == 2 and page.count("<td") == sum(x.size for *_, x in seen.rows())


def test_names_that_are_none():
    with pytest.raises(ValueError, match="watch: 'mean' is none of rms, max, zeros, nonfinite"):
        nn.watch(step_of(Model()), stats=["mean"])
    with pytest.raises(
        ValueError, match="watch: 'inputs' is none of outputs, gradients, params, updates"
    ):
        nn.watch(step_of(Model()), of=["inputs"])


def training(model, tx):
    def step(params, state):
        loss = lambda p: (model.apply({"params": p}, X) ** 2).mean()  # noqa: E731
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return value, optax.apply_updates(params, updates), state

    return step


EVERY = ("outputs", "gradients", "params", "updates")


@pytest.mark.parametrize("remat", [None, nn.Remat(), "auto"], ids=["plain", "remat", "auto"])
def test_parameters_and_updates_of_each_layer(remat):
    model, params = Model(remat), V["params"]
    layout = nn.layout(model, KEY, X)
    bare = optax.chain(optax.clip_by_global_norm(1.0), nn.per_layer(optax.lamb(1e-2), layout))
    tx = nn.watch_updates(bare, layout)
    state = tx.init(params)
    step = training(model, tx)
    (_, new, after), seen = jax.jit(nn.watch(step, of=EVERY))(params, state)
    plain = jax.jit(training(model, bare))(params, bare.init(params))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), (new, after), plain[1:]
    )
    for of, tree in (
        ("params", params),
        ("updates", jax.tree.map(lambda a, b: a - b, new, params)),
    ):
        assert sorted(seen[of]) == [
            *("deep/block_0/up/bias", "deep/block_0/up/kernel", "first/bias", "first/kernel")
        ]
        kernel = tree["deep"]["block_0"]["up"]["kernel"]
        rms = jnp.sqrt((kernel**2).mean((1, 2)))
        np.testing.assert_allclose(seen[of]["deep/block_0/up/kernel"]["rms"], rms, rtol=1e-3)
        first = jnp.abs(tree["first"]["kernel"]).max()
        np.testing.assert_allclose(seen[of]["first/kernel"]["max"], first, rtol=1e-3)


def test_layers_of_layers_and_a_model_without_any():
    inner = nn.Stack(nn.Dense(4), depth=2)
    deep = nn.Stack(inner, depth=3)
    params = deep.init(KEY, X)["params"]
    tx = nn.watch_updates(optax.sgd(1.0), nn.layout(deep, KEY, X))
    _, seen = nn.watch(training(deep, tx), of=EVERY, stats=["max"])(params, tx.init(params))
    (path,) = [path for path in seen["params"] if path.endswith("kernel")]
    assert seen["params"][path]["max"].shape == seen["updates"][path]["max"].shape == (3, 2)
    kernel = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
    np.testing.assert_allclose(seen["params"][path]["max"], jnp.abs(kernel).max((2, 3)), rtol=1e-6)

    dense = nn.Dense(4)
    params = dense.init(KEY, X)["params"]
    tx = nn.watch_updates(optax.sgd(1.0))
    _, seen = nn.watch(training(dense, tx), of=["updates"])(params, tx.init(params))
    assert list(seen["updates"]) == ["bias", "kernel"] and seen["updates"]["bias"]["rms"].ndim == 0


def test_a_module_that_returns_no_floats_has_parameters():
    class Best(nn.Module):
        @nn.compact
        def __call__(self, x):
            return jnp.argmax(nn.Dense(3)(x) * self.param("scale", nn.initializers.ones, (3,)), -1)

    best = Best()
    variables = best.init(KEY, X)
    _, seen = nn.watch(best.apply, of=["outputs", "params"], stats=["max"])(variables, X)
    assert sorted(seen["params"]) == ["Dense_0/bias", "Dense_0/kernel", "scale"]
    assert list(seen["outputs"]) == ["Dense_0"]


def test_updates_that_nobody_marked():
    tx = optax.sgd(1e-2)
    params = V["params"]
    with pytest.raises(ValueError, match=r"asks for 'updates'.*\n.*tx = nn.watch_updates\(tx, lay"):
        nn.watch(training(Model(), tx), of=["updates"])(params, tx.init(params))
    marked = nn.watch_updates(tx, nn.layout(Model(), KEY, X))
    _, seen = nn.watch(training(Model(), marked), of=["updates"])(params, tx.init(params))
    assert len(seen["updates"]) == 4


def test_watched_updates_cost_nothing_where_nobody_watches():
    tx, params = optax.adam(1e-2), V["params"]
    marked = nn.watch_updates(tx, nn.layout(Model(), KEY, X))
    texts = [
        jax.jit(training(Model(), one)).lower(params, one.init(params)).compile().as_text()
        for one in (tx, marked)
    ]
    assert texts[0].count(" = ") == texts[1].count(" = ")


def test_it_adds_little_to_a_program():
    """The four numbers of all outputs and gradients: a few operations for each element."""
    wide = nn.Stack(nn.Dense(256), depth=3)
    x = jnp.ones((64, 256))
    variables = wide.init(KEY, x)
    step = jax.value_and_grad(lambda v: (wide.apply(v, x) ** 2).mean())
    costs = [
        jax.jit(fn).lower(variables).compile().cost_analysis()["flops"]
        for fn in (step, nn.watch(step))
    ]
    assert costs[1] < 1.1 * costs[0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_numbers_of_any_float(dtype):
    x = jnp.asarray([0.0, -0.0, -3.0, 1.0, jnp.inf, -jnp.inf, jnp.nan, 2.0], dtype)

    class Given(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x

    (_, seen), (_, finite) = (nn.watch(Given().apply, of=["outputs"])({}, v) for v in (x, x[:4]))
    of = seen["outputs"][""]
    assert (float(of["zeros"]), float(of["nonfinite"])) == (0.25, 0.375)
    assert jnp.isnan(of["max"]) and jnp.isnan(of["rms"])
    of = finite["outputs"][""]
    assert (float(of["max"]), float(of["zeros"])) == (3.0, 0.5)
    np.testing.assert_allclose(of["rms"], np.sqrt(2.5), rtol=1e-6)
