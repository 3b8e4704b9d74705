"""Recomputation survives whatever the loop around it does."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import liftax as nn

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
