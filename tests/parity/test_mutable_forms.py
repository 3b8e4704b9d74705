"""What ``mutable=`` may be times every lift, with the collection there already and not yet.

A collection that no lift names, and that nobody has made, goes by its name in ``mutable=`` alone.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from helpers.compare import Library, both
from helpers.lifted import LIFTS, called
from helpers.run import ramp

X = ramp(2, 3)
KEY = jax.random.key(0)
FORMS: dict[str, Any] = {
    "True": lambda lib: True,
    "name": lambda lib: "state",
    "list": lambda lib: ["params", "seen"],
    "DenyList": lambda lib: lib.core.DenyList("seen"),
}


def counting(lib: Library) -> Any:
    """Keeps a state and sows, where it may."""
    nn = lib.nn

    class Counting(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = x + self.param("shift", nn.initializers.ones, ())
            self.sow("seen", "x", x)
            if self.is_mutable_collection("state"):
                n = self.variable("state", "n", lambda: jnp.zeros(()))
                n.value = n.value + 1
            return x

    return Counting


OTHERS: dict[str, Any] = {
    "grad": lambda lib, t: called(
        lib, t, lambda nn, m, x: nn.grad(lambda m, x: m(x).sum(), m, x)[0]
    ),
    "add_metadata_axis": lambda lib, t: lib.nn.add_metadata_axis(
        t, {True: 0}, metadata_params={lib.nn.PARTITION_NAME: "axis"}
    ),
}
# What the reference does with one that maps is in test_map_variables.
LIFTED = {name: lift for name, lift in {**LIFTS, **OTHERS}.items() if name != "map_variables"}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lift", LIFTED)
def test_what_may_be_written_is_kept(lift: str, form: str) -> None:
    def run(lib: Library) -> Any:
        model, mutable = LIFTED[lift](lib, counting(lib))(), FORMS[form](lib)
        made = model.init(KEY, X)
        params = {"params": made["params"]}
        # Without parameters to make there is no init.
        given = model.init(KEY, X, mutable=mutable) if form != "name" else None
        return [
            given,
            # Called before without: what jit keeps of it must not serve again.
            model.apply(params, X),
            model.apply(params, X, mutable=mutable),
            model.apply(made, X, mutable=mutable),
        ]

    both(run)


@pytest.mark.parametrize("around", ["scan", "vmap"])
def test_a_jitted_block_keeps_what_its_lift_lets_out(around: str) -> None:
    """One program for each set of collections that may be written, also where a lift narrows it."""

    def run(lib: Library) -> Any:
        model = LIFTS[around](lib, lib.nn.jit(counting(lib)))()
        params = {"params": model.init(KEY, X)["params"]}
        return [model.apply(params, X, mutable=m) for m in (False, "seen", ["state"], "seen")]

    both(run)
