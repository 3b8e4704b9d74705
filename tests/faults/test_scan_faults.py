"""Faults seen in other libraries' loops over modules; liftax has none of them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.compare import Counter, assert_same, ours, shapes
from helpers.models import SHARED, WIDTH, block, cheap, key_bits, mapped, scanned
from helpers.run import keys, ramp

lib = ours()
nn = lib.nn
errors = lib.errors
CARRY = ramp(WIDTH)
XS = ramp(3, WIDTH, start=0.5)


def test_a_body_of_nested_scans_is_traced_once() -> None:
    """Elsewhere each scan traces its body twice, a nest of three eight times."""
    counter = Counter()

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, _):
            counter.hit()
            return nn.Dense(WIDTH, kernel_init=cheap)(c), None

    target = Body
    for _ in range(3):
        target = scanned(lib, target, length=2)
    target().init(keys(), CARRY, None)
    assert counter.take() == 1


@pytest.mark.parametrize("lift", [scanned, mapped])
def test_sown_values_without_a_role_are_an_error(lift: Any) -> None:
    """Elsewhere a collection that no role names comes back empty, without a word."""
    model = lift(lib, block("sow", lib), variable_axes={"params": 0})()
    args = (CARRY, XS) if lift is scanned else (XS, XS)
    variables = model.init(keys(), *args)
    with pytest.raises(errors.UnnamedCollectionError, match="'intermediates'"):
        model.apply(variables, *args, mutable=["intermediates"])


@pytest.mark.parametrize("lift", [scanned, mapped])
def test_captured_intermediates_without_a_role_are_an_error(lift: Any) -> None:
    model = lift(lib, block("dense", lib), variable_axes={"params": 0})()
    args = (CARRY, XS) if lift is scanned else (XS, XS)
    variables = model.init(keys(), *args)
    with pytest.raises(errors.UnnamedCollectionError, match="variable_axes"):
        model.apply(variables, *args, capture_intermediates=True)
    model = lift(lib, block("dense", lib), variable_axes={"params": 0, "intermediates": 0})()
    _, kept = model.apply(variables, *args, capture_intermediates=True)
    inside = kept["intermediates"]["Dense_0"]["__call__"][0]
    assert inside.shape == (3, WIDTH)


@pytest.mark.parametrize("lift", [scanned, mapped])
def test_keyword_arguments_reach_the_body(lift: Any) -> None:
    """Elsewhere they are dropped, or make the call fail far from the cause."""

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x, *, scale=1.0, shift=None):
            y = nn.Dense(WIDTH, kernel_init=cheap)(c) * scale
            return y + shift, (y, x * scale)

    model = lift(lib, Body)()
    args = (CARRY, XS) if lift is scanned else (XS, XS)
    options = {"scale": 3.0, "shift": ramp(WIDTH)}
    variables = model.init(keys(), *args, **options)
    carry, (_, scaled) = model.apply(variables, *args, **options)
    np.testing.assert_allclose(scaled, XS * 3.0)
    c, rows = CARRY, []
    for i in range(3):
        here = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
        start = c if lift is scanned else XS[i]
        c, _ = Body().apply(here, start, XS[i], **options)
        rows.append(c)
    np.testing.assert_allclose(carry, c if lift is scanned else jnp.stack(rows), rtol=1e-5)


def test_a_closed_over_module_is_an_error_that_shows_the_cure() -> None:
    """Elsewhere every step gets the same key and shared weights, whatever was asked for."""

    class Model(nn.Module):
        @nn.compact
        def __call__(self, c, xs):
            inner = nn.Dense(WIDTH, kernel_init=cheap)

            def body(mdl, c, x):
                return inner(c), x

            return scanned(lib, body)(self, c, xs)

    with pytest.raises(errors.ClosedOverModuleError) as caught:
        Model().init(keys(), CARRY, XS)
    message = str(caught.value)
    assert "scan" in message and "argument" in message
    assert len(message.splitlines()) <= 12

    class Corrected(nn.Module):
        @nn.compact
        def __call__(self, c, xs):
            inner = nn.Dense(WIDTH, kernel_init=cheap)
            return scanned(lib, lambda inner, c, x: (inner(c), x))(inner, c, xs)

    variables = Corrected().init(keys(), CARRY, XS)
    assert shapes(variables["params"]["Dense_0"]["kernel"]) == (3, WIDTH, WIDTH)


def test_a_carried_collection_is_created_inside_the_loop() -> None:
    """Elsewhere it has to exist before."""

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            seen = self.variable("state", "seen", lambda: jnp.zeros((), jnp.int32))
            seen.value = seen.value + 1
            total = self.variable("state", "total", jnp.zeros, (WIDTH,))
            total.value = total.value + x
            return nn.Dense(WIDTH, kernel_init=cheap)(c), (seen.value, total.value)

    model = scanned(lib, Body, variable_axes={"params": 0}, variable_carry="state")()
    (_, (steps, totals)), variables = model.init_with_output(keys(), CARRY, XS)
    assert steps.tolist() == [1, 2, 3]
    np.testing.assert_allclose(totals, np.cumsum(XS, 0), rtol=1e-4)
    assert int(variables["state"]["seen"]) == 3
    (_, (steps, _)), changed = model.apply(variables, CARRY, XS, mutable=["state"])
    assert steps.tolist() == [4, 5, 6]
    np.testing.assert_allclose(changed["state"]["total"], 2 * XS.sum(0), rtol=1e-4)


@pytest.mark.parametrize("size", [2, 3])
def test_one_array_is_no_pair(size: int) -> None:
    """Elsewhere an array of leading size 2 is unpacked as carry and output."""

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return jnp.stack([c, x, c][:size])

    model = scanned(lib, Body)()
    with pytest.raises(errors.BodyReturnError, match=r"pair \(carry, ys\)"):
        model.init(keys(), CARRY, XS)


@pytest.mark.parametrize("lift", [scanned, mapped])
def test_every_leaf_is_looked_at_for_its_size(lift: Any) -> None:
    """Elsewhere the first leaf decides and another one's size fails far from the cause."""

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return c, x["a"] + x["b"]

    model = lift(lib, Body)()
    c = CARRY if lift is scanned else XS
    with pytest.raises(errors.LengthError, match=r"\['b'\]"):
        model.init(keys(), c, {"a": XS, "b": ramp(4, WIDTH)})


def test_length_is_checked_against_variables() -> None:
    three = scanned(lib, block("dense", lib))()
    variables = three.init(keys(), CARRY, XS)
    with pytest.raises(errors.LengthError, match="params/Dense_0/"):
        three.apply(variables, CARRY, XS[:2])


@pytest.mark.parametrize("lift", [scanned, mapped])
def test_a_leaked_tracer_is_no_variable(lift: Any) -> None:
    """Elsewhere it comes back among the variables and fails later."""
    kept: list[Any] = []

    class Leaks(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            kept.append(c)
            return c, x

    class Model(nn.Module):
        @nn.compact
        def __call__(self, c, xs):
            c, y = lift(lib, Leaks)()(c, xs)
            self.put_variable("state", "leaked", kept[0])
            return c, y

    args = (CARRY, XS) if lift is scanned else (XS, XS)
    with pytest.raises(errors.LeakedTracerError, match="leaked"):
        Model().init(keys(), *args)


def test_errors_never_print_arrays() -> None:
    """Elsewhere an error message holds whole arrays."""
    model = scanned(lib, block("boxed", lib), metadata_params={}, variable_axes={"params": 0})()
    with pytest.raises(errors.PartitioningUnspecifiedError, match="partition_name") as caught:
        model.init(keys(), CARRY, XS)
    assert "Array(" not in str(caught.value)
    assert "[[" not in str(caught.value)


def test_a_broadcast_output_that_depends_on_the_loop_is_named() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return c, {"fine": jnp.ones(2), "wrong": c * 2.0}

    model = scanned(lib, Body, out_axes=lib.broadcast, variable_axes={}, split_rngs={})()
    with pytest.raises(errors.LoopDependentError, match="wrong"):
        model.init(keys(), CARRY, XS)


def test_a_broadcast_variable_that_depends_on_the_loop_is_named() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return c + self.param("w", lambda key: x * 2.0), x

    model = scanned(lib, Body, **SHARED)()
    with pytest.raises(errors.LoopDependentError, match="params/w"):
        model.init(keys(), CARRY, XS)


def test_split_keys_differ_from_step_to_step() -> None:
    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            return c, key_bits(self.make_rng("dropout"))

    def drawn(split: bool) -> Any:
        model = scanned(lib, Body, variable_axes={}, split_rngs={"dropout": split})()
        return model.apply({}, CARRY, XS, rngs={"dropout": jax.random.key(0)})[1]

    assert len(set(drawn(True).tolist())) == 3
    assert len(set(drawn(False).tolist())) == 1


def test_switch_over_branches_with_different_parameters_initialises_in_a_scan() -> None:
    """Elsewhere the branches must own the same variables before the loop."""

    class Body(nn.Module):
        @nn.compact
        def __call__(self, c, x):
            branches = [
                lambda mdl, c: nn.Dense(WIDTH, kernel_init=cheap, name="a")(c),
                lambda mdl, c: c * mdl.param("b", cheap, (WIDTH,)),
                lambda mdl, c: c,
            ]
            index = jnp.argmax(x)
            return nn.switch(index, branches, self, c), index

    for options in ({}, SHARED):
        model = scanned(lib, Body, **options)()
        (_, index), variables = model.init_with_output(keys(), CARRY, jnp.eye(3))
        assert index.tolist() == [0, 1, 2]
        assert set(variables["params"]) == {"a", "b"}
        (out, _) = model.apply(variables, CARRY, jnp.eye(3))
        pick = (lambda leaf, i: leaf) if options else (lambda leaf, i: leaf[i])
        p = variables["params"]
        kernel, bias = pick(p["a"]["kernel"], 0), pick(p["a"]["bias"], 0)
        np.testing.assert_allclose(
            out, (CARRY @ kernel + bias) * pick(p["b"], 1), rtol=1e-5, atol=1e-6
        )


def test_variables_that_a_branch_makes_inside_a_loop_are_kept() -> None:
    def body(scope: Any, c: Any, x: Any) -> Any:
        make = lambda scope, c: c * scope.param("w", cheap, ())  # noqa: E731
        return lib.lift.cond(True, make, lambda scope, c: make(scope, -c), scope, c), None

    stack = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    fn = lib.lift.scan(body, **stack, length=2)
    _, variables = lib.core.init(fn)(jax.random.key(0), CARRY, None)
    assert shapes(variables) == {"params": {"w": (2,)}}


def test_remat_scan_of_one_length_still_recomputes() -> None:
    """Elsewhere one length applies no remat and ignores the policy."""

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, c):
            return jnp.sin(nn.Dense(WIDTH, kernel_init=cheap)(c))

    def program(policy: Any) -> str:
        model = nn.remat_scan(Layer, lengths=(3,), policy=policy)()
        variables = jax.eval_shape(model.init, keys(), CARRY)
        grad = jax.grad(lambda v: model.apply(v, CARRY).sum())
        return str(jax.make_jaxpr(grad)(variables))

    plain = program(None)
    assert "remat" in plain or "checkpoint" in plain
    saved = program(jax.checkpoint_policies.everything_saveable)
    assert saved.count("dot_general") < plain.count("dot_general")


def test_remat_scan_equals_its_loop() -> None:
    class Layer(nn.Module):
        @nn.compact
        def __call__(self, c):
            return jnp.sin(nn.Dense(WIDTH, kernel_init=cheap)(c))

    model = nn.remat_scan(Layer, lengths=(2, 2))()
    variables = model.init(keys(), CARRY)
    c = CARRY
    for i in range(2):
        for j in range(2):
            here = jax.tree.map(lambda leaf, i=i, j=j: leaf[i, j], variables)
            c = Layer().apply(here, c)
    np.testing.assert_allclose(model.apply(variables, CARRY), c, rtol=1e-6)


def test_apply_with_a_mutable_collection_through_map_variables() -> None:
    """The reference loses the parameters of `map_variables(init=True)` in that case."""

    def negate(tree: Any) -> Any:
        return jax.tree.map(jnp.negative, tree)

    model = nn.map_variables(block("state", lib), "params", negate, negate, init=True)()
    variables = model.init(keys(), CARRY, CARRY)
    out, changed = model.apply(variables, CARRY, CARRY, mutable=["batch_stats"])
    plain = {**variables, "params": negate(variables["params"])}
    expected = block("state", lib)().apply(plain, CARRY, CARRY, mutable=["batch_stats"])
    assert_same((out, changed), expected)
