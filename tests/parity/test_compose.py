"""Lifts of lifts, in every order to depth three, and jax's own transformations around them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both, shapes
from helpers.interpret import interpret
from helpers.models import SHARED, WIDTH, block, cheap, key_bits, mapped, scanned
from helpers.run import MUTABLE, everything, keys, ramp

# Streams that are not split while their parameters are stacked are among the cases.
pytestmark = pytest.mark.filterwarnings("ignore:LX202")

Lift = Callable[[Library, Any], Any]


def _negated(collections: Any) -> Any:
    return jax.tree.map(jnp.negative, collections)


# Each lift with the size of the axis that it adds to the inputs: None for no axis, "x" for the
# scanned input alone, "both" for carry and input.
LIFTS: dict[str, tuple[str | None, Lift]] = {
    "scan": ("x", lambda lib, t: scanned(lib, t)),
    "scan_shared": ("x", lambda lib, t: scanned(lib, t, **SHARED)),
    "vmap": ("both", lambda lib, t: mapped(lib, t)),
    "vmap_shared": (
        "both",
        lambda lib, t: mapped(
            lib, t, variable_axes={"params": None}, split_rngs={"params": False, "dropout": True}
        ),
    ),
    "remat": (None, lambda lib, t: lib.nn.remat(t)),
    "jit": (None, lambda lib, t: lib.nn.jit(t)),
    "negate": (
        None,
        lambda lib, t: lib.nn.map_variables(t, "params", _negated, _negated, init=True),
    ),
}


# Linen's jit finds a class again by its hash: no class is dropped for another to take its place.
_KEPT: list[Any] = []


def build(lib: Library, target: Any, nest: tuple[str, ...]) -> Any:
    """`nest` is written outermost first."""
    for name in reversed(nest):
        target = LIFTS[name][1](lib, target)
        _KEPT.append(target)
    return target


def inputs(nest: tuple[str, ...]) -> tuple[jax.Array, jax.Array]:
    of_x = [2 + i % 2 for i, name in enumerate(nest) if LIFTS[name][0]]
    of_carry = [2 + i % 2 for i, name in enumerate(nest) if LIFTS[name][0] == "both"]
    return ramp(*of_carry, WIDTH), ramp(*of_x, WIDTH, start=0.3)


LOOPS = ("scan", "scan_shared", "vmap", "vmap_shared")
PAIRS = [pair for pair in itertools.product(LIFTS, repeat=2) if set(pair) & set(LOOPS)]
TRIPLES = [
    *itertools.product(("scan", "vmap_shared"), repeat=3),
    ("vmap", "scan", "vmap"),
    ("scan_shared", "vmap", "scan"),
    ("scan", "vmap", "scan_shared"),
    ("vmap", "scan_shared", "scan"),
    ("scan", "remat", "vmap_shared"),
    ("remat", "scan", "remat"),
    ("jit", "vmap_shared", "scan"),
    ("scan", "jit", "remat"),
    ("vmap", "remat", "scan"),
    ("negate", "scan", "vmap"),
    ("scan", "negate", "jit"),
    ("vmap_shared", "scan", "negate"),
]


def _name(nest: tuple[str, ...]) -> str:
    return "-".join(nest)


def check(nest: tuple[str, ...], name: str) -> None:
    # The reference cannot apply `map_variables(init=True)` with a mutable collection.
    mutable = False if "negate" in nest else MUTABLE
    both(
        lambda lib: everything(build(lib, block(name, lib), nest)(), inputs(nest), mutable=mutable)
    )


@pytest.mark.parametrize("nest", PAIRS, ids=_name)
@pytest.mark.parametrize("name", ["direct_param", "direct_rng"])
def test_two_lifts(nest: tuple[str, ...], name: str) -> None:
    check(nest, name)


@pytest.mark.parametrize("nest", TRIPLES, ids=_name)
@pytest.mark.parametrize("name", ["direct_rng", "nested"])
def test_three_lifts(nest: tuple[str, ...], name: str) -> None:
    check(nest, name)


@pytest.mark.parametrize("first", ["scan", "vmap"])
def test_the_two_orders(first: str) -> None:
    """Scan of vmap and vmap of scan lay their variables out differently, as the nest says."""
    nest = (first, "vmap" if first == "scan" else "scan")
    found = both(lambda lib: everything(build(lib, block("dense", lib), nest)(), inputs(nest)))
    assert shapes(found["variables"]["params"]["Dense_0"]["kernel"]) == (2, 3, WIDTH, WIDTH)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("seed", [0, 7])
def test_composed_lifts_of_the_second_page(seed: int, shared: bool) -> None:
    """The second seed document: scan over layers inside vmap over the batch, as jax runs it."""
    layers, batch, features = 3, 2, 4

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Block(nn.Module):
            features: int

            @nn.compact
            def __call__(self, x, _):
                return nn.relu(nn.Dense(self.features)(x)), None

        scan_layer = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=layers
        )
        batched = nn.vmap(
            scan_layer,
            in_axes=0,
            out_axes=0,
            variable_axes={"params": None if shared else 0},
            split_rngs={"params": not shared},
        )
        model = batched(features=features)
        x = ramp(batch, features)
        params = model.init(jax.random.PRNGKey(seed), x, None)
        final, ys = model.apply(params, x, None)
        assert ys is None
        return params, final.reshape(-1)

    params, _ = both(run)
    expected = (layers, features, features) if shared else (batch, layers, features, features)
    assert shapes(params)["params"]["Dense_0"]["kernel"] == expected


def test_reversed_order_of_the_second_page() -> None:
    """The page's pitfall: the batch axis inside the layers."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Block(nn.Module):
            features: int

            @nn.compact
            def __call__(self, x, _):
                return nn.relu(nn.Dense(self.features, kernel_init=cheap)(x)), None

        inner = nn.vmap(
            Block,
            in_axes=(0, None),
            out_axes=(0, None),
            variable_axes={"params": 0},
            split_rngs={"params": True},
        )
        outer = nn.scan(inner, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return everything(outer(features=WIDTH), (ramp(2, WIDTH), None))

    found = both(run)
    assert shapes(found["variables"]["params"]["Dense_0"]["kernel"]) == (3, 2, WIDTH, WIDTH)


OUTSIDE: dict[str, Callable[[Any, Any, Any], Any]] = {
    "jit": lambda f, v, x: jax.jit(f)(v, x),
    "vmap": lambda f, v, x: jax.vmap(f, (None, 0))(v, jnp.stack([x, x * 2.0])),
    "checkpoint": lambda f, v, x: jax.grad(lambda v: jax.checkpoint(f)(v, x).sum())(v),
    "grad_of_vmap": lambda f, v, x: jax.grad(
        lambda v: jax.vmap(f, (None, 0))(v, jnp.stack([x, x * 2.0])).sum()
    )(v),
    "vmap_of_grad": lambda f, v, x: jax.vmap(jax.grad(lambda v, x: f(v, x).sum()), (None, 0))(
        v, jnp.stack([x, x * 2.0])
    ),
    "jacfwd": lambda f, v, x: jax.jacfwd(f)(v, x),
    "hessian": lambda f, v, x: jax.jacfwd(jax.grad(lambda x: f(v, x).sum()))(x),
    "scan": lambda f, v, x: jax.lax.scan(lambda c, _: (f(v, c), None), x, None, length=2)[0],
    "linearize": lambda f, v, x: jax.linearize(lambda x: f(v, x), x)[1](x),
    "eval_shape": lambda f, v, x: shapes(jax.eval_shape(f, v, x)),
}


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize(
    "nest", [("vmap_shared", "scan"), ("scan", "remat"), ("jit", "scan_shared")]
)
def test_under_a_transformation_of_jax(outside: str, nest: tuple[str, ...]) -> None:
    c, xs = inputs(nest)

    def run(lib: Library) -> Any:
        model = build(lib, block("dropout", lib), nest)()
        made = model.init(keys(), c, xs)
        rngs = {"dropout": jax.random.key(5)}
        return OUTSIDE[outside](lambda v, x: model.apply(v, x, xs, rngs=rngs)[0], made, c)

    if outside == "eval_shape":
        both(run)
    else:
        both(lambda lib: interpret(lambda: run(lib)))


@pytest.mark.parametrize("outside", ["jit", "vmap"])
def test_init_under_a_transformation_of_jax(outside: str) -> None:
    nest = ("vmap", "scan")
    c, xs = inputs(nest)

    def run(lib: Library) -> Any:
        model = build(lib, block("direct_param", lib), nest)()
        if outside == "jit":
            return jax.jit(model.init)(keys(), c, xs)
        seeds = jax.random.split(jax.random.key(0), 3)
        return jax.vmap(lambda key: model.init(key, c, xs))(seeds)

    both(run)


def test_lifts_inside_lifts() -> None:
    """A scanned stack of modules that hold mapped heads and scanned cells of their own."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Layer(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                heads = mapped(lib, block("direct_rng", lib))(name="heads")
                y, z = heads(jnp.stack([c, c * 2.0]), jnp.stack([x, x]))
                cell = scanned(lib, nn.GRUCell, **SHARED)(WIDTH, kernel_init=cheap, name="cell")
                c, _ = cell(c, y + z)
                w = self.param("w", cheap, (WIDTH,))
                noise = key_bits(self.make_rng("dropout"))
                return c * w, z.sum(0) + noise

        class Model(nn.Module):
            @nn.compact
            def __call__(self, c, x):
                c, y = scanned(lib, Layer)(name="layers")(c, x)
                return nn.Dense(2, kernel_init=cheap)(c), y

        return everything(Model(), (ramp(WIDTH), ramp(2, WIDTH)))

    both(run)
