"""Reading equations: what is found is what was written, in every release of JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import checkpoint_name

from liftax import equations

XS = jnp.ones((5, 2))


def _equations(fn: Any, *args: Any) -> list[Any]:
    return list(jax.make_jaxpr(fn)(*args).jaxpr.eqns)


@pytest.mark.parametrize("shared", [0, 1, 2])
@pytest.mark.parametrize("carried", [0, 1, 3])
@pytest.mark.parametrize(("unroll", "expected"), [(1, 1), (2, 2), (9, 5), (True, 5), (False, 1)])
def test_a_scan(shared: int, carried: int, unroll: Any, expected: int) -> None:
    def fn(consts: Any, carry: Any, xs: Any) -> Any:
        def body(carry: Any, x: Any) -> Any:
            return [c + 1.0 for c in carry], sum(consts, jnp.sin(x))

        return jax.lax.scan(body, carry, xs, unroll=unroll)

    (eqn,) = _equations(fn, [jnp.ones(2)] * shared, [jnp.zeros(())] * carried, XS)
    scan = equations.as_scan(eqn)
    assert scan is not None
    assert equations.is_loop(eqn)
    assert (scan.length, scan.unroll) == (5, expected)
    assert (scan.shared, scan.carried) == (shared, carried)
    assert len(scan.body.jaxpr.invars) == shared + carried + 1
    assert [p.jaxpr for p in equations.programs_of(eqn)] == [scan.body.jaxpr]


def test_other_loops() -> None:
    def count(x: Any) -> Any:
        return jax.lax.while_loop(lambda n: n < 3, lambda n: n + 1, x)

    def choose(x: Any) -> Any:
        return jax.lax.cond(x > 0, jnp.sin, jnp.cos, 1.0)

    for fn, programs in ((count, 2), (choose, 2)):
        (eqn,) = [e for e in _equations(fn, 0) if equations.is_loop(e)]
        assert equations.as_scan(eqn) is None
        assert len(list(equations.programs_of(eqn))) == programs


@pytest.mark.skipif(not hasattr(jax.config, "jax_scan3"), reason="JAX has no such loops")
def test_a_loop_over_references_is_a_loop() -> None:
    before = jax.config.jax_scan3
    jax.config.update("jax_scan3", True)
    try:
        eqns = _equations(lambda xs: jax.lax.scan(lambda c, x: (c + x, x), XS[0], xs), XS)
    finally:
        jax.config.update("jax_scan3", before)
    (eqn,) = [eqn for eqn in eqns if equations.is_loop(eqn)]
    assert "scan" not in eqn.primitive.name  # it is one of many called so
    assert equations.as_scan(eqn) is None
    (body,) = equations.programs_of(eqn)
    assert len(body.jaxpr.outvars) == 1


def test_names_and_what_is_recomputed(remat3: bool) -> None:
    def fn(x: Any) -> Any:
        y = checkpoint_name(jnp.sin(x), "outside")
        return jax.checkpoint(lambda y: jnp.cos(checkpoint_name(jnp.exp(y), "inside")))(y)

    eqns = _equations(fn, 1.0)
    assert [equations.given_name(e) for e in eqns] == [None, "outside", None]
    assert equations.name_of(eqns[0]) == "sin"
    assert (equations.name_of(eqns[1]) == "name") is not remat3
    (body,) = equations.programs_of(eqns[2])
    assert not body.consts
    assert [equations.given_name(e) for e in body.jaxpr.eqns] == [None, "inside", None]
