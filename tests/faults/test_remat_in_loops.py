"""Recomputation survives whatever the loop around it does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

import liftax as nn

pytestmark = pytest.mark.usefixtures("compiled_quickly")

SHARED: dict[str, Any] = {"variable_broadcast": "params", "split_rngs": {"params": False}}
STACKED: dict[str, Any] = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}


@pytest.mark.parametrize("mutable", [False, ["batch_stats"]], ids=["eval", "train"])
@pytest.mark.parametrize("weak", [False, True], ids=["strong", "weak"])
@pytest.mark.parametrize("once", [False, True], ids=["each", "once"])
@pytest.mark.parametrize("roles", [SHARED, STACKED], ids=["shared", "stacked"])
def test_remat_in_a_scan_recomputes(
    roles: dict[str, Any], once: bool, weak: bool, mutable: Any
) -> None:
    """With a carry of a weak type or an output made once, the body is traced before the loop."""

    class Block(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            w = self.param("w", nn.initializers.ones, (3,))
            return jnp.sin(c * w), jnp.float32(2.0)

    out_axes = nn.broadcast if once else 0
    model = nn.scan(nn.remat(Block), length=4, out_axes=out_axes, **roles)()
    carry = jnp.broadcast_to(1.0, (3,)) if weak else jnp.ones(3, jnp.float32)
    assert jax.typeof(carry).weak_type is weak
    variables = model.init(jax.random.key(0), carry, None)

    def loss(variables: Any) -> Any:
        out = model.apply(variables, carry, None, mutable=mutable)
        return (out[0] if mutable else out)[0].sum()

    program = str(jax.make_jaxpr(jax.grad(loss))(variables))
    assert "checkpoint" in program or "remat" in program


def test_what_a_loop_marks_is_not_the_users_to_save(remat3: bool) -> None:
    """A policy that saves whatever has a name saves what the user named, and no more."""
    seen = set()

    def policy(prim: Any, *_: Any, **params: Any) -> bool:
        seen.add(params.get("name") if prim.name == "name" else None)
        return False

    class Block(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            return checkpoint_name(jnp.sin(nn.Dense(3)(c)), "mine"), None

    model = nn.scan(Block, length=2, **SHARED)()

    def loss(x: Any) -> Any:
        return model.init_with_output(jax.random.key(0), x, None)[0][0].sum()

    jax.make_jaxpr(jax.grad(jax.checkpoint(loss, policy=policy)))(jnp.ones(3))
    seen.discard(None)
    assert seen == {"mine"} or (remat3 and not seen)  # JAX 0.10 asks only policies of its own
