"""`map_variables` with every lift, around it and inside it, called once and twice.

In init Linen runs the body on the variables as they are and, after they went out and in again, once
more: what is mapped twice, made twice or drawn twice shows in the numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both
from helpers.lifted import LIFTS, called, doubled, halved
from helpers.run import ramp

KEYS = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
X = ramp(2, 3)


def norm(lib: Library) -> Any:
    nn = lib.nn

    class Norm(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.LayerNorm()(nn.Dense(3)(x))

    return Norm


def state(lib: Library) -> Any:
    """Writes what it makes, and draws keys for it."""
    nn = lib.nn

    class State(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dropout(0.5, deterministic=False)(nn.Dense(3)(x))
            total = self.variable("state", "total", lambda: jnp.ones(()))
            if self.is_mutable_collection("state"):
                total.value = total.value * 3 + x.mean()
            self.sow("seen", "x", x)
            return x + total.value

    return State


def halving(
    lib: Library, target: Any, times: int = 1, collections: Any = "params", options: Any = None
) -> Any:
    """Calls one instance of a mapped module; ``options`` None: init where it is initializing."""
    nn = lib.nn

    class Halving(nn.Module):
        @nn.compact
        def __call__(self, x):
            flags = options or {"init": self.is_initializing(), "mutable": True}
            mapped = nn.map_variables(target, collections, doubled, halved, **flags)()
            for _ in range(times):
                x = mapped(x)
            return x

    return Halving


def computed(model: Any, mutable: tuple[Any, ...] = (False, True)) -> Any:
    y, variables = model.init_with_output(KEYS, X)
    later = {"dropout": jax.random.key(2)}
    return y, variables, [model.apply(variables, X, rngs=later, mutable=m) for m in mutable]


@pytest.mark.parametrize("around", LIFTS)
def test_a_lift_around(around: str) -> None:
    def run(lib: Library) -> Any:
        body = norm if around in ("vjp", "remat_scan") else state
        return computed(LIFTS[around](lib, halving(lib, body(lib), 2))(), (True,))

    both(run)


@pytest.mark.parametrize("inside", LIFTS)
def test_a_lift_inside(inside: str) -> None:
    """With ``init=True``: what a lift inside makes and uses is made again for the second run."""
    always = {"init": True, "mutable": True}
    both(
        lambda lib: computed(
            halving(lib, called(lib, LIFTS[inside](lib, norm(lib)), _call), 2, options=always)(),
            (True,),
        )
    )


def _call(nn: Any, inner: Any, x: Any) -> Any:
    return inner(x)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("collections", ["state", True])
def test_what_is_mapped_is_written_in_init(collections: Any, times: int) -> None:
    always = {"init": True, "mutable": False}
    both(
        lambda lib: computed(
            halving(lib, state(lib), times, collections, always)(), mutable=(True,)
        )
    )


def test_one_instance_called_twice_halves_twice() -> None:
    def run(lib: Library) -> Any:
        return halving(lib, lib.nn.LayerNorm, 2)().init(KEYS, X)["params"]

    made = both(run)
    assert float(jax.tree.leaves(made)[-1][0]) == 0.25


NORMALISED = [
    ("SpectralNorm", "none", "jit"),
    ("SpectralNorm", "none", "scan"),
    ("SpectralNorm", "vmap", "Dense"),
    ("SpectralNorm", "scan_shared", "Dense"),
    ("SpectralNorm", "scan_shared", "jit"),
    ("WeightNorm", "none", "jit"),
    ("WeightNorm", "scan_shared", "Dense"),
]


@pytest.mark.parametrize(("wrapper", "around", "kind"), NORMALISED)
def test_normalised_weights_under_lifts(wrapper: str, around: str, kind: str) -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                if kind == "scan":
                    held = LIFTS["scan"](lib, lambda: nn.Dense(3))()
                else:
                    held = (nn.jit(nn.Dense) if kind == "jit" else nn.Dense)(3)
                call = {"update_stats": True} if wrapper == "SpectralNorm" else {}
                return getattr(nn, wrapper)(held)(x, **call)

        return computed(LIFTS[around](lib, Net)(), (["batch_stats"],))

    both(run)


def test_scales_of_a_partitioned_kernel_have_linens_names() -> None:
    def run(lib: Library) -> Any:
        nn = lib.nn

        class Net(nn.Module):
            @nn.compact
            def __call__(self, x):
                init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
                return nn.WeightNorm(nn.Dense(3, kernel_init=init))(x)

        return computed(Net())

    _, variables, _ = both(run)
    assert list(variables["params"]["WeightNorm_0"]) == ["Dense_0/kernel/value/scale"]


@pytest.mark.parametrize("how", ["init", "apply"])
def test_a_scan_goes_on_from_what_it_wrote_to_a_shared_collection(how: str) -> None:
    """Linen's first trace writes it, and the iterations start from there."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Count(nn.Module):
            @nn.compact
            def __call__(self, c, _):
                n = self.variable("state", "n", lambda: jnp.zeros(()))
                if self.is_mutable_collection("state"):
                    n.value = n.value + 1
                return c + n.value, n.value

        class Twice(nn.Module):
            @nn.compact
            def __call__(self, x):
                loop = nn.scan(Count, variable_broadcast="state", length=3)()
                return loop(x, None), loop(x, None)

        y, variables = Twice().init_with_output(KEYS, jnp.zeros(()))
        if how == "init":
            return y, variables
        return Twice().apply(variables, jnp.zeros(()), mutable="state")

    both(run)


def test_keys_of_the_first_trace_make_what_is_shared() -> None:
    """A shared variable that is written from a drawn key has the first trace's."""

    def run(lib: Library) -> Any:
        nn = lib.nn

        class Noisy(nn.Module):
            @nn.compact
            def __call__(self, c, _):
                mean = self.variable("state", "mean", lambda: jnp.zeros(()))
                noise = jax.random.normal(self.make_rng("dropout"), ())
                mean.value = mean.value + noise
                return c + noise, mean.value

        class Loop(nn.Module):
            @nn.compact
            def __call__(self, x):
                options = {"variable_broadcast": "state", "split_rngs": {"dropout": False}}
                return nn.scan(Noisy, length=2, **options)()(x, None)

        return Loop().init_with_output(KEYS, jnp.zeros(()))

    both(run)
