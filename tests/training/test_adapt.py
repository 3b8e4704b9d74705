"""Adapters of low rank: on every kind of kernel, in every way to run a stack, merged and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from stack.blocks import equal, same

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

KEY = jax.random.key(0, impl="unsafe_rbg")  # compiles quickly inside loops
X = jax.random.normal(jax.random.key(3), (2, 4))
IMAGE = jax.random.normal(KEY, (2, 4, 4, 3))
ROW = jax.random.normal(KEY, (2, 3, 4))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.tanh(nn.Dense(6, name="up")(nn.LayerNorm(name="norm")(x)))
        return x + nn.Dense(x.shape[-1], name="down")(h)


class Cell(nn.Module):
    @nn.compact
    def __call__(self, x):
        cell = nn.OptimizedLSTMCell(3, name="cell")
        return cell(cell.initialize_carry(KEY, x.shape), x)[1]


# Small programs, compiled quickly rather than well.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def quick(fn, *args):
    return jax.jit(fn, compiler_options=QUICK)(*args)


def made(model, x=X):
    """Variables of the model's shapes, without compiling its initializers."""
    draw = np.random.default_rng(1)
    shapes = jax.eval_shape(model.init, KEY, x)
    return jax.tree.map(lambda s: jnp.asarray(draw.normal(size=s.shape) * 0.3, s.dtype), shapes)


KINDS = {
    "Dense": (nn.Dense(5), True, X, {"lora_a": (4, 2), "lora_b": (2, 5)}),
    "DenseGeneral": (
        nn.DenseGeneral((2, 5), axis=(-2, -1), batch_dims=(0,)),
        True,
        ROW,
        {"lora_a": (2, 3, 4, 2), "lora_b": (2, 2, 2, 5)},
    ),
    "Einsum": (
        nn.Einsum((2, 4, 3), "btd,ndh->btnh"),
        True,
        ROW,
        {"lora_a": (2, 4, 2), "lora_b": (2, 2, 3)},
    ),
    "Embed": (
        nn.Embed(7, 4),
        True,
        jnp.asarray([[1, 6]]),
        {"lora_a": (7, 2), "lora_b": (2, 4)},
    ),
    "Conv": (
        nn.Conv(4, (2, 2)),
        True,
        IMAGE,
        {"lora_a": (2, 2, 3, 2), "lora_b": (2, 4)},
    ),
    "ConvLocal": (
        nn.ConvLocal(4, (2,)),
        True,
        ROW,
        {"lora_a": (3, 8, 2), "lora_b": (3, 2, 4)},
    ),
    "attention": (
        nn.MultiHeadAttention(num_heads=2),
        ["query", "out"],
        ROW,
        {
            "query": {"lora_a": (4, 2), "lora_b": (2, 2, 2)},
            "out": {"lora_a": (2, 2, 2), "lora_b": (2, 4)},
        },
    ),
    "cell": (
        Cell(),
        "cell/i*",
        X,
        {"cell": dict.fromkeys(["ii", "if", "ig", "io"], {"lora_a": (4, 2), "lora_b": (2, 3)})},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_kernels(kind):
    """The base is untouched, an adapter adds to it, and merged it is the same sum to the bit."""
    model, where, x, shapes = KINDS[kind]
    adapted = nn.adapt(model, where, rank=2, scale=0.5)
    variables = made(adapted, x)
    base = {"params": variables["params"]}
    assert jax.tree.map(jnp.shape, base) == jax.tree.map(
        jnp.shape, jax.eval_shape(model.init, KEY, x)
    )
    assert jax.tree.map(jnp.shape, variables["lora"]) == shapes

    y = jax.jit(adapted.apply)(variables, x)
    run = jax.jit(model.apply)
    assert jnp.abs(y - run(base, x)).max() > 1e-3
    merged = adapted.merge(variables)
    equal(run(merged, x), y)
    same(adapted.unmerge(merged, variables), variables, rtol=1e-4, atol=1e-6)


def test_the_base_is_untouched():
    """The same initial values, and to the bit the same outputs, until something is trained."""
    model = nn.Stack(Block(), depth=3)
    adapted = nn.adapt(model, "up", rank=2)
    y, variables = quick(adapted.init_with_output, KEY, X)
    expected, base = quick(model.init_with_output, KEY, X)
    equal((y, variables["params"]), (expected, base["params"]))
    assert not variables["lora"]["block_0"]["up"]["lora_b"].any()
    equal(quick(adapted.apply, variables, X), quick(model.apply, base, X))


WAYS = [
    {"run": "loop", "remat": nn.Remat()},
    {"run": "scan of 2"},
    {"run": nn.Pipeline(stages=2, microbatches=2)},
    {"store": "layers"},
]


@pytest.fixture(scope="module")
def scanned():
    model = nn.Stack(Block(), depth=2, before=[Block()])
    adapted = nn.adapt(model, "up", rank=[2, 1, 3])
    variables = made(adapted)
    return adapted, variables, grads(adapted, variables)


def value_and_grad(adapted, variables):
    def loss(lora):
        return jnp.sum(jnp.sin(adapted.apply({**variables, "lora": lora}, X)))

    return jax.value_and_grad(loss)


def grads(adapted, variables):
    return quick(value_and_grad(adapted, variables), variables["lora"])


@pytest.mark.parametrize("options", WAYS, ids=str)
def test_every_way_to_run(scanned, options):
    """Written out, in groups, recomputed, in a pipeline, by layers: one loss, one gradient."""
    adapted, variables, expected = scanned
    other = adapted.clone(model=adapted.model.clone(**options))
    if "store" in options:
        lora = nn.to_layers(expected[1], adapted.model, collection="lora")
        variables, expected = nn.to_layers(variables, adapted.model), (expected[0], lora)
    same(grads(other, variables), expected, rtol=1e-4)


@pytest.mark.parametrize("store", ["stacked", "layers", "circular"])
def test_a_rank_for_each_layer(store):
    """What training adds to a layer's kernel has the layer's rank; the rest stays zero."""
    ranks = [2, 1, 0, 3]
    run = nn.Pipeline(stages=2, microbatches=2, repeats=2) if store == "circular" else "scan"
    model = nn.Stack(Block(), depth=4, store=store, run=run)
    adapted = nn.adapt(model, "up", rank=ranks)
    variables = quick(adapted.init, KEY, X)
    tx = optax.adamw(0.1)

    @jax.jit
    def step(lora, state):
        _, grad = value_and_grad(adapted, variables)(lora)
        updates, state = tx.update(grad, state, lora)
        return optax.apply_updates(lora, updates), state

    lora, state = variables["lora"], tx.init(variables["lora"])
    for _ in range(2 if store == "stacked" else 0):
        lora, state = step(lora, state)
    down = nn.to_layers(lora, model)
    for i, rank in enumerate(ranks):
        held = down[f"layers_{i}"]["up"]
        assert not held["lora_a"][:, rank:].any() and not held["lora_b"][rank:].any()
        assert (held["lora_a"][:, :rank] != 0).all()
    if store == "stacked":
        merged = adapted.merge({**variables, "lora": lora})
        new, old = (
            np.asarray(v["params"]["block_0"]["up"]["kernel"], float) for v in (merged, variables)
        )
        assert np.linalg.matrix_rank(new - old, tol=1e-5).tolist() == ranks


def test_optimizers_see_the_adapters_alone():
    model = nn.Stack(Block(), depth=3)
    adapted = nn.adapt(model, "down", rank=2)
    lora = made(adapted)["lora"]
    written = optax.scale_by_trust_ratio()
    stacked = nn.per_layer(written, model)
    updates, _ = stacked.update(lora, stacked.init(lora), lora)
    apart = nn.to_layers(lora, model)
    expected, _ = written.update(apart, written.init(apart), apart)
    same(nn.to_layers(updates, model), expected, rtol=1e-4)


class ByHand(nn.Module):
    axes: tuple[str, ...]

    @nn.compact
    def __call__(self, x):
        cls = nn.scan(
            nn.remat(Scanned),
            variable_axes=dict.fromkeys(self.axes, 0),
            split_rngs={"params": True},
            length=3,
        )
        return cls(name="layers")(x, None)[0]


class Scanned(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return Block(name="block")(x), None


def test_lifts_by_hand():
    """A lift that names its collections names this one; or the adapters lie in the parameters."""
    apart = nn.adapt(ByHand(("params", "lora")), "up", rank=2)
    within = nn.adapt(ByHand(("params",)), "up", rank=2, collection="params")
    base = quick(apart.model.init, KEY, X)
    equal(quick(apart.init, KEY, X)["params"], base["params"])  # drawn as Linen draws them
    variables, both = made(apart), made(within)
    kernel = both["params"]["layers"]["block"]["up"]
    assert sorted(kernel) == ["bias", "kernel", "lora_a", "lora_b"]
    assert variables["lora"]["layers"]["block"]["up"]["lora_a"].shape == (3, 4, 2)
    merged = within.merge(both)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    equal(quick(within.model.apply, merged, X), quick(within.apply, both, X))
    same(within.unmerge(merged, both), both, rtol=1e-4)
    wrong = nn.adapt(ByHand(("params",)), "up", rank=2)
    with pytest.raises(nn.errors.UnnamedCollectionError, match="'lora'"):
        jax.eval_shape(wrong.init, KEY, X)
    with pytest.raises(nn.errors.UnnamedCollectionError, match="'lora'"):
        jax.eval_shape(wrong.apply, variables, X)


def test_variables_that_are_there():
    """Adapters are made beside the variables of a checkpoint; the layout has them."""
    model = nn.Stack(Block(), depth=3)
    base = made(model)
    adapted = nn.adapt(model, ["up", "down"], rank=2)

    def make(base):
        return adapted.apply(base, X, rngs=KEY, mutable=["lora"])

    y, new = quick(make, base)
    equal(y, quick(model.apply, base, X))
    equal(new, {"lora": quick(adapted.init, KEY, X)["lora"]})
    with pytest.raises(nn.errors.AdaptError, match="no adapter for 'kernel'"):
        adapted.apply(base, X)
    text = str(nn.layout(adapted, KEY, X))
    assert "lora_a" in text and "(stack 3, in 4, rank 2)" in text


def test_stacked_along_another_axis():
    model = nn.Stack(Block(), depth=3, param_axis=1)
    adapted = nn.adapt(model, "up", rank=2)
    variables = made(adapted)
    with pytest.raises(nn.errors.AdaptError, match="layout= for stacks"):
        adapted.merge(variables)
    merged = adapted.merge(variables, layout=model)
    same(quick(model.apply, merged, X), quick(adapted.apply, variables, X))
    same(adapted.unmerge(merged, variables, layout=model), variables, rtol=1e-4)


def test_axis_names_and_dtypes():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    layer = nn.Dense(5, kernel_init=init, param_dtype=jnp.bfloat16)
    adapted = nn.adapt(layer, True, rank=2)
    variables = made(adapted)
    lora = variables["lora"]
    assert lora["lora_a"].names == ("in", None) and lora["lora_b"].names == (None, "out")
    assert lora["lora_a"].value.dtype == jnp.bfloat16
    merged = adapted.merge(variables)
    assert merged["params"]["kernel"].names == ("in", "out")
    equal(layer.apply(merged, X), adapted.apply(variables, X))


def test_each_call_is_heard_of_once():
    adapted = nn.adapt(nn.Stack(Block(), depth=2, run="loop"), "up", rank=1)
    variables = made(adapted)
    heard = []

    def hear(next_fun, args, kwargs, context):
        heard.append((*context.module.path[-1:], context.method_name))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(hear):
        _, state = adapted.apply(variables, X, capture_intermediates=True)
    assert heard.count(("up", "__call__")) == 2
    assert len(state["intermediates"]["block_0"]["up"]["__call__"]) == 1


def test_one_trace():
    calls = []

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            calls.append(1)
            return x + nn.Dense(4, name="dense")(x)

    adapted = nn.adapt(nn.Stack(Counting(), depth=3), "dense", rank=1)
    variables = jax.eval_shape(adapted.init, KEY, X)
    assert len(calls) == 1
    jax.eval_shape(adapted.apply, variables, X)
    assert len(calls) == 2


class Named(nn.Module):
    def setup(self):
        self.model = nn.Dense(4)

    def __call__(self, x):
        return self.model(x)

    def twice(self, x):
        return self(self(x))


def test_inside_of_another_model():
    """The model keeps the names that it has, whatever they are, and its other methods."""

    class Outer(nn.Module):
        adapted: bool

        def setup(self):
            inner = Named(parent=None)
            self.inner = nn.adapt(inner, "model", rank=1) if self.adapted else inner

        def __call__(self, x):
            return self.inner(x) + (self.inner.run(x, call="twice") if self.adapted else 0)

    variables = made(Outer(True))
    shapes = jax.eval_shape(Outer(False).init, KEY, X)["params"]
    assert jax.tree.map(jnp.shape, variables["params"]) == jax.tree.map(jnp.shape, shapes)
    assert list(variables["lora"]["inner"]["model"]) == ["lora_a", "lora_b"]
    plain = nn.adapt(Named(), "model", rank=1).merge(
        {name: part["inner"] for name, part in variables.items()}
    )
    once = Named().apply(plain, X)
    same(Outer(True).apply(variables, X), once + Named().apply(plain, X, method="twice"))


class Two(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Stack(Block(), depth=2, name="first")(x)
        return nn.Dense(4, name="last")(x)


def test_repeats_that_share_have_one_rank():
    model = nn.Stack(Block(), depth=2, variable_broadcast=["params", "lora"])
    with pytest.raises(nn.errors.AdaptError, match="share the collection 'lora'.\nfound: ranks"):
        jax.eval_shape(nn.adapt(model, "up", rank=[1, 2]).init, KEY, X)
    lora = jax.eval_shape(nn.adapt(model, "up", rank=[2, 2]).init, KEY, X)["lora"]
    assert lora["block_0"]["up"]["lora_a"].shape == (4, 2)


MISUSES = {
    "nothing": (
        {"where": "upp", "rank": 2},
        {"where": "up", "rank": 2},
        "where='upp' matches no layer with a kernel.\nfound: first/block_0/up, first/block_0/down",
    ),
    "one of two": (
        {"where": ["up", "lost"], "rank": 2},
        {"where": nn.DenyList(["down", "last"]), "rank": 2},
        "where='lost' matches no layer",
    ),
    "no kernel": (
        {"where": "block_*/norm", "rank": 2},
        {"where": "block_*", "rank": 2},
        "LayerNorm has no kernel that can be adapted.\nfound: scale, bias",
    ),
    "large": (
        {"where": "last", "rank": 5},
        {"where": "last", "rank": 4},
        "rank=5 is more than the kernel has.\nfound: a kernel of 4 by 4",
    ),
    "short list": (
        {"where": "up", "rank": [1, 2, 3]},
        {"where": "up", "rank": [1, 2]},
        "found: 3 ranks, 2 layers",
    ),
    "list outside": (
        {"where": "last", "rank": [1, 2]},
        {"where": "first", "rank": [1, 2]},
        "a layer that is in no Stack",
    ),
    "zero": (
        {"where": "up", "rank": 0},
        {"where": "up", "rank": np.int64(1)},
        "rank expected a number from 1, or one for each layer of a stack; found 0",
    ),
    "einsum": (
        {"model": nn.Einsum((4, 2, 3), "bd,dnh->bnh"), "where": True, "rank": 5},
        {"model": nn.Einsum((4, 2, 3), "bd,dnh->bnh"), "where": True, "rank": 4},
        "rank=5 is more",
    ),
    "no matrix": (
        {"model": nn.Einsum((4, 2, 3), "bdh,dnh->bn"), "where": True, "rank": 1},
        {"model": nn.Einsum((2, 4, 3), "bdh,ndh->bn"), "where": True, "rank": 1},
        "the kernel is no matrix.\nfound: 'bdh,dnh->bn'",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name):
    wrong, right, message = MISUSES[name]
    x = jnp.ones((2, 4, 3)) if name == "no matrix" else X

    def shapes(model=None, **options):
        return jax.eval_shape(nn.adapt(model or Two(), **options).init, KEY, x)

    with pytest.raises(nn.errors.AdaptError, match=message) as caught:
        shapes(**wrong)
    assert caught.value.code == "LX605"
    assert shapes(**right)["lora"]


def test_what_cannot_be_merged():
    adapted = nn.adapt(nn.Dense(4), True, rank=2)
    variables = made(adapted)
    with pytest.raises(nn.errors.AdaptError, match="no adapters in 'lora'"):
        adapted.merge({"params": variables["params"]})
    wrong = {**variables, "lora": {"other": variables["lora"]}}
    with pytest.raises(nn.errors.AdaptError, match="no kernel at other"):
        adapted.merge(wrong)
    with pytest.raises(nn.errors.InvalidFilterError, match="adapt: where"):
        nn.adapt(nn.Dense(4), None, rank=2)
    other = nn.adapt(nn.Dense(4), ["kernel"], rank=[2])
    assert hash(other) == hash(nn.adapt(nn.Dense(4), ("kernel",), rank=(2,)))
    with pytest.raises(nn.errors.AdaptError, match="expected a module; found the class Dense"):
        nn.adapt(nn.Dense, True, rank=2)
