"""Lifts of the user's own: written once as for Linen, on liftax and on flax; and with `nn.lift`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import ON_FLAX, Library, both, ours
from jax.experimental.ode import odeint

import liftax as nn
from liftax import errors

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
X = jnp.asarray(np.sin(np.arange(12.0)).reshape(4, 3), jnp.float32)
only_ours = pytest.mark.skipif(ON_FLAX, reason="nn.lift is liftax's own")


def block(lib: Library) -> Any:
    class Block(lib.nn.Module):
        rate: float = 0.5

        @lib.nn.compact
        def __call__(self, x, train=True):
            y = lib.nn.Dense(3)(x)
            y = lib.nn.BatchNorm(use_running_average=not train)(y)
            self.sow("intermediates", "mean", y.mean())
            return x + lib.nn.Dropout(self.rate, deterministic=not train)(lib.nn.tanh(y))

        def half(self, x):
            return self(x) / 2

    return Block


# --- as one writes them for Linen ---------------------------------------------


def own_remat(lib: Library) -> Any:
    """With static arguments, which Linen's remat has too, by hand."""

    def remat(fn, static=()):
        def inner(scope_fn, repack, variables, keys, *args, **kwargs):
            def pure(variables, keys, *args):
                scopes = scope_fn(variables, keys)
                y = fn(scopes, *args, **kwargs)
                return y, repack(scopes)

            numbers = tuple(2 + i for i in static)
            return jax.checkpoint(pure, static_argnums=numbers)(variables, keys, *args)

        return lib.lift.pack(inner, (True,), (True,), (True,), name="remat", enable_kwargs=True)

    return remat


def own_vmap(lib: Library) -> Any:
    """Over experts: two groups of variables, keys split and whole."""

    def experts(fn, number):
        def inner(scope_fn, repack, variables, keys, x):
            (own, rest), (split, same) = variables, keys
            split = lib.lift.tree_map_rngs(lambda key: jax.random.split(key, number), split)

            def one(own, split, x):
                scopes = scope_fn((own, rest), (split, same))
                y = fn(scopes, x)
                return y, repack(scopes)

            chosen = jnp.stack([x * (x > 0), x * (x < 0)])
            y, (own, rest) = jax.vmap(one, out_axes=(0, (0, 0)))(own, split, chosen)
            return y.sum(0), (own, rest)

        return lib.lift.pack(
            inner, ("params", False), ("params", True), ("params", True), name="experts"
        )

    return experts


def frozen(lib: Library) -> Any:
    """What may be written is narrowed inside: `mutable_filter`."""

    def frozen(fn):
        def inner(scope_fn, repack, variables, keys, *args):
            first = scope_fn(variables, keys)
            fn(first, *args)
            made = repack(first)
            merged = tuple({**a, **b} for a, b in zip(variables[0], made[0], strict=True))
            only = lib.core.DenyList("params")
            scopes = scope_fn((merged,), keys, mutable_filter=only)
            y = fn(scopes, *args)
            written = tuple({**a, **b} for a, b in zip(made[0], repack(scopes)[0], strict=True))
            return y, (written,)

        return lib.lift.pack(inner, (True,), (True,), (True,))

    return frozen


def scanned(lib: Library, body: Any) -> Any:
    class Body(lib.nn.Module):
        @lib.nn.compact
        def __call__(self, x, _):
            return body()(x), None

    return lib.nn.scan(
        Body,
        variable_axes={"params": 0, "batch_stats": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        length=2,
        metadata_params={lib.nn.PARTITION_NAME: "layers"},
    )


def under_scan(lib: Library, cls: Any) -> Any:
    layers = scanned(lib, cls)
    return lambda x: layers()(x, None)[0]


CASES: dict[str, Callable[[Library, Any], Any]] = {
    "class": lambda lib, cls: lib.nn.transforms.lift_transform(own_remat(lib), cls)(),
    "partial": lambda lib, cls: lib.nn.transforms.lift_transform(
        own_remat(lib), functools.partial(cls, rate=0.25)
    )(),
    "methods": lambda lib, cls: (
        lib.nn.transforms.module_class_lift_transform(own_remat(lib), cls, methods=["half"])().half
    ),
    "methods by name": lambda lib, cls: (
        lib.nn.transforms.module_class_lift_transform(
            own_remat(lib), cls, methods={"half": {"static": ()}}
        )().half
    ),
    "over a lift": lambda lib, cls: lib.nn.transforms.lift_transform(
        own_remat(lib), lib.nn.jit(cls)
    )(),
    "under a lift": lambda lib, cls: lib.nn.remat(
        lib.nn.transforms.lift_transform(own_remat(lib), cls)
    )(),
    "under a scan": lambda lib, cls: under_scan(
        lib, lib.nn.transforms.lift_transform(own_remat(lib), cls)
    ),
    "experts": lambda lib, cls: lib.nn.transforms.lift_transform(own_vmap(lib), cls, 2)(),
    "experts under a scan": lambda lib, cls: under_scan(
        lib, lib.nn.transforms.lift_transform(own_vmap(lib), cls, 2)
    ),
    "frozen": lambda lib, cls: lib.nn.transforms.lift_transform(frozen(lib), lib.nn.Dense)(3),
}


@pytest.mark.parametrize("case", CASES)
def test_lifts_written_for_linen(case: str) -> None:
    def run(lib: Library) -> Any:
        cls = block(lib)

        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x):
                return lib.nn.Dense(2)(CASES[case](lib, cls)(lib.nn.Dense(3)(x)))

        variables = Model().init(KEYS, X)
        mutable = ["batch_stats", "intermediates"]

        def loss(params: Any) -> Any:
            y, state = Model().apply({**variables, "params": params}, X, rngs=KEYS, mutable=mutable)
            return y.sum(), (y, state)

        return variables, jax.grad(loss, has_aux=True)(variables["params"])

    both(run)


def test_lifts_of_functions_called_at_once() -> None:
    def run(lib: Library) -> Any:
        transforms = lib.nn.transforms

        class Model(lib.nn.Module):
            @lib.nn.compact
            def __call__(self, x, train):
                inner = block(lib)(name="inner")
                y = transforms.lift_transform(
                    own_remat(lib), lambda mdl, x, train: mdl(x, train), static=(1,)
                )(inner, x, train)
                y, pull = transforms.lift_direct_transform(
                    lib.lift.vjp, (lambda mdl, x: mdl(x),), lib.nn.Dense(3), y, multi_scope=False
                )
                bars = pull(jnp.ones_like(y))

                def first(mdl, x):
                    return mdl(x)

                def forward(mdl, x):
                    return lib.nn.vjp(first, mdl, x)

                def choose(f, g, **kwargs):
                    f, g = (own_remat(lib)(fn) for fn in (f, g))
                    return lambda scopes, x: (f(scopes, x), g(scopes, x))

                def second(mdl, x):
                    return mdl(2 * x)

                two = transforms.decorator_lift_transform(choose, (first, second))
                twice = two(lib.nn.Dense(2), y)

                scopes, args, kwargs = transforms.get_module_scopes(self, (inner, y), {"z": y})
                again, (mdl, y), kwargs = transforms.set_module_scopes(self, args, kwargs, scopes)
                return y, bars, twice, mdl(kwargs["z"], train), again.name

        variables = Model().init(KEYS, X, True)
        return variables, Model().apply(variables, X, True, rngs=KEYS, mutable=True)

    both(run)


# --- in ten lines -------------------------------------------------------------


@only_ours
def test_an_ode_solver() -> None:
    class Field(nn.Module):
        """A vector field, with a layer before it that is made by the same method."""

        @nn.compact
        def __call__(self, y, t):
            return nn.Dense(3)(nn.tanh(nn.Dense(8)(jnp.append(y, t))))

    @nn.lift(variables=nn.In("params"), first=lambda y, t: (y, t[0]))
    def solve(body, variables, keys, y, t):
        def field(y, t, variables, keys):
            return body(variables, keys, y, t)[0]

        return odeint(field, y, t, variables, keys), ()

    t = jnp.linspace(0.0, 1.0, 4)
    model = solve(Field)()
    variables = model.init(KEYS, X[0], t)
    plain = Field()
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, plain.init(KEYS, X[0], t[0])
    )

    def loss(variables: Any) -> Any:
        return model.apply(variables, X[0], t).sum()

    def by_hand(variables: Any) -> Any:
        return odeint(lambda y, t, v: plain.apply(v, y, t), X[0], t, variables).sum()

    found, expected = (jax.value_and_grad(f)(variables) for f in (loss, by_hand))
    assert jax.tree.all(jax.tree.map(lambda a, b: jnp.allclose(a, b, 1e-5), found, expected))


@only_ours
def test_linearize() -> None:
    traces = []

    @nn.lift
    def linearize(body, variables, keys, x):
        y, tangent, written = jax.linearize(lambda x: body(variables, keys, x), x, has_aux=True)
        return (y, tangent), written

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            def f(mdl, x):
                traces.append(x)
                return mdl(x)

            y, tangent = linearize(f)(block(ours())(), x)
            return y, tangent(x)

    variables = Model().init(KEYS, X)
    traces.clear()
    (y, dy), state = Model().apply(variables, X, rngs=KEYS, mutable=["batch_stats"])
    assert len(traces) == 1
    assert y.shape == dy.shape == X.shape and set(state) == {"batch_stats"}
    layout = nn.layout(Model(), KEYS, X)
    assert [lift.kind for lift in layout.lifts] == ["linearize"]


def experts_of(number: int, capacity: int) -> Any:
    """Each expert sees the tokens that chose it, at most so many."""

    axes = {"own": 0, "same": None}

    @nn.lift(
        variables={"own": "params", "same": "batch_stats"}, rngs={"own": True}, axes={"own": 0},
        size=number, metadata_params={nn.PARTITION_NAME: "experts"},
    )  # fmt: skip
    def experts(body, variables, keys, x, gates):
        weight, chosen = jax.lax.top_k(jax.nn.softmax(gates).T, capacity)  # (expert, slot)
        run = jax.vmap(body, in_axes=(axes, {"own": 0}, 0), out_axes=(0, axes))
        y, written = run(variables, keys, x[chosen])
        return jnp.zeros_like(x).at[chosen].add(weight[..., None] * y), written

    return experts


@only_ours
def test_a_mixture_of_experts() -> None:
    class Expert(nn.Module):
        @nn.compact
        def __call__(self, x):
            init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
            x = nn.Dense(8, kernel_init=init)(x)
            return nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(nn.relu(x)))

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return experts_of(4, 2)(Expert)(name="experts")(x, nn.Dense(4)(x))

    variables = Model().init(KEYS, X)
    kernel = variables["params"]["experts"]["Dense_0"]["kernel"]
    assert kernel.names == ("experts", "in", "out") and kernel.value.shape == (4, 3, 8)
    assert not jnp.allclose(kernel.value[0], kernel.value[1])
    grads = jax.grad(lambda v: Model().apply(v, X, rngs=KEYS).sum())(variables)
    assert grads["params"]["experts"]["Dense_1"]["kernel"].shape == (4, 8, 3)
    found = nn.layout(Model(), KEYS, X)
    axes = found["params/experts/Dense_0/kernel"].axes
    assert [(axis.label, axis.size) for axis in axes] == [("experts", 4), ("in", 3), ("out", 8)]
    # The lift over the class is a lift as ours are: the same again under a scan.
    layers = scanned(ours(), Model)()
    assert layers.init(KEYS, X, None)["params"]["Model_0"]["experts"]["Dense_1"]["bias"].shape == (
        2, 4, 3,
    )  # fmt: skip


@only_ours
def test_custom_batching() -> None:
    """A layer that, under vmap, is called once with the whole batch."""
    shapes = []

    @nn.lift(variables=nn.In(True))
    def whole(body, variables, keys, x):
        @jax.custom_batching.custom_vmap
        def call(variables, keys, x):
            return body(variables, keys, x)[0]

        @call.def_vmap
        def rule(size, batched, variables, keys, x):
            assert batched[2] and not any(jax.tree.leaves(batched[:2]))
            return body(variables, keys, x)[0], True

        return call(variables, keys, x), ()

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x):
            shapes.append(x.shape)
            return nn.Dense(2)(x)

    variables = Layer().init(KEYS, X)
    model = whole(Layer)()
    shapes.clear()
    found = jax.vmap(lambda x: model.apply(variables, x))(X)
    assert shapes == [(3,), (4, 3)]
    assert jnp.array_equal(found, Layer().apply(variables, X))


@only_ours
def test_a_bounded_while_that_is_differentiable() -> None:
    def bounded(steps: int) -> Any:
        @nn.lift(variables=nn.In("params"), first=lambda x: (x,), name="bounded_while")
        def run(body, variables, keys, x):
            def step(x, _):
                small = jnp.abs(x).max() < 10.0
                return jnp.where(small, body(variables, keys, x)[0], x), small

            x, ran = jax.lax.scan(step, x, length=steps)
            return (x, ran.sum()), ()

        return run

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            return bounded(8)(lambda mdl, x: x + 2 * jnp.abs(mdl(x)))(nn.Dense(3), x)

    variables = Model().init(KEYS, X)
    grads = jax.grad(lambda v: Model().apply(v, X)[0].sum())(variables)
    assert float(jnp.abs(grads["params"]["Dense_0"]["kernel"]).min()) > 0
    x = X
    steps = 0
    while jnp.abs(x).max() < 10:
        x = x + 2 * jnp.abs(nn.Dense(3).apply({"params": variables["params"]["Dense_0"]}, x))
        steps += 1
    y, ran = Model().apply(variables, X)
    assert steps == int(ran) < 8 and jnp.allclose(y, x, 1e-5)


@only_ours
def test_nothing_is_lost_without_a_word() -> None:
    def lose(body, variables, keys, x):
        return body(variables, keys, x)[0], ({},)

    def no_pair(body, variables, keys, x):
        return body(variables, keys, x)[0]

    def keep(body, variables, keys, x):
        return body(variables, keys, x)

    with pytest.raises(errors.LostWritesError, match=r"lose of Block(.|\n)*variable params/.*lost"):
        nn.lift(lose)(block(ours()))().init(KEYS, X)
    with pytest.raises(
        errors.LostWritesError, match=r"no_pair must return a pair(.|\n)*it returns float32\[4,3\]"
    ):
        nn.lift(no_pair)(block(ours()))().init(KEYS, X)
    with pytest.raises(errors.UnnamedCollectionError, match=r"inside keep of Block.*batch_stats"):
        nn.lift(keep, variables="params")(block(ours()))().init(KEYS, X)
    with pytest.raises(errors.UnnamedCollectionError, match=r"lets 'params' in and not out"):
        nn.lift(keep, variables={"w": nn.In("params"), "rest": True})(block(ours()))().init(KEYS, X)
    # Two lifts of one name are two.
    one, two = (
        nn.lift(lambda *args, n=n: (n, ()), nn.In(True), name="same")(nn.Dense) for n in (1, 2)
    )
    assert [cls(3).apply({}, X) for cls in (one, two)] == [1, 2]
    for options, words in (
        ({"axes": {"w": 0}}, "needs a length"),
        ({"axes": {"w": 0}, "size": 2, "first": lambda x: (x,)}, "has no axis"),
        ({"axes": {"v": 0}, "size": 2}, r"with the roles .*'w'"),
    ):
        with pytest.raises(errors.LiftOptionError, match=words):
            nn.lift(keep, variables={"w": "params"}, **options)
    own = nn.transforms.lift_transform(
        lambda fn: nn.core.lift.pack(
            lambda scope_fn, repack, v, k, x: (fn(s := scope_fn(v, k), x), repack(s)),
            ("params",), ("params",), (True,), name="mine",
        ),
        block(ours()),
    )  # fmt: skip
    with pytest.raises(errors.UnnamedCollectionError, match=r"inside mine of Block.*batch_stats"):
        own().init(KEYS, X)
    layers = nn.layout(nn.transforms.lift_transform(own_remat(ours()), block(ours()))(), KEYS, X)
    assert [(lift.kind, lift.target) for lift in layers.lifts] == [("remat", "Block")]
